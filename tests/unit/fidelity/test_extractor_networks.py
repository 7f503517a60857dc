"""Large extractors, with random weights in files of the right layout: nothing is downloaded, and no weights are taken for others."""

import json
import math
import pickle
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torch_fidelity
from PIL import Image
from safetensors.torch import load_file, save_file
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from gda.config.load import load_config
from gda.errors import ConfigError, DataError, MissingError
from gda.fidelity.accumulated import FeatureObserver, FeaturesIndex
from gda.fidelity.compare import fid
from gda.fidelity.extractors import comparison_size, configured_extractor, get_extractor
from gda.fidelity.extractors.base import to_input
from gda.fidelity.extractors.clip import ClipArchitecture as ClipArchitecture
from gda.fidelity.extractors.clip import load_clip
from gda.fidelity.extractors.dinov2 import IMAGENET_MEAN, IMAGENET_STD, Dinov2Architecture, load_dinov2, resample_positions
from gda.fidelity.extractors.fidelity_bridge import register_extractor
from gda.fidelity.extractors.inception import load_inception
from gda.stages.reference import reference_fingerprint

TINY_VIT = Dinov2Architecture("tiny", "vit_small_patch14_dinov2", {"embed_dim": 32, "depth": 2, "num_heads": 2})
TOKENS = [*"abcdef", *(letter + "</w>" for letter in "abcdef"), "<|startoftext|>", "<|endoftext|>"]
TINY_CLIP = ClipArchitecture("tiny", hidden_size=16, layers=2, patch_size=32)


def noise(n, px=28, seed=0):
    """uint8 images without structure."""
    return torch.randint(0, 256, (n, 3, px, px), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Random weights of the Inception network, as torch-fidelity's file holds them."""

    class Random(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_, **__):
            return None

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    torch.save(Random("x", ["2048"], feature_extractor_weights_path=str(path)).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory):
    """Random weights of a small DINOv2 at its own 518 pixels, with the token that only training uses."""
    torch.manual_seed(0)
    state = timm.create_model(TINY_VIT.model, pretrained=False, num_classes=0, **TINY_VIT.arguments).state_dict()
    # New layers are scaled to nearly nothing, and the class token would see no image.
    state = {name: tensor * 20 if "proj" in name or "qkv" in name else tensor for name, tensor in state.items()}
    state |= {name: torch.ones_like(tensor) for name, tensor in state.items() if name.endswith("gamma")}
    path = tmp_path_factory.mktemp("vit") / "model.safetensors"
    save_file(state | {"mask_token": torch.zeros(1, 32)}, path)
    return path


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A small CLIPModel with random weights."""
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=small | {"vocab_size": 50}, vision_config=small | {"patch_size": 32}, projection_dim=12)
    config.text_config.bos_token_id, config.text_config.eos_token_id = TOKENS.index("<|startoftext|>"), TOKENS.index("<|endoftext|>")
    path = tmp_path_factory.mktemp("clip") / "model"
    CLIPModel(config).eval().save_pretrained(path)
    return path


def test_inception_is_torch_fidelitys_own(inception_file):
    """The same numbers as the library that papers state, from images of another size than the network's."""
    ours = load_inception(str(inception_file))
    reference = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(inception_file))
    expected = reference(noise(4, 40))[0].numpy()
    assert expected.std() > 0
    assert ours.features(noise(4, 40)) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert (ours.dim, ours.input_px) == (2048, 299)


def test_inception_is_found_where_torch_hub_keeps_it(inception_file, tmp_path, monkeypatch):
    """Users of torch-fidelity need no path; for others the message names file and place, and nothing is downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = URL_INCEPTION_V3.rsplit("/", 1)[1]
    with pytest.raises(MissingError, match=rf"validate.extractor_weights: .*{name} \(or that file at .*{tmp_path}"):
        load_inception(None)
    assert not list(tmp_path.rglob("*.pth"))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    (tmp_path / "hub/checkpoints" / name).symlink_to(inception_file)
    assert load_inception(None).digest == load_inception(str(inception_file)).digest


def test_no_file_is_run_as_a_program(tmp_path):
    """A pickle may run anything; weights are tensors."""

    class Runs:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"weight": Runs()}))
    torch.save({"weight": Runs()}, tmp_path / "evil2.pth")
    for name in ("evil.pth", "evil2.pth"):
        for load in (load_inception, load_dinov2):
            with pytest.raises(DataError, match="does not hold weights alone"):
                load(str(tmp_path / name))
    assert not (tmp_path / "ran").exists()


def test_dinov2_sees_what_pillow_resizes(vit_file):
    """Bicubic and antialiased to 224, ImageNet's mean and deviation, the class token after the last norm."""
    ours, images = load_dinov2(str(vit_file), TINY_VIT), noise(3, 300)
    squares = [Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC) for image in images]
    pixels = torch.from_numpy(np.stack([np.asarray(square) for square in squares])).permute(0, 3, 1, 2).float() / 255
    assert (to_input(images, 224, "bicubic") - pixels).abs().max() <= 1.01 / 255
    pixels = (pixels - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    network = timm.create_model(TINY_VIT.model, pretrained=False, num_classes=0, img_size=224, **TINY_VIT.arguments).eval()
    from safetensors.torch import load_file

    state = {name: tensor for name, tensor in load_file(vit_file).items() if name != "mask_token"}
    network.load_state_dict(state | {"pos_embed": resample_positions(state["pos_embed"], (16, 16))})
    with torch.inference_mode():
        expected = network.forward_features(pixels)[:, 0].numpy()
    assert ours.features(images) == pytest.approx(expected, abs=0.02)
    assert np.abs(expected[0] - expected[1]).max() > 0.05
    assert ours.dim == 32


def test_positions_are_resampled_as_the_authors_do():
    """By the scale (16 + 0.1) / 37, which moves a ramp by a known amount; the class token stays."""
    ramp = torch.arange(37.0).repeat(37, 1).reshape(1, -1, 1)
    found = resample_positions(torch.cat([torch.full((1, 1, 1), 7.0), ramp], dim=1), (16, 16))
    expected = (np.arange(16) + 0.5) * 37 / 16.1 - 0.5
    assert found[0, 0, 0] == 7.0
    assert found[0, 1:, 0].reshape(16, 16)[5, 2:14].numpy() == pytest.approx(expected[2:14], abs=0.08)  # 0.19 apart, without the offset
    with pytest.raises(DataError, match="pos_embed"):
        resample_positions(torch.zeros(1, 11, 4), (16, 16))


def test_clip_gives_the_projected_embedding(clip_folder):
    """What transformers' own preprocessing and model give for the same pictures."""
    from transformers import CLIPImageProcessorPil, CLIPModel

    ours, images = load_clip(str(clip_folder), TINY_CLIP), noise(3, 64)
    seen = CLIPImageProcessorPil()([Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images], return_tensors="pt")
    network = CLIPModel.from_pretrained(str(clip_folder), local_files_only=True).eval()
    with torch.inference_mode():
        expected = network.get_image_features(**seen).pooler_output.numpy()
    assert ours.features(images) == pytest.approx(expected, abs=float(2e-3 + 0.01 * np.abs(expected).max()))
    assert np.abs(expected[0] - expected[1]).max() > 0.05 * np.abs(expected).max()
    assert ours.features(images).shape == (3, 12)


def with_tokenizer(clip_folder: Path, folder: Path) -> Path:
    """The same network with a tokenizer that spells."""
    shutil.copytree(clip_folder, folder)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    return folder


def test_clip_embeds_texts_where_it_has_a_tokenizer(clip_folder, tmp_path):
    """As transformers' own tokenizer and model do; each text alone, so that none depends on its neighbours."""
    from transformers import AutoTokenizer, CLIPModel

    assert load_clip(str(clip_folder), TINY_CLIP).text is None
    path, texts = with_tokenizer(clip_folder, tmp_path / "clip"), ["bad face", "a cab", "e" * 200]
    ours = load_clip(str(path), TINY_CLIP).text
    network = CLIPModel.from_pretrained(str(path), local_files_only=True).eval()
    tokens = AutoTokenizer.from_pretrained(str(path))(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.inference_mode():
        expected = network.get_text_features(**tokens).pooler_output.numpy()
    found = ours.embed(texts)
    assert found.dtype == np.float32
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert (ours.embed(texts[1:]) == found[1:]).all()


def test_texts_have_a_digest_of_their_own(clip_folder, tmp_path):
    """Another tokenizer or another text tower leaves the features as they are, and still has another digest."""
    path = with_tokenizer(clip_folder, tmp_path / "clip")
    first = load_clip(str(path), TINY_CLIP)
    (path / "merges.txt").write_text("#version: 0.2\na b\n")
    (path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate([*TOKENS, "ab"])}))
    second = load_clip(str(path), TINY_CLIP)
    state = load_file(path / "model.safetensors")
    save_file(
        state | {"text_projection.weight": state["text_projection.weight"] + 1}, path / "model.safetensors", metadata={"format": "pt"}
    )
    third = load_clip(str(path), TINY_CLIP)
    assert first.digest == second.digest == third.digest
    assert len({each.text.digest for each in (first, second, third)}) == 3


