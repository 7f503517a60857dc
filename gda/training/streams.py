"""Named random streams: every random number comes from a generator whose seed is derived from a run's seed and the stream's name."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def training_seed(seed: int, name: str) -> int:
    """A 63-bit seed for the stream `name` of the run `seed`; different names give unrelated streams."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def stream(seed: int, name: str) -> torch.Generator:
    """A CPU generator at the start of the stream `name` of the run `seed`."""
    return torch.Generator().manual_seed(training_seed(seed, name))


@contextmanager
def seeded_globals(generator: torch.Generator) -> Iterator[None]:
    """Seed Python's, numpy's and torch's global generators from the next number of `generator`; restore them on exit.

    For code that only uses global generators: a resumed run then needs the state of `generator` alone.
    """
    seed = int(torch.randint(2**32, (), generator=generator))
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
