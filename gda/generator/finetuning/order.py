"""The order of training images: a pure function of (labels, seed, position), the same for any batch size, process count or restart."""

from functools import lru_cache

import torch

from gda.runtime.torch_rng import torch_stream


class Order:
    """An endless sequence of image indices: a new permutation per epoch or, if balanced, every class once per round.

    `labels` int64 [n]. If balanced, a class shows each of its images once before it repeats any.
    """

    def __init__(self, labels: torch.Tensor, *, seed: int, balanced: bool = False) -> None:
        self._seed, self._count = seed, len(labels)
        self._by_class = [torch.nonzero(labels == label).flatten() for label in torch.unique(labels)] if balanced else []

    def indices(self, first: int, count: int) -> torch.Tensor:
        """int64 [count]: indices of the images at positions `first`, `first` + 1, ..."""
        positions = torch.arange(first, first + count)
        if self._by_class:
            return torch.tensor([self._balanced(int(p)) for p in positions], dtype=torch.int64)
        chosen = torch.empty(count, dtype=torch.int64)
        for epoch in torch.unique(positions // self._count).tolist():
            here = positions // self._count == epoch
            chosen[here] = _permutation(self._count, self._seed, "order", epoch)[positions[here] % self._count]
        return chosen

    def _balanced(self, position: int) -> int:
        visit, place = divmod(position, len(self._by_class))
        label = int(_permutation(len(self._by_class), self._seed, "classes", visit)[place])
        members = self._by_class[label]
        epoch, turn = divmod(visit, len(members))
        return int(members[_permutation(len(members), self._seed, f"class-{label}", epoch)[turn]])


@lru_cache(maxsize=4096)
def _permutation(count: int, seed: int, name: str, epoch: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch_stream("finetune", seed, name, epoch))
