"""A second real set, given as a plain folder of class folders: the same command, nothing tuned to it."""

import json
import shutil

import numpy as np
import pytest
from flow_job import ROOT, Job
from PIL import Image
from sklearn.datasets import load_digits

# Smaller than params.yaml only in how long things run, so that the test suite ends in time.
SHORT = {
    "finetune": {"num_train_steps": 300, "sr_num_train_steps": 200},
    "tune": {"guidance_scales": [1.5, 2.5], "images_per_class": 15, "survivors": 1, "cas_images_per_class": 15, "cas_seeds": 1},
    "sample": {"images_per_class": 50},
    "classify": {"mixed_num_updates": 450, "control_seeds": [0, 1]},
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """`dvc repro` on scikit-learn's 8 px digits, written to PNG; 27 or so training images a class."""
    folder = tmp_path_factory.mktemp("second")
    images, labels = load_digits(return_X_y=True)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / "images" / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image.reshape(8, 8) * 255 / 16).round().astype(np.uint8)).save(path)
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    job = Job(folder)
    job.set("snapshot", source=str(folder / "images"), test_fraction=0.5, val_fraction=0.35)
    for section, values in SHORT.items():
        job.set(section, **values)
    job.init()
    job.repro()
    return job


def test_fine_tuning_beats_zero_shot_on_a_plain_folder(digits, capsys):
    """With the same command and no tuning, synthetic images of the fine-tuned model train a better classifier than the base's do."""
    metrics = json.loads((digits.folder / "reports/evaluation/metrics.json").read_text())
    with capsys.disabled():
        print(digits.run("gda", "summary").stdout)
    assert metrics["num_test"] > 700
    assert metrics["cas"] is not None, json.loads((digits.folder / "reports/validation/verdict.json").read_text())["reasons"]
    assert metrics["cas"] > metrics["cas_zero_shot"] + 0.05
    assert metrics["gain"]["real+synthetic"]["seeds"] == 6
