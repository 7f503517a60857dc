"""The whole job at a tiny size, run once by `dvc repro` in a git repository of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "reference": {"folds": 2, "num_updates": 20},
    "finetune": {"num_train_steps": 4, "sr_num_train_steps": 2, "train_batch_size": 8},
    "tune": {"guidance_scales": [1.0, 2.0], "images_per_class": 5, "survivors": 1, "cas_images_per_class": 5, "cas_num_updates": 5, "cas_seeds": 1,
             "num_inference_steps": 2, "sr_num_inference_steps": 1},
    "sample": {"images_per_class": 10, "num_inference_steps": 2, "sr_num_inference_steps": 1, "shard_size": 50},
    # The gate is not what this run is about: four training steps make no sound set, and a refused one is tried by itself.
    "validate": {"fid_max_ratio": 1e6, "min_label_agreement": 0.0, "min_class_agreement": 0.0, "min_coverage_ratio": 0.0},
    "classify": {"num_updates": 15, "mixed_num_updates": 20, "seeds": [0, 1], "control_seeds": [0], "warmup_updates": 2},
    "evaluate": {"num_resamples": 200},
    "promote": {"min_seeds": 2},
}  # fmt: skip


class Job:
    """A checkout in which the job runs: `repro` returns the names of the stages that ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_WAIT_POLICY": "PASSIVE"}
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "GDA_WORK_DIR"):
            self.env.pop(name, None)

    def run(self, *command: str, code: int = 0) -> subprocess.CompletedProcess:
        result = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=900, check=False)
        assert result.returncode == code, f"{command}:\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
        return result

    def repro(self) -> list[str]:
        lines = self.run("dvc", "repro").stdout.splitlines()
        return [line.split("'")[1] for line in lines if line.startswith("Running stage")]

    def set(self, section: str, **values: object) -> None:
        yaml = YAML()
        params = yaml.load(self.folder / "params.yaml")
        params[section].update(values)
        yaml.dump(params, self.folder / "params.yaml")


@pytest.fixture(scope="session")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    job = Job(folder)
    for section, values in TINY.items():
        job.set(section, **values)
    job.run("git", "init", "-q")
    job.run("dvc", "init", "-q")
    job.run("dvc", "config", "core.analytics", "false")
    job.first = job.repro()
    return job
