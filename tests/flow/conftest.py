"""The whole job at a tiny size, run once by `dvc repro` in a git repository of its own."""

import shutil

import pytest
from flow_job import COMPARED, ROOT, Job

TINY: dict[str, dict] = {
    "snapshot": {"demo_train_per_class": 20},
    "reference": {"folds": 2, "num_train_steps": 20},
    "finetune": {"num_train_steps": 4, "sr_num_train_steps": 2, "batch_size": 8},
    "tune": {
        "guidance_scales": [1.0, 2.0],
        "images_per_class": 5,
        "survivors": 1,
        "cas_images_per_class": 5,
        "cas_num_train_steps": 5,
        "cas_seeds": 1,
        "num_inference_steps": [2],
        "sr_num_inference_steps": [1],
    },
    "sample": {"images_per_class": 10, "num_inference_steps": 2, "sr_num_inference_steps": 2, "shard_size": 50, "strengths": [0.5, 1.0]},
    # This run does not test the gate: four training steps give no sound set, and another test has a refused one.
    "validate": {
        "fid_max_ratio": 1e6,
        "min_label_agreement": 0.0,
        "min_class_agreement": 0.0,
        "min_coverage_ratio": 0.0,
        "min_class_coverage_ratio": 0.0,
        "min_class_recall_ratio": 0.0,
        "min_class_diversity": 0.0,
    },
    "classify": {
        "augment": "standard",
        "num_train_steps": 15,
        "mixed_num_train_steps": 20,
        "seeds": [0, 1],
        "control_seeds": [0],
        "warmup_steps": 2,
        "trainings": {},
        "arms": list(COMPARED),
    },
    "evaluate": {"num_resamples": 200},
    "promote": {"min_seeds": 2},
}


@pytest.fixture(scope="session")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    job = Job(folder)
    for section, values in TINY.items():
        job.set(section, **values)
    job.init()
    job.first = job.repro()
    return job
