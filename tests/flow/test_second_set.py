"""A second real set, given as a plain folder of class folders: the same command, with no setting tuned to it."""

import shutil

import numpy as np
import pytest
from flow_job import ROOT, Job
from PIL import Image
from sklearn.datasets import load_digits

from gda.artifacts.document import read_document
from gda.artifacts.verdict import Verdict
from gda.config.load import load_config
from gda.data.store.in_memory import load_images
from gda.data.store.snapshot import Snapshot
from gda.runtime.parallel import run_parallel
from gda.training.loop.classifier import TrainingSource, TrainRecipe, predict_logits, train_classifier

# Smaller than params.yaml only in how long things run, so that the test suite ends in time.
pytestmark = pytest.mark.nightly
SHORT = {
    "finetune": {"num_train_steps": 300, "sr_num_train_steps": 200, "weight_interpolation": 1.0},
    "tune": {"guidance_scales": [1.5, 2.5], "images_per_class": 15, "survivors": 1, "cas_images_per_class": 15, "cas_seeds": 1},
    "sample": {"images_per_class": 50},
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The job up to validation on scikit-learn's 8 px digits, written to PNG; 27 or so training images per class."""
    folder = tmp_path_factory.mktemp("second")
    images, labels = load_digits(return_X_y=True)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / "images" / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.reshape(8, 8) * 255 / 16).round().astype(np.uint8)).save(path)
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    job = Job(folder)
    job.set("snapshot", source=str(folder / "images"), test_fraction=0.5, val_fraction=0.35, pool=None)
    for section, values in SHORT.items():
        job.set(section, **values)
    job.init()
    job.run("dvc", "repro", "validate", "sample_zero_shot")
    return job


def _score(task) -> float:
    """Top-1 on validation of a classifier trained on one synthetic set alone."""
    folder, name, seed = task
    config = load_config(folder / "params.yaml").classify
    sampled = load_images(Snapshot.open(folder / "data" / name), "train", size=config.image_size)
    val = load_images(Snapshot.open(folder / "data" / "real"), "val", size=config.image_size)
    recipe = TrainRecipe.from_config(config, num_train_steps=200)
    model, _ = train_classifier([TrainingSource(images=sampled.images, labels=sampled.labels)], recipe, num_classes=10, seed=seed)
    return float((predict_logits(model, val.images, image_size=config.image_size).argmax(1) == val.labels).float().mean())


def test_fine_tuning_beats_zero_shot_on_a_plain_folder(digits, capsys):
    """With no setting tuned to it, images of the fine-tuned model train a far better classifier than the base's, for any verdict."""
    scores = run_parallel(_score, [(digits.folder, name, seed) for name in ("synthetic", "zero_shot") for seed in (0, 1)])
    tuned, zero_shot = float(np.mean(scores[:2])), float(np.mean(scores[2:]))
    verdict = read_document(digits.folder / "reports/validation/verdict.json", Verdict)
    with capsys.disabled():
        print(f"\nsecond set: CAS on validation {tuned:.1%} fine-tuned, {zero_shot:.1%} zero-shot; validation passed: {verdict.passed}")
        print("\n".join(f"  - {reason}" for reason in verdict.reasons))
    assert tuned > zero_shot + 0.05
    assert verdict.metrics["failed_expectations"].value == 0
    assert verdict.metrics["exact_test"].value == 0
