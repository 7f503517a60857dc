"""Classifiers from pretrained weights: what is loaded, what stays frozen, how images are prepared, and what is refused."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from killing import in_child
from safetensors.torch import load_file, save_file
from torch import Tensor
from training_world import TINY, coloured, kill_at

from gda.artifacts.cards import ClassifierCard
from gda.config.sections import Arm, ClassifyConfig
from gda.errors import ConfigError, DataError, MissingError
from gda.training.loop.classifier import TrainRecipe, export_classifier, load_classifier, predict_logits, train_classifier
from gda.training.networks.export import model_digest
from gda.training.networks.models import build_model, in_head
from gda.training.networks.pretrained import Weights, find_weights

SMALL = {"channels": [8, 8, 8, 16], "stem_width": 4}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COMMIT = "0" * 39 + "1"


def weights_file(path: Path, model: str = "test_resnet", *, num_classes: int = 1000, **arguments: Any) -> Path:
    """Random weights of a timm model of `num_classes` classes, batch norm statistics included."""
    torch.manual_seed(11)
    network = timm.create_model(model, num_classes=num_classes, **(SMALL if model == "test_resnet" else {}), **arguments)
    tensors = {
        name: torch.rand_like(value) + 0.5 if value.is_floating_point() and value.ndim == 1 else value.clone()
        for name, value in network.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


def config(pretrained: Path | str, **changes: Any) -> ClassifyConfig:
    given = {"model": "test_resnet", "model_args_json": json.dumps(SMALL), "image_size": 16, "batch_size": 8, "warmup_steps": 1}
    return ClassifyConfig(pretrained=str(pretrained), **given | changes)  # type: ignore[arg-type]


def trained(section: ClassifyConfig, *, num_train_steps: int = 6, **rest: Any) -> torch.nn.Module:
    recipe = TrainRecipe.from_config(section, num_train_steps=num_train_steps)
    return train_classifier([coloured(30)], recipe, num_classes=3, seed=0, **rest)[0]


def described(folder: Path, **preparation: Any) -> Path:
    """A directory as timm writes it: weights next to their configuration."""
    weights_file(folder / "model.safetensors")
    prepared = {"mean": MEAN, "std": STD, "interpolation": "bilinear"} | preparation
    (folder / "config.json").write_text(json.dumps({"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": prepared}))
    return folder


def test_all_but_the_head_is_the_files(tmp_path: Path) -> None:
    """timm drops mismatched weights with a log line: every tensor but the head, statistics included, must be in the model."""
    path = weights_file(tmp_path / "w.safetensors")
    weights = find_weights(config(path))
    model = build_model("test_resnet", SMALL, num_classes=3, image_size=16, weights=weights)
    given = load_file(path)
    for name, value in model.state_dict().items():
        assert in_head(model, name) or torch.equal(value, given[name]), name
    assert model.fc.weight.shape == (3, 16)


def test_a_head_is_new_even_where_the_classes_are_as_many(tmp_path: Path) -> None:
    """Another data set of three classes has other classes: its head must not be reused."""
    path = weights_file(tmp_path / "w.safetensors", num_classes=3)
    model = build_model("test_resnet", SMALL, num_classes=3, image_size=16, weights=find_weights(config(path)))
    assert not torch.equal(model.fc.weight, load_file(path)["fc.weight"])


def test_a_linear_probe_moves_the_head_alone(tmp_path: Path) -> None:
    """A frozen backbone in train mode would still move its batch norm statistics; averaging must not move it either."""
    path = weights_file(tmp_path / "w.safetensors")
    model = trained(config(path, tune="linear", ema_decay=0.5))
    given = load_file(path)
    start = build_model("test_resnet", SMALL, num_classes=3, image_size=16, weights=find_weights(config(path)))
    moved = {name for name, value in model.state_dict().items() if in_head(start, name) or not torch.equal(value, given[name])}
    assert moved == {"fc.weight", "fc.bias"}
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.learning
def test_a_linear_probe_learns(tmp_path: Path) -> None:
    """On random features colours are distinguished well above chance, so the head is really trained, and on prepared images."""
    section = config(weights_file(tmp_path / "w.safetensors"), tune="linear", learning_rate=0.05)
    model, unseen = trained(section, num_train_steps=80), coloured(60, seed=2)
    assert (predict_logits(model, unseen.images, image_size=16).argmax(1) == unseen.labels).float().mean() > 0.8


def test_full_tuning_moves_the_backbone(tmp_path: Path) -> None:
    """`tune: full` trains everything, starting from the file."""
    path = weights_file(tmp_path / "w.safetensors")
    model, given = trained(config(path)), load_file(path)
    assert not torch.equal(model.conv1[0].weight, given["conv1.0.weight"])
    assert not torch.equal(model.layer1[0].bn1.running_mean, given["layer1.0.bn1.running_mean"])
    torch.testing.assert_close(model.conv1[0].weight.detach(), given["conv1.0.weight"], atol=0.1, rtol=0)


@pytest.mark.parametrize("tune", ["linear", "full"])
def test_a_killed_run_continues_to_the_same_bits(tmp_path: Path, tune: str) -> None:
    """A frozen backbone has no optimizer state, which must not shift the slots of the rest."""
    recipe = TrainRecipe.from_config(config(weights_file(tmp_path / "w.safetensors"), tune=tune, ema_decay=0.5), num_train_steps=12)

    def run(**rest: Any) -> torch.nn.Module:
        return train_classifier([coloured(30)], recipe, num_classes=3, seed=0, **rest)[0]

    kept = {"checkpoint": tmp_path / "c", "checkpoint_every": 3}
    assert in_child(lambda: run(**kept, progress=kill_at)) == -signal.SIGKILL
    assert model_digest(run(**kept)) == model_digest(run())


def test_position_embeddings_are_resampled_to_the_images(tmp_path: Path) -> None:
    """A 32-pixel transformer is trained at 16 pixels: 4 x 4 positions become 2 x 2, and the rest comes from the file."""
    path = weights_file(tmp_path / "w.safetensors", "test_vit", img_size=32, patch_size=8)
    section = config(path, model="test_vit", model_args_json='{"patch_size": 8}')
    model = build_model("test_vit", {"patch_size": 8}, num_classes=3, image_size=16, weights=find_weights(section))
    given, found = load_file(path), model.state_dict()
    assert given["pos_embed"].shape[1] - found["pos_embed"].shape[1] == 16 - 4
    assert torch.equal(found["blocks.0.attn.qkv.weight"], given["blocks.0.attn.qkv.weight"])
    assert torch.isfinite(predict_logits(trained(section, num_train_steps=2), coloured(6).images, image_size=16)).all()


def normalised(images: Tensor) -> Tensor:
    return (images / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def test_images_are_prepared_as_the_weights_expect(tmp_path: Path) -> None:
    """Training, prediction and export, and the models that timm and gda load back, must agree on mean and deviation."""
    section = config(described(tmp_path / "given"))
    model, images = trained(section), coloured(12, seed=3).images
    expected = model(normalised(images)).detach()
    torch.testing.assert_close(predict_logits(model, images, image_size=16), expected, atol=1e-5, rtol=1e-4)
    card = ClassifierCard(
        arm=Arm.REAL, seed=0, model="test_resnet", image_size=16, classes=("r", "g", "b"), snapshot_digest="0" * 64, pretrained="1" * 64
    )
    export_classifier(model, tmp_path / "out", card)
    written = json.loads((tmp_path / "out" / "classifier.json").read_text())
    assert (tuple(written["mean"]), tuple(written["std"])) == (MEAN, STD)
    for loaded in (load_classifier(tmp_path / "out"), timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)):
        assert torch.equal(predict_logits(loaded, images, image_size=16), predict_logits(model, images, image_size=16))
    found = timm.data.resolve_data_config(model=timm.create_model(f"local-dir:{tmp_path / 'out'}"))
    assert (tuple(found["mean"]), tuple(found["std"]), found["interpolation"]) == (MEAN, STD, "bilinear")


def test_training_sees_prepared_images(tmp_path: Path) -> None:
    """The preparation affects the gradients: equal starting weights with another mean must train to different weights."""
    section = config(described(tmp_path / "a"))
    other = config(described(tmp_path / "b", mean=(0.1, 0.1, 0.1)))
    assert find_weights(section).digest == find_weights(other).digest  # type: ignore[union-attr]
    assert model_digest(trained(section)) != model_digest(trained(other))


def test_a_trained_classifier_can_be_continued(tmp_path: Path) -> None:
    """An exported classifier is a directory to start from, and keeps its preparation."""
    model = trained(config(described(tmp_path / "given")))
    card = ClassifierCard(arm=Arm.REAL, seed=0, model="test_resnet", image_size=16, classes=("r", "g", "b"), snapshot_digest="0" * 64)
    export_classifier(model, tmp_path / "out", card)
    weights = find_weights(config(tmp_path / "out"))
    assert weights is not None
    assert (weights.mean, weights.std) == (MEAN, STD)
    again = build_model("test_resnet", SMALL, num_classes=5, image_size=16, weights=weights)
    assert torch.equal(again.conv1[0].weight, model.conv1[0].weight)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    """A pickle runs code when read: it is refused as a file, alone in a directory, or under the safetensors name."""
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    for given in (tmp_path / "w.pth", tmp_path):
        with pytest.raises(DataError, match=r"w\.pth is a pickle, which is never opened; if you trust it, convert it once: python -c"):
            find_weights(config(given))
    (tmp_path / "w.pth").rename(tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"classify\.pretrained: .*does not fit test_resnet"):
        trained(config(tmp_path / "w.safetensors"))


def test_the_conversion_that_is_advised_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command in the message must produce an accepted file."""
    torch.save(load_file(weights_file(tmp_path / "x" / "w.safetensors")), tmp_path / "w.pth")
    with pytest.raises(DataError) as caught:
        find_weights(config(tmp_path / "w.pth"))
    monkeypatch.chdir(tmp_path)
    exec(str(caught.value).split('python -c "')[1].rstrip('"'), {})
    assert trained(config(tmp_path / "w.safetensors"), num_train_steps=1) is not None


