"""`dvc repro` sees what changed outside the job: images of the source, weights of a local base."""

import json
import shutil

import numpy as np
import pytest
from flow_job import ROOT, Job
from PIL import Image

from gda.artifacts.document import read_document
from gda.data.store.snapshot import SnapshotIndex


@pytest.fixture
def job(tmp_path):
    """A job on a folder of images and a local copy of the demo base."""
    folder = tmp_path / "job"
    folder.mkdir()
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    job = Job(folder)
    shutil.copytree(ROOT / "gda/assets/demo_base", folder / "base")
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        for label in ("cat", "dog"):
            for i in range(count):
                _picture(folder / "photos" / split / label / f"{i}.png")
    job.set("snapshot", source="photos", pool=None)
    job.set("finetune", base="base")
    job.init()
    return job


def _picture(path):
    """Images of random pixels: no two files are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = np.frombuffer("/".join(path.parts[-3:]).encode(), np.uint8)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(path)


def test_new_images_freeze_the_source_again(job):
    """A new image runs `snapshot` once more; nothing new runs nothing but the look at the inputs."""

    def ran():
        lines = job.run("dvc", "repro", "snapshot").stdout.splitlines()
        return [line.split("'")[1] for line in lines if line.startswith("Running stage")]

    assert ran() == ["inputs", "snapshot"]
    assert ran() == ["inputs"]
    _picture(job.folder / "photos/train/cat/new.png")
    assert ran() == ["inputs", "snapshot"]
    assert read_document(job.folder / "data/real/snapshot.json", SnapshotIndex).counts["train"]["cat"] == 7


def test_other_weights_in_a_local_base_make_fine_tuning_stale(job):
    """DVC holds `finetune` to be changed by what is in the base's folder, and by nothing else of the inputs."""

    def stale():
        job.run("dvc", "repro", "snapshot")
        entries = json.loads(job.run("dvc", "status", "--json", "finetune").stdout).get("finetune", [])
        return [path for entry in entries for path in entry.get("changed deps", {})]

    job.run("dvc", "repro", "snapshot")
    (job.folder / "models/generator").mkdir(parents=True)
    (job.folder / "models/generator/model_index.json").write_text("{}")
    job.run("dvc", "commit", "--force", "finetune")
    assert stale() == []
    weights = job.folder / "base/base/unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert stale() == ["data/inputs/base.json"]


def test_a_source_that_is_gone_costs_nothing(job):
    """The job stops at its inputs with a message, and the snapshot of the earlier source is still there."""
    job.run("dvc", "repro", "snapshot")
    (job.folder / "photos").rename(job.folder / "moved")
    result = job.run("dvc", "repro", "snapshot", code=255)
    assert "snapshot.source: photos: no such file, folder or pattern of files" in result.stdout + result.stderr
    assert (job.folder / "data/real/snapshot.json").is_file()
