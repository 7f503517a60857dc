"""Random streams of torch, see `gda.runtime.rng`. Numbers are generated on the CPU, so that devices agree."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from gda.runtime.rng import Name, stream_seed


def torch_stream(*name: Name) -> torch.Generator:
    """A CPU generator at the start of the stream `name`."""
    return torch.Generator().manual_seed(stream_seed(*name))


def generators_of(seeds: Sequence[int]) -> list[torch.Generator]:
    """One CPU generator per image, so that its numbers depend neither on its batch nor on the device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


class RandomStreams:
    """The streams of n images, in order, independent of batch and process; every call advances each stream."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self._generators = generators_of(seeds)
        self._device = device

    def __len__(self) -> int:
        return len(self._generators)

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal float32 [n, *shape]."""
        return torch.stack([torch.randn(shape, generator=g) for g in self._generators]).to(self._device)

    def uniform(self, *shape: int) -> torch.Tensor:
        """Uniform in [0, 1), float32 [n, *shape]."""
        return torch.stack([torch.rand(shape, generator=g) for g in self._generators]).to(self._device)

    def integers(self, high: int) -> torch.Tensor:
        """Uniform in [0, high), int64 [n]."""
        return torch.stack([torch.randint(high, (), generator=g) for g in self._generators]).to(self._device)


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