def test_what_is_not_there_says_what_would_be(tmp_path: Path) -> None:
    """A misspelt path gives one line that lists what is accepted."""
    with pytest.raises(MissingError, match=r"nowhere is no safetensors file; give one, a directory with model\.safetensors, or timm"):
        find_weights(config(tmp_path / "nowhere"))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    """timm loads matching tensors and ignores the rest: a half-loaded network must not be trained silently."""
    path = weights_file(tmp_path / "w.safetensors")
    tensors = load_file(path)
    save_file({name: value for name, value in tensors.items() if not name.startswith("layer4")}, tmp_path / "half.safetensors")
    with pytest.raises(DataError, match=r"half\.safetensors is not of test_resnet .*it lacks layer4"):
        trained(config(tmp_path / "half.safetensors"))
    save_file({**tensors, "layer4.9.conv1.weight": torch.zeros(1)}, tmp_path / "deep.safetensors")
    with pytest.raises(DataError, match=r"deep\.safetensors .*has too much: layer4\.9"):
        trained(config(tmp_path / "deep.safetensors"))
    with pytest.raises(DataError, match=r"w\.safetensors does not fit test_resnet with .*size mismatch"):
        trained(config(path, model_args_json="{}"))
    with pytest.raises(ConfigError, match=r"holds a test_resnet, but classify\.model is test_vit"):
        find_weights(config(described(tmp_path / "d"), model="test_vit", model_args_json="{}"))


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ('{"mean": 3}', "mean of 3"), ('{"std": [0, 1, 1]}', "above 0")])
def test_a_damaged_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """A wrong preparation of images would only show as a poor classifier."""
    folder = described(tmp_path / "d")
    (folder / "config.json").write_text(text)
    with pytest.raises(DataError, match=message):
        find_weights(config(folder))


