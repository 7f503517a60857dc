"""A checkout in which the whole job runs by `dvc repro`."""

import os
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
# Every kind of data and each built-in training; the demo compares fewer.
COMPARED = (
    *("real", "real_long", "real_strong", "retrieved", "zero_shot", "real+zero_shot", "img2img", "synthetic", "real+synthetic"),
    *("real+synthetic_strong", "targeted", "last_layer"),
)


class Job:
    """`repro` returns the names of the stages that ran; `set` edits one section of params.yaml."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first: list[str] = []
        self.env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_WAIT_POLICY": "PASSIVE"}
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "GDA_WORK_DIR"):
            self.env.pop(name, None)

    def init(self) -> None:
        self.run("git", "init", "-q")
        self.run("dvc", "init", "-q")
        self.run("dvc", "config", "core.analytics", "false")

    def run(self, *command: str, code: int = 0) -> subprocess.CompletedProcess:
        result = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=1500, check=False)
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
