"""classify and ratio with settings and labels of synthetic images alone: what they train, and which finished work they leave alone."""

import json
from pathlib import Path

import pytest
import timm
import torch
from classify_world import verdict_on, write_set
from safetensors.torch import load_file

from gda.artifacts.cards import ClassifierCard
from gda.artifacts.document import read_document
from gda.artifacts.fingerprint import Fingerprint
from gda.artifacts.outcome import Outcome
from gda.config.load import Config
from gda.config.sections import Arm, ClassifyConfig
from gda.data.store.in_memory import load_images
from gda.data.store.snapshot import Snapshot
from gda.errors import UsageError
from gda.io.up_to_date import prepare
from gda.stages import classify
from gda.stages.ratio import _sets, _training
from gda.stages.reference import reference_fingerprint
from gda.training.arms.arm_data import load_data
from gda.training.arms.arm_request import make_arm_request
from gda.training.loop.classifier import predict_logits
from gda.tuning.sweep import cas_recipe

APART = {"synthetic_weight": 0.5, "auxiliary_batch_norm": True}


@pytest.fixture(autouse=True)
def own_work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in its own folder."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))


@pytest.fixture
def real(tmp_path: Path) -> Path:
    return write_set(tmp_path / "real", "real", {"train": 8, "val": 8, "test": 2})


def config(**changes: object) -> Config:
    given = {
        "model": "test_resnet", "model_args_json": '{"channels": [8, 8, 8, 16], "stem_width": 4}', "image_size": 16, "num_train_steps": 60,
        "mixed_num_train_steps": 12, "batch_size": 12, "learning_rate": 5e-3, "warmup_steps": 2,
    }  # fmt: skip
    return Config(classify=ClassifyConfig(**given | changes))  # type: ignore[arg-type]


def trained(given: Config, arm: Arm, real: Path, synthetic: Path, out: Path) -> Outcome:
    verdict = verdict_on(real, synthetic, out.with_suffix(".json"))
    return classify.run(given, snapshot=real, arm=arm, seed=0, out=out, synthetic=synthetic, verdict=verdict)


def test_soft_labels_of_the_set_are_trained(real: Path, tmp_path: Path) -> None:
    """Images that are wholly of the class they were sampled from, and keep 0.2 of the label's: soft, all is learned; hard, nothing."""
    top1 = {}
    for strength in (0.2, 1.0):
        generated = write_set(
            tmp_path / f"sampled-{strength}", "synthetic", {"train": 10}, mislabelled=("train",), strength=strength, seed=1
        )
        load_data.cache_clear()  # pixels, and so the digest, are equal
        out = tmp_path / f"zero-{strength}"
        outcome = trained(config(), Arm.ZERO_SHOT, real, generated, out)
        top1[strength] = read_document(outcome.output / "classifier.json", ClassifierCard).val_top1
        inputs = json.loads((out / "fingerprint.json").read_text())["inputs"]
        assert ("soft_labels" in inputs) == (strength < 1)
    assert top1 == {0.2: 1.0, 1.0: 0.0}


def test_other_shares_of_equal_images_make_a_classifier_stale(real: Path, tmp_path: Path) -> None:
    """The set's digest is of pixels and first labels: a corrected strength must not pass for what was trained before."""
    for strength in (0.2, 0.4):
        write_set(tmp_path / f"sampled-{strength}", "synthetic", {"train": 10}, mislabelled=("train",), strength=strength, seed=1)
    trained(config(num_train_steps=2), Arm.ZERO_SHOT, real, tmp_path / "sampled-0.2", tmp_path / "out")
    assert trained(config(num_train_steps=2), Arm.ZERO_SHOT, real, tmp_path / "sampled-0.2", tmp_path / "out").reused
    with pytest.raises(UsageError, match=r"made with other settings \(inputs\.soft_labels"):
        trained(config(num_train_steps=2), Arm.ZERO_SHOT, real, tmp_path / "sampled-0.4", tmp_path / "out")


def test_only_the_mixed_arm_depends_on_what_distinguishes_origins(real: Path, tmp_path: Path) -> None:
    """A new weight must retrain real+synthetic, and no arm, reference or tuning score that has one origin."""
    generated = write_set(tmp_path / "sampled", "synthetic", {"train": 10}, seed=1)
    verdict = verdict_on(real, generated, tmp_path / "verdict.json")
    depends = {}
    for arm in (Arm.REAL, Arm.REAL_LONG, Arm.REAL_STRONG, Arm.SYNTHETIC, Arm.ZERO_SHOT, Arm.MIXED):
        found = {
            make_arm_request(config(**changes).classify, arm, real, generated, verdict).fingerprint(0).digest
            for changes in ({}, {"synthetic_weight": 0.5}, {"auxiliary_batch_norm": True})
        }
        depends[arm] = len(found)
    assert depends == dict.fromkeys(depends, 1) | {Arm.MIXED: 3}
    assert cas_recipe(config(**APART)) == cas_recipe(config())
    opened = Snapshot.open(real)
    assert reference_fingerprint(config(**APART), opened).digest == reference_fingerprint(config(), opened).digest


def test_the_mixed_arm_is_published_as_a_plain_model(real: Path, tmp_path: Path) -> None:
    """Through the whole stage the settings change the weights, and timm gives the published logits from the directory alone."""
    generated = write_set(tmp_path / "sampled", "synthetic", {"train": 10}, seed=1)
    found = {}
    for name, changes in {"plain": {}, "weight": {"synthetic_weight": 0.5}, "both": APART}.items():
        trained(config(**changes), Arm.MIXED, real, generated, tmp_path / name)
        found[name] = load_file(tmp_path / name / "model.safetensors")
    assert found["plain"].keys() == found["both"].keys()
    assert len({tensors["fc.weight"].numpy().tobytes() for tensors in found.values()}) == 3
    model = timm.create_model(f"local-dir:{tmp_path / 'both'}", pretrained=True)
    images = load_images(Snapshot.open(real), "val", size=16).images
    published = load_file(tmp_path / "both" / "val_predictions.safetensors")["logits"]
    assert torch.equal(predict_logits(model, images, image_size=16), published)


def test_the_ratio_search_has_soft_labels_in_its_own_order(real: Path, tmp_path: Path) -> None:
    """It reorders the set: shares must go with their images, and its kept answers must know of them."""
    generated = write_set(tmp_path / "sampled", "synthetic", {"train": 10}, mislabelled=("train",), strength=0.2, seed=1)
    hard = write_set(tmp_path / "hard", "synthetic", {"train": 10}, mislabelled=("train",), strength=1.0, seed=1)

    workspace = prepare(Fingerprint(stage="ratio", config={}), tmp_path / "out")
    sets, plain = (_sets(_training(config()), real, path, workspace, most=20) for path in (generated, hard))
    colour = {0: "red", 1: "green", 2: "blue"}
    shown = [colour[int(image.float().mean((1, 2)).argmax())] for image in sets.synthetic.images]
    assert sets.synthetic.second is not None
    assert [sets.synthetic.classes[int(label)] for label in sets.synthetic.second] == shown
    assert len(set(shown[:3])) == 3
    assert plain.synthetic.second is None
    assert set(sets.digests.items()) - set(plain.digests.items()) == {("soft_labels", sets.digests["soft_labels"])}