def test_a_tokenizer_that_cannot_be_read_is_refused(clip_folder, tmp_path):
    """Rather than a metric that silently goes missing."""
    path = with_tokenizer(clip_folder, tmp_path / "clip")
    (path / "vocab.json").write_text("{")
    with pytest.raises(DataError, match="holds a tokenizer that cannot be read"):
        load_clip(str(path), TINY_CLIP)


def test_the_name_of_an_architecture_is_true(clip_folder, vit_file, inception_file):
    """Numbers called ViT-L/14 are never of another network, and no part of one stays random."""
    with pytest.raises(DataError, match="is not clip-vit-l-14: it has width 16, 2 layers"):
        load_clip(str(clip_folder))
    with pytest.raises(DataError, match="is not of this network: it lacks"):
        load_inception(str(vit_file))
    with pytest.raises(DataError, match="is not of this network: it lacks"):
        load_dinov2(str(inception_file), TINY_VIT)


def test_parts_of_a_clip_are_refused(clip_folder, tmp_path):
    """transformers fills what a file lacks with random numbers and goes on."""
    from safetensors.torch import load_file

    (tmp_path / "config.json").write_bytes((clip_folder / "config.json").read_bytes())
    state = load_file(clip_folder / "model.safetensors")
    state.pop("visual_projection.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"lacks visual_projection\.weight"):
        load_clip(str(tmp_path), TINY_CLIP)


@pytest.mark.parametrize("name", ["dinov2-vit-l-14", "clip-vit-l-14"])
def test_missing_weights_name_the_field_and_the_file(name, tmp_path):
    """Nothing is downloaded: the message names the file to fetch and the field for its path."""
    with pytest.raises(MissingError, match=rf"validate.extractor_weights: extractor {name} needs .*nothing is downloaded"):
        get_extractor(name)
    with pytest.raises(MissingError, match=rf"gone does not exist; extractor {name}"):
        get_extractor(name, str(tmp_path / "gone"))


def test_digest_is_of_the_weights_and_not_of_the_file(vit_file, tmp_path):
    """Another place or format gives the same identity; one other weight another."""
    from safetensors.torch import load_file

    state = load_file(vit_file)
    torch.save(state, tmp_path / "same.pth")
    torch.save(state | {"norm.bias": state["norm.bias"] + 1e-3}, tmp_path / "other.pth")
    first, same, other = (load_dinov2(str(path), TINY_VIT).digest for path in (vit_file, tmp_path / "same.pth", tmp_path / "other.pth"))
    assert first == same != other


def test_features_do_not_depend_on_how_images_come(vit_file):
    """A new batch begins after every 25 images: the first 50 of 60 are what 50 alone give."""
    ours, images = load_dinov2(str(vit_file), TINY_VIT), noise(60)
    assert (ours.features(images)[:50] == ours.features(images[:50])).all()


OWN = """
import torch
from gda.fidelity.extractors import Extractor

def means(weights):
    shift = float(open(weights).read()) if weights else 0.0
    digest = ("a" if weights else "b") * 64
    return Extractor(name="means", digest=digest, dim=3, input_px=8, forward=lambda x: x.mean((2, 3)) + shift)

def claims(weights):
    return Extractor(name="glyph", digest="a" * 64, dim=3, input_px=8, forward=lambda x: x.mean((2, 3)))

def undigested(weights):
    return Extractor(name="x", digest="", dim=3, input_px=8, forward=lambda x: x.mean((2, 3)))

def uneven(weights):
    return Extractor(name="x", digest="a" * 64, dim=3, input_px=8, forward=lambda x: x.mean((2, 3)), batch=7)

def lies(weights):
    return Extractor(name="x", digest="a" * 64, dim=4, input_px=8, forward=lambda x: x.mean((2, 3)))

def nothing(weights):
    return 5

def fails(weights):
    raise RuntimeError("no luck")

attribute = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module with extractors, sound and not."""
    (tmp_path / "own_extractors.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_extractors"
    sys.modules.pop("own_extractors", None)


def test_a_users_own_extractor(own, tmp_path):
    """Named by its function, with weights from the configuration; kept features name it by name and digest, not by path."""
    (tmp_path / "shift").write_text("2.0")
    config = load_config(None, (f"validate.extractor={own}:means", f"validate.extractor_weights={tmp_path / 'shift'}"))
    found = configured_extractor(config)
    assert found.features(noise(2, 8)) == pytest.approx(noise(2, 8).float().mean((2, 3)).numpy() / 255 + 2, abs=1e-5)
    index = FeaturesIndex(kept="rows", extractor=found.name, extractor_digest=found.digest, image_size=28)
    given = {"source": f"{own}:means", "weights": str(tmp_path / "shift")}
    assert FeatureObserver(index=index, **given).begin(tmp_path / "x.tar").extractor.digest == found.digest
    with pytest.raises(DataError, match="not what this set was begun with"):
        FeatureObserver(index=index, **(given | {"weights": None})).begin(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module:f", "cannot import 'no_such_module'"),
        ("own_extractors:gone", "has no function 'gone'"),
        ("own_extractors:attribute", "has no function 'attribute'"),
        ("own_extractors:nothing", "returned int; expected a gda.fidelity.extractors.Extractor"),
        ("own_extractors:fails", "RuntimeError: no luck"),
        ("own_extractors:claims", "name 'glyph'"),
        ("own_extractors:undigested", "digest ''; expected 64"),
        ("own_extractors:uneven", "batch 7; expected a divisor of 250"),
        (":f", "cannot import ''"),
    ],
)
def test_unsound_extractors_of_a_user_are_refused(own, name, reason):
    """One line that names the field and what is wrong, before anything is measured."""
    with pytest.raises(ConfigError, match=f"validate.extractor: .*{reason}"):
        get_extractor(name)


def test_rows_of_another_width_than_promised_are_refused(own):
    """A network that gives other rows than it says would break far from its cause."""
    with pytest.raises(DataError, match=r"x gives \(2, 3\) for 2 images; expected rows of 4"):
        get_extractor(f"{own}:lies").features(noise(2))


def test_images_are_compared_at_the_larger_or_the_configured_size():
    """Images lose nothing that network or classifiers see, unless their own side is configured."""
    glyph = get_extractor("glyph")
    sizes = {
        keys: comparison_size(load_config(None, keys), glyph) for keys in ((), ("classify.image_size=64",), ("validate.image_size=40",))
    }
    assert list(sizes.values()) == [28, 64, 40]
    with pytest.raises(ConfigError, match=r"validate.image_size: 16 is less than classify.image_size, 28"):
        comparison_size(load_config(None, ("validate.image_size=16",)), glyph)
    with pytest.raises(ConfigError, match="glyph comes with its weights"):
        get_extractor("glyph", "some.file")


def test_torch_fidelity_measures_the_same_fid_with_our_network(tmp_path):
    """Registered there, the shipped network gives the FID that we state, from folders of images."""
    ramp = torch.linspace(0.2, 1, 28)
    sets = {"one": noise(150, seed=1), "two": (noise(120, seed=2).float() * ramp).to(torch.uint8)}
    for name, images in sets.items():
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{i:04d}.png")
    glyph = get_extractor("glyph")
    name = register_extractor(glyph)
    assert register_extractor(glyph) == name
    reference = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "one"),
        input2=str(tmp_path / "two"),
        feature_extractor=name,
        fid=True,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
    )["frechet_inception_distance"]
    ours = fid(*(glyph.features(images) for images in sets.values()))
    assert ours > 0.01
    assert math.isclose(ours, reference, rel_tol=1e-5)


def test_recipes_name_what_is_in_the_file_and_not_where_it_lies(own, tmp_path):
    """Moved weights cause no new measurement; other weights, and another size, do."""
    real = SimpleNamespace(digest="0" * 64)

    def fingerprint(*given):
        return reference_fingerprint(load_config(None, (f"validate.extractor={own}:means", *given)), real)

    for name in ("here", "there"):
        (tmp_path / name).write_text("2.0")
    here, there = (fingerprint(f"validate.extractor_weights={tmp_path / name}") for name in ("here", "there"))
    assert here.digest == there.digest != fingerprint().digest
    assert str(tmp_path) not in str(here)
    assert fingerprint("validate.image_size=40").difference(fingerprint()) == ["config.compared_at: 40 -> 28"]