def test_timms_weights_come_from_the_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them, the message gives the command that fetches them and their location; with them, nothing is fetched."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    section = config("timm", model_args_json="{}", model="test_resnet.r160_in1k", image_size=32)
    with pytest.raises(MissingError, match=r"`hf download timm/test_resnet\.r160_in1k model\.safetensors`") as caught:
        find_weights(section)
    assert str(tmp_path / "hub") in str(caught.value)
    repository = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    torch.manual_seed(0)
    network = timm.create_model("test_resnet")
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    save_file(network.state_dict(), snapshot / "model.safetensors")
    weights = find_weights(section)
    assert isinstance(weights, Weights)
    assert (weights.mean, weights.interpolation) == ((0.5, 0.5, 0.5), "bilinear")
    model = build_model(section.model, {}, num_classes=3, image_size=32, weights=weights)
    assert torch.equal(model.conv1[0].weight, network.conv1[0].weight)
    with pytest.raises(ConfigError, match="timm names no weights for botnet50ts_256"):
        find_weights(config("timm", model="botnet50ts_256"))


def test_the_path_is_not_part_of_the_identity(tmp_path: Path) -> None:
    """Equal weights at another path are the same training; other weights are a different one."""
    path = weights_file(tmp_path / "w.safetensors")
    shutil.copy(path, tmp_path / "copy.safetensors")
    save_file(
        {name: value + 1 if name == "conv1.0.weight" else value for name, value in load_file(path).items()}, tmp_path / "o.safetensors"
    )
    first, copy, other = (
        TrainRecipe.from_config(config(tmp_path / f"{name}.safetensors"), num_train_steps=1).identity() for name in ("w", "copy", "o")
    )
    assert first == copy
    assert first != other
    assert str(tmp_path) not in str(first)
    assert replace(TINY, num_train_steps=1).identity()["weights"] is None
