"""classify with named recipes and pretrained weights: what is published, and what makes a finished classifier stale."""

import json
from pathlib import Path

import pytest
import timm
import torch
from classify_world import verdict_on, write_set
from safetensors.torch import load_file, save_file

from gda.artifacts.cards import ClassifierCard
from gda.artifacts.document import dump_document, read_document
from gda.artifacts.fingerprint import Fingerprint
from gda.config.load import Config, load_config
from gda.config.sections import Arm, ClassifyConfig
from gda.data.store.in_memory import load_images
from gda.data.store.snapshot import Snapshot
from gda.data.test_split.opening import open_test
from gda.errors import ConfigError, MissingError, UsageError
from gda.io.shards import sha256_of
from gda.io.up_to_date import prepare
from gda.stages import classify, evaluate, reference
from gda.stages.reference import reference_fingerprint
from gda.training.arms.arm_request import make_arm_request
from gda.training.loop.classifier import load_classifier, predict_logits

SMALL = '{"channels": [8, 8, 8, 16], "stem_width": 4}'


@pytest.fixture(autouse=True)
def own_work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in its own folder."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))


@pytest.fixture
def real(tmp_path: Path) -> Path:
    return write_set(tmp_path / "real", "real", {"train": 8, "val": 8, "test": 2})


def config(**changes: object) -> Config:
    given = {
        "model": "test_resnet", "model_args_json": SMALL, "image_size": 16, "num_train_steps": 4, "mixed_num_train_steps": 4,
        "batch_size": 12, "warmup_steps": 1,
    }  # fmt: skip
    return Config(classify=ClassifyConfig(**given | changes))  # type: ignore[arg-type]


