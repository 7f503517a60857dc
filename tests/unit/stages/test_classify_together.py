"""classify under torchrun: several processes, one classifier, one line, and nothing written but by the first."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from classify_world import verdict_on, write_set
from safetensors.torch import load_file

from gda.config.load import Config
from gda.config.sections import Arm, ClassifyConfig
from gda.io.up_to_date import read_fingerprint
from gda.stages import classify

WATCHED = Path(__file__).parents[2] / "worlds" / "watched_command.py"
# A checkpoint after 100 updates; no batch norm, and plain gradients, which rounding does not grow in.
SETTINGS: dict[str, Any] = {
    "model": "test_vit",
    "model_args_json": '{"patch_size": 8}',
    "image_size": 16,
    "mixed_num_train_steps": 105,
    "last_layer_num_train_steps": 5,
    "batch_size": 12,
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "warmup_steps": 2,
}


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.chdir(tmp_path)
    real = write_set(tmp_path / "real", "real", {"train": 8, "val": 8})
    synthetic = write_set(tmp_path / "synthetic", "synthetic", {"train": 10}, seed=1)
    return {"snapshot": real, "synthetic": synthetic, "verdict": verdict_on(real, synthetic, tmp_path / "verdict.json")}


def launched(folder: Path, *command: str) -> list[str]:
    """The lines that two processes print on stdout; both must succeed, and the second may change nothing in `folder`."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(WATCHED), str(folder)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(WATCHED.parent), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
    }
    done = subprocess.run([*launcher, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return [line for line in done.stdout.splitlines() if line.strip()]


def test_two_processes_publish_the_classifier_of_one(given: dict[str, Path], tmp_path: Path) -> None:
    """Both parts of a last-layer arm: one line, the seed requested alone, and what one process publishes but for rounding."""
    (tmp_path / "params.yaml").write_text(json.dumps({"classify": SETTINGS}))
    paths = [word for name, path in given.items() for word in (f"--{name}", str(path))]
    command = ["classify", "--arm", "last_layer", "--seed", "0", "--out", "together", "--json", "--all-seeds", *paths]
    (line,) = launched(tmp_path, *command)
    alone = classify.run(Config(classify=ClassifyConfig(**SETTINGS)), arm=Arm.LAST_LAYER, seed=0, out=tmp_path / "alone", **given)
    message = json.loads(line)
    assert message["metrics"]["loss"] == pytest.approx(alone.metrics["loss"], abs=1e-4)
    assert message["output"] == "together"
    assert read_fingerprint(tmp_path / "together") == read_fingerprint(tmp_path / "alone")
    for name in ("model.safetensors", "val_predictions.safetensors"):
        found, expected = load_file(tmp_path / "together" / name), load_file(tmp_path / "alone" / name)
        assert found.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-4)
    assert {path.name for path in (tmp_path / "together").iterdir()} == {path.name for path in (tmp_path / "alone").iterdir()}
    assert list((tmp_path / ".gda" / "work").iterdir()) == []
    (again,) = launched(tmp_path, *command)
    assert json.loads(again)["reused"]


def test_an_arm_that_is_not_compared_is_skipped_by_the_first(
    given: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its card is written by one process: the others leave it to that one."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = Config(classify=ClassifyConfig(arms=(Arm.REAL, Arm.MIXED)))
    for rank, written in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        classify.run(config, arm=Arm.SYNTHETIC, seed=0, out=tmp_path / "m-0", if_compared=True, **given)
        assert (tmp_path / "m-0").exists() is written
