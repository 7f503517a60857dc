"""Random numbers for training: each image of each step has its own stream, independent of batch, part and process."""

import hashlib
from collections.abc import Sequence

import torch


class RandomStreams:
    """The streams of n images, in order; every call advances each stream. Numbers are generated on the CPU, so that devices agree."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
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


def stream_seed(*name: object) -> int:
    """The seed of the stream called `name`, in [0, 2^56): different names, independent streams."""
    digest = hashlib.sha256("/".join(str(part) for part in name).encode()).digest()
    return int.from_bytes(digest[:7], "big")