def weights(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    save_file(timm.create_model("test_resnet", **json.loads(SMALL)).state_dict(), path)
    return path


def card_of(folder: Path) -> ClassifierCard:
    return read_document(folder / "classifier.json", ClassifierCard)


def test_other_weights_are_trained_again_and_the_same_elsewhere_are_not(real: Path, tmp_path: Path) -> None:
    """The digest of the weights decides, not their path: a changed file under one name must not be passed over."""
    path, out = weights(tmp_path / "w.safetensors"), tmp_path / "real-0"
    first = classify.run(config(pretrained=str(path)), snapshot=real, arm=Arm.REAL, seed=0, out=out)
    assert card_of(out).pretrained == sha256_of(path)
    path.rename(tmp_path / "moved.safetensors")
    assert classify.run(config(pretrained=str(tmp_path / "moved.safetensors")), snapshot=real, arm=Arm.REAL, seed=0, out=out).reused
    weights(path, seed=1)
    with pytest.raises(UsageError, match=r"made with other settings \(inputs\.pretrained"):
        classify.run(config(pretrained=str(path)), snapshot=real, arm=Arm.REAL, seed=0, out=out)
    assert classify.run(config(pretrained=str(path)), snapshot=real, arm=Arm.REAL, seed=0, out=tmp_path / "b").digest != first.digest
    with pytest.raises(MissingError, match="is no safetensors file"):
        classify.run(config(pretrained=str(tmp_path / "gone.safetensors")), snapshot=real, arm=Arm.REAL, seed=0, out=out)


def test_a_linear_probe_is_published_with_its_backbone(real: Path, tmp_path: Path) -> None:
    """The published file is the given one but for the head, and plain timm computes the published logits from it."""
    path, out = weights(tmp_path / "w.safetensors"), tmp_path / "real-0"
    classify.run(config(pretrained=str(path), tune="linear"), snapshot=real, arm=Arm.REAL, seed=0, out=out)
    given, found = load_file(path), load_file(out / "model.safetensors")
    assert {name for name in found if not torch.equal(found[name], given[name])} == {"fc.weight", "fc.bias"}
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    images = load_images(Snapshot.open(real), "val", size=16).images
    assert torch.equal(predict_logits(model, images, image_size=16), load_file(out / "val_predictions.safetensors")["logits"])


def test_a_named_recipe_trains(real: Path, tmp_path: Path) -> None:
    """A3 with a small network on small images, through the whole stage, on two sources; its name leaves no trace in the recipe."""
    settings = ("recipe=a3", "model=test_resnet", f"model_args_json='{SMALL}'", "image_size=16", "batch_size=16", "mixed_num_train_steps=6")
    given = load_config(None, tuple(f"classify.{setting}" for setting in settings))
    synthetic = write_set(tmp_path / "synthetic", "synthetic", {"train": 10}, seed=1)
    verdict = tmp_path / "verdict.json"
    verdict_on(real, synthetic, verdict)
    out = tmp_path / "mixed-0"
    outcome = classify.run(given, snapshot=real, arm=Arm.MIXED, seed=0, out=out, synthetic=synthetic, verdict=verdict)
    kept = json.loads((out / "fingerprint.json").read_text())["config"]
    assert (kept["optimizer"], kept["loss"], kept["rand_augment"]) == ("lamb", "bce", "rand-m6-mstd0.5-inc1")
    assert "recipe" not in kept
    assert outcome.curves["loss"][-1][0] == 6


def test_without_pretrained_weights_the_card_is_as_before(real: Path, tmp_path: Path) -> None:
    """Finished classifiers and their bytes stay what they are: the new entry is written only where it says something."""
    classify.run(config(), snapshot=real, arm=Arm.REAL, seed=0, out=tmp_path / "out")
    assert "pretrained" not in (tmp_path / "out" / "classifier.json").read_text()
    card = card_of(tmp_path / "out")
    assert dump_document(card) == (tmp_path / "out" / "classifier.json").read_bytes()
    assert b'"pretrained"' in dump_document(card.model_copy(update={"pretrained": "1" * 64}))


def test_the_reference_depends_on_the_weights_too(real: Path, tmp_path: Path) -> None:
    """Its classifiers start from the same weights, so another file must make it again."""
    snapshot = Snapshot.open(real)
    digests = {
        reference_fingerprint(config(pretrained=str(weights(tmp_path / f"{seed}.safetensors", seed))), snapshot).digest for seed in (0, 1)
    }
    assert len(digests | {reference_fingerprint(config(), snapshot).digest}) == 3
    path = tmp_path / "0.safetensors"
    reference.run(config(pretrained=str(path), tune="linear"), snapshot=real, out=tmp_path / "reference")
    folds = sorted((tmp_path / "reference").rglob("fold-*"))
    assert [card_of(fold).pretrained for fold in folds] == [sha256_of(path)] * 4
    given = load_file(path)
    for fold in folds:
        found = load_file(fold / "model.safetensors")
        assert {name for name in found if not torch.equal(found[name], given[name])} == {"fc.weight", "fc.bias"}


def prepared(folder: Path, **preparation: object) -> Path:
    folder.mkdir()
    weights(folder / "model.safetensors")
    content = {"architecture": "test_resnet", "pretrained_cfg": {"interpolation": "bilinear"} | preparation}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_images_are_resized_as_the_weights_expect(real: Path, tmp_path: Path) -> None:
    """Training, validation and the test of evaluate must bring images to size by one filter, that of the pretrained configuration."""
    out = tmp_path / "real-0"
    section = config(pretrained=str(prepared(tmp_path / "w")), image_size=12, batch_size=13)
    classify.run(section, snapshot=real, arm=Arm.REAL, seed=0, out=out)
    assert card_of(out).interpolation == "bilinear"
    assert json.loads((out / "config.json").read_text())["pretrained_cfg"]["interpolation"] == "bilinear"
    opened = Snapshot.open(real)
    bilinear, lanczos = (load_images(opened, "val", size=12, interpolation=name).images for name in ("bilinear", "lanczos"))
    assert not torch.equal(bilinear, lanczos)
    logits = predict_logits(load_classifier(out), bilinear, image_size=12)
    assert torch.equal(logits, load_file(out / "val_predictions.safetensors")["logits"])

    classifiers = {(Arm.REAL, 0): evaluate.Run(path=out, card=card_of(out))}
    workspace = prepare(Fingerprint(stage="evaluate", config={}, inputs={}), tmp_path / "evaluation")
    found, _, _ = evaluate._predict(workspace, classifiers, opened, progress=False)
    test = open_test(opened, "evaluate", size=12, interpolation="bilinear")
    expected = predict_logits(load_classifier(out), test.images, image_size=12).double().softmax(1).max(1).values
    assert torch.equal(torch.from_numpy(found.probabilities[Arm.REAL, 0][:, 0]), expected.float())


def test_images_are_classified_at_their_own_size(real: Path, tmp_path: Path) -> None:
    """Trained at 12 pixels and tested at 16: validation, card and timm's configuration must all say 16."""
    out = tmp_path / "real-0"
    classify.run(config(image_size=12, test_image_size=16), snapshot=real, arm=Arm.REAL, seed=0, out=out)
    assert card_of(out).image_size == 16
    assert json.loads((out / "config.json").read_text())["pretrained_cfg"]["input_size"] == [3, 16, 16]
    images = load_images(Snapshot.open(real), "val", size=16).images
    logits = predict_logits(load_classifier(out), images, image_size=16)
    assert torch.equal(logits, load_file(out / "val_predictions.safetensors")["logits"])
    classify.run(config(image_size=16), snapshot=real, arm=Arm.REAL, seed=0, out=tmp_path / "other")
    assert not torch.equal(logits, load_file(tmp_path / "other" / "val_predictions.safetensors")["logits"])
    fixed = config(model="test_vit", model_args_json='{"patch_size": 8, "dynamic_img_size": false}', test_image_size=24)
    with pytest.raises(ConfigError, match=r"test_vit .*does not work on images of 24 pixels .*classify\.test_image_size"):
        classify.run(fixed, snapshot=real, arm=Arm.REAL, seed=0, out=tmp_path / "fixed")


@pytest.mark.parametrize("changed", [{"mean": [0.1, 0.2, 0.3]}, {"interpolation": "bicubic"}])
def test_another_preparation_is_another_training(real: Path, tmp_path: Path, changed: dict[str, object]) -> None:
    """The same weights with images prepared otherwise are another classifier, which must not pass as up to date."""
    recipes = [
        make_arm_request(config(pretrained=str(folder)).classify, Arm.REAL, real, None, None).fingerprint(0).digest
        for folder in (prepared(tmp_path / "a"), prepared(tmp_path / "b", **changed))
    ]
    assert recipes[0] != recipes[1]
