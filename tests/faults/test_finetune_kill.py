"""Fine-tuning killed at any moment and started again ends in the weights of an uninterrupted run, bit for bit."""

import multiprocessing
import os
import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from sizes import nightly
from stage_jobs import stage_job
from tiny_pipelines import build_tiny_pipeline
from trees import tree

from gda.demo_base.build import build_tiny_cascade
from gda.generator.finetuning.train import finetune_stage
from gda.generator.weights.directory import SUPER_RESOLUTION

STEPS, KILLS = 30, nightly(usual=8, all=20)
FORK = multiprocessing.get_context("fork")  # torch is imported already, and no process here starts threads


def _train(job, out):
    torch.set_num_threads(1)
    result = finetune_stage(job)
    save_file({name: value.contiguous() for name, value in result.weights.items()}, out)
    (out.parent / "losses").write_text(repr(result.losses))


def _run(job, out, *, kill_after=None):
    """Train in a process of its own, killed after so many seconds; says whether it came to its end before."""
    process = FORK.Process(target=_train, args=(job, out))
    process.start()
    process.join(kill_after)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode == 0


def _job(base, work, **changes):
    images = (torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    # A checkpoint every other step: many of the kills fall into the writing of one.
    changes = {"checkpointing_steps": 2, "ema_snapshot_steps": 10, "cache": work / "cache"} | changes
    return stage_job(base, work, images, ("a", "b") * 3, steps=STEPS, **changes)


@pytest.mark.parametrize("kind", ["cascade", "sd3-lora"])
def test_killed_at_random_moments(tmp_path, kind):
    """Eight or twenty times killed and started again, every run that comes to its end has the weights and losses of the one left alone."""
    if kind == "cascade":
        base, changes = build_tiny_cascade(tmp_path / "base"), {"stage": SUPER_RESOLUTION}
    else:
        base, changes = build_tiny_pipeline("sd3", tmp_path / "base"), {"method": "lora", "lora_rank": 2}
    started = time.monotonic()
    (tmp_path / "whole").mkdir()
    assert _run(_job(base, tmp_path / "whole", **changes), tmp_path / "whole" / "weights")
    seconds = time.monotonic() - started
    expected, losses = load_file(tmp_path / "whole" / "weights"), (tmp_path / "whole" / "losses").read_text()
    moments, kills, rounds, mended = random.Random(0), 0, 0, 0
    while kills < KILLS or not mended:
        folder, before = tmp_path / f"round-{rounds}", kills
        folder.mkdir()
        job = _job(base, folder, **changes)
        while not _run(job, folder / "weights", kill_after=moments.uniform(0, seconds) if kills < KILLS else None):
            kills += 1
        found = load_file(folder / "weights")
        assert (folder / "losses").read_text() == losses
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        snapshots = tree(folder, "ema/*.safetensors")
        assert snapshots == tree(tmp_path / "whole", "ema/*.safetensors")
        assert snapshots
        rounds, mended = rounds + 1, mended + (kills > before)
