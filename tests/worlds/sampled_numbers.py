"""A set sampled in milliseconds: images are random numbers of their seeds, everything around the sampling is the real code."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from gda.artifacts.outcome import Outcome
from gda.config.load import load_config
from gda.generator.sampling import sample_shards
from gda.stages import sample as sample_stage

SMALL = (
    "sample.images_per_class=8",
    "sample.batch_size=2",
    "sample.shard_size=4",
    "sample.guidance_scale=1.5",
    "sample.num_inference_steps=2",
    "sample.sr_num_inference_steps=1",
)
NUM_SHARDS = 4


class NumbersSampler:
    """In place of a generator's sampler; every batch it samples is a line of `log`. `before` is called with the seeds of each batch."""

    def __init__(self, log: Path, before: Callable[[Sequence[int]], Any] = lambda seeds: None) -> None:
        self.log, self.before = log, before
        self.model = SimpleNamespace(image_size=16)

    def sample(self, prompts: Sequence[str], seeds: Sequence[int], settings: Any, start: Any = None) -> torch.Tensor:
        """uint8 NCHW, 16 by 16 pixels."""
        self.before(seeds)
        line = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(line, f"{' '.join(map(str, seeds))}\n".encode())
        os.close(line)
        images = [np.random.default_rng(seed).integers(0, 256, (3, 16, 16), dtype=np.uint8) for seed in seeds]
        return torch.from_numpy(np.stack(images))


def sample_numbers(monkeypatch: Any, log: Path, before: Callable[[Sequence[int]], Any] = lambda seeds: None) -> None:
    """From now on every set is sampled by `NumbersSampler`."""
    sampler = NumbersSampler(log, before)
    monkeypatch.setattr(sample_shards, "_sampler_of", lambda _: sampler)


def in_this_process(monkeypatch: Any) -> None:
    """Sample without worker processes."""
    monkeypatch.setattr(sample_stage, "run_parallel", lambda function, items, **_: [function(item) for item in items])


def sample_set(world: Path, out: Path, *changes: str, **options: Any) -> Outcome:
    """The stage, for the real snapshot and the generator of `world`."""
    config = load_config(None, (*SMALL, *changes))
    return sample_stage.run(config, generator=str(world / "generator"), snapshot=world / "real", out=out, **options)


def sampled_batches(log: Path) -> list[str]:
    """A line of seeds for each batch that was sampled, in the order of sampling; the log is emptied."""
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines
