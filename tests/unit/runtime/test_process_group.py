"""Several processes: the same loss curve and weights as one, whole copies or shares, and a run that changes their number midway."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_pipelines import build_tiny_pipeline

from gda.errors import ConfigError
from gda.runtime.process_group import ProcessGroup

WORLDS = Path(__file__).parents[2] / "worlds"
SHARED = {"batch_size": 8, "learning_rate": 3e-3, "checkpointing_steps": 3, "lr_scheduler": "constant"}


def _run(base, folder, *, processes, steps=6, work="work", **changes):
    """Losses by step and weights of a run by so many processes; `work` holds its checkpoints."""
    out = folder / f"out-{len(list(folder.glob('out-*')))}"
    requested = {"base": str(base), "work": str(folder / work), "out": str(out), "steps": steps, "changes": SHARED | changes}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(WORLDS), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    command = [sys.executable, *launcher, str(WORLDS / "process_worker.py"), json.dumps(requested)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.tensor(json.loads((out / "losses.json").read_text())), load_file(out / "weights.safetensors")


def _difference(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize(("kind", "parallelism", "changes"), [("sd1", "ddp", {}), ("sd3", "fsdp", {"weight_interpolation": 0.5})])
def test_two_processes_agree_with_one(tmp_path, kind, parallelism, changes):
    """At equal global batch two processes give the loss curve of one, and its weights, within what the order of sums changes."""
    base = build_tiny_pipeline(kind, tmp_path / "base")
    losses, weights = _run(base, tmp_path, processes=1, work="one", **changes)
    shared, shared_weights = _run(base, tmp_path, processes=2, work="two", parallelism=parallelism, **changes)
    other, other_weights = _run(base, tmp_path, processes=1, work="other", prompt_dropout=0.9, **changes)
    assert torch.allclose(losses, shared, atol=1e-5)
    assert not torch.allclose(losses, other, atol=1e-3)
    # Adam divides by the root of small second moments, which magnifies rounding: hence a bound relative to what another run differs by.
    assert _difference(weights, shared_weights) < 0.05 * _difference(weights, other_weights)


@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_a_run_may_change_its_number_of_processes(tmp_path, parallelism):
    """Stopped at a checkpoint of two processes and continued by one, the curve goes on as if nothing had happened, and back again."""
    base = build_tiny_pipeline("sd1", tmp_path / "base")
    losses, _ = _run(base, tmp_path, processes=1, work="one")
    first, _ = _run(base, tmp_path, processes=2, steps=2, parallelism=parallelism)
    second, _ = _run(base, tmp_path, processes=1, steps=4)
    third, _ = _run(base, tmp_path, processes=2, steps=6, parallelism=parallelism)
    assert torch.equal(second[:2], first)
    assert torch.equal(third[:4], second)
    assert torch.allclose(third, losses, atol=1e-5)


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    """Images of a step must divide by processes and accumulation parts, or processes would weigh images differently."""
    world = ProcessGroup(rank=1, size=2, device=torch.device("cpu"))
    assert world.split(8, 2) == [slice(4, 6), slice(6, 8)]
    with pytest.raises(ConfigError, match=r"batch_size: must be a multiple of .* = 2 x 3, got 8"):
        world.split(8, 3)
