"""Weights that lack a tensor are refused by its name: the libraries would leave it random, and every image would be of another model."""

import shutil
from pathlib import Path

import pytest
import torch
from relisted import recard
from safetensors.torch import load_file, save_file
from tiny_pipelines import build_tiny_pipeline
from tiny_upscaler import add_tiny_upscaler

from gda.demo_base.build import build_tiny_cascade
from gda.errors import DataError
from gda.generator.families.opening import load_model
from gda.generator.weights.layout import NETWORKS


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base of each kind; never changed."""
    root = tmp_path_factory.mktemp("bases")
    made = {kind: build_tiny_pipeline(kind, root / kind) for kind in ("sd1", "sdxl", "sd3")}
    return made | {"cascade": add_tiny_upscaler(build_tiny_cascade(root / "cascade"), root / "upscaled")}


def _weights(base: Path) -> list[Path]:
    return sorted(path for path in base.rglob("*.safetensors") if path.parent.name in NETWORKS)


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3", "cascade"])
def test_a_tensor_that_is_missing_is_named(bases: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """Of every network, the first and the last tensor by name; whole, the same base is loaded."""
    load_model(str(bases[kind]))
    tried = 0
    for number, path in enumerate(_weights(bases[kind])):
        for place in (0, -1):
            base = Path(shutil.copytree(bases[kind], tmp_path / f"{number}{place}"))
            changed = base / path.relative_to(bases[kind])
            tensors = load_file(changed)
            lost = sorted(tensors)[place]
            del tensors[lost]
            save_file(tensors, changed, metadata={"format": "pt"})
            recard(base)  # else the card is what does not fit
            with pytest.raises(DataError, match=rf"{changed.parent}: its weights lack the tensor .*, which would stay random"):
                load_model(str(base))
            shutil.rmtree(base)
            tried += 1
    assert tried >= 6


def test_several_are_counted(bases: dict[str, Path], tmp_path: Path) -> None:
    """One line for a truncated file, not one per tensor."""
    base = Path(shutil.copytree(bases["sd1"], tmp_path / "base"))
    path = base / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensors[name] for name in sorted(tensors)[3:]}, path, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lack the tensor \S+ and 2 more, which would stay random"):
        load_model(str(base))


def test_the_names_of_older_autoencoders_are_known(bases: dict[str, Path], tmp_path: Path) -> None:
    """A healthy twin: Stable Diffusion 1.x has the attention of its autoencoder under names that diffusers translates."""
    base = Path(shutil.copytree(bases["sd1"], tmp_path / "base"))
    path = base / "vae" / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    renamed = {}
    for name, tensor in tensors.items():
        new = next((name.replace(f".{ours}.", f".{peer}.") for ours, peer in older.items() if f".{ours}." in name), name)
        renamed[new] = tensor
    assert renamed.keys() != tensors.keys()
    save_file(renamed, path, metadata={"format": "pt"})
    loaded = load_model(str(base)).pipeline.vae.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_a_tensor_that_is_random_is_not_seen_otherwise(bases: dict[str, Path], tmp_path: Path) -> None:
    """Negative control: without the check two loads of the damaged weights differ, and no library reports it."""
    from diffusers import UNet2DConditionModel

    folder = Path(shutil.copytree(bases["sd1"] / "unet", tmp_path / "unet"))
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    lost = "conv_in.weight"
    del tensors[lost]
    save_file(tensors, path, metadata={"format": "pt"})
    first, second = (UNet2DConditionModel.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False) for _ in range(2))
    assert not torch.equal(first.state_dict()[lost], second.state_dict()[lost])
