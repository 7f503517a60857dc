"""Batches of fixed composition: each source fills its share of every batch and is traversed by reshuffled epochs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gda.data.store.in_memory import ImageSet
from gda.errors import ConfigError, DataError
from gda.runtime.torch_rng import torch_stream


@dataclass(frozen=True, kw_only=True)
class TrainingSource:
    """Images of one origin: uint8 NCHW, their int64 labels, and their share of every batch (shares of all sources add up to 1).

    With soft labels, `second` int64 [n] is the second class of an image (-1 for none) and `first_share` float32 [n] in [0, 1] the weight
    of its label (1 without a second class). `synthetic_weight` and `auxiliary_batch_norm` of a recipe apply to `synthetic` images.
    Raises `DataError` for parts that do not belong together.
    """

    images: Tensor
    labels: Tensor
    share: float = 1.0
    second: Tensor | None = None
    first_share: Tensor | None = None
    synthetic: bool = False

    @classmethod
    def of(cls, images: ImageSet, *, share: float = 1.0, synthetic: bool = False) -> "TrainingSource":
        """A loaded split as a source, soft labels included."""
        return cls(
            images=images.images,
            labels=images.labels,
            share=share,
            second=images.second,
            first_share=images.first_share,
            synthetic=synthetic,
        )

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise DataError(f"training images: expected uint8 NCHW, got {self.images.dtype} of shape {tuple(self.images.shape)}")
        if len(self.images) == 0 or len(self.images) != len(self.labels):
            raise DataError(
                f"training images: {len(self.images)} images with {len(self.labels)} labels; expected as many, and at least one"
            )
        if (self.second is None) != (self.first_share is None):
            raise DataError("training images: soft labels need both, second labels and the shares of the first")
        if self.second is not None and self.first_share is not None:
            _require_soft(self.second, self.first_share, len(self.labels))


def _require_soft(second: Tensor, first_share: Tensor, count: int) -> None:
    if second.shape != (count,) or first_share.shape != (count,):
        raise DataError(f"training images: {count} labels with {len(second)} second labels and {len(first_share)} shares; expected as many")
    valid = (first_share >= 0) & (first_share <= 1) & ((second >= 0) | (first_share == 1))
    if not bool(valid.all()):
        at = int((~valid).int().argmax())
        raise DataError(
            f"training images: image {at} keeps {float(first_share[at]):g} for its label and has second label {int(second[at])}; "
            "expected a share from 0 to 1, and 1 where there is no second label"
        )


@dataclass(frozen=True, kw_only=True)
class MixedBatch:
    """Images (uint8 NCHW) and labels (int64 [n]); if any source has soft labels, `second` and `first_share` as in `TrainingSource`."""

    images: Tensor
    labels: Tensor
    second: Tensor | None = None
    first_share: Tensor | None = None

    def to(self, device: torch.device) -> "MixedBatch":
        """The same on `device`."""
        second, first_share = (None if value is None else value.to(device) for value in (self.second, self.first_share))
        return MixedBatch(images=self.images.to(device), labels=self.labels.to(device), second=second, first_share=first_share)


def batch_counts(shares: Sequence[float], batch_size: int) -> list[int]:
    """Images per batch of each source: shares of the batch rounded by largest remainders, so that they add up to `batch_size`.

    Raises `ConfigError` when a source would get no image at all.
    """
    exact = [batch_size * share / sum(shares) for share in shares]
    counts = [math.floor(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: batch_size - sum(counts)]:
        counts[i] += 1
    if min(counts) < 1:
        given = ", ".join(f"{share:g}" for share in shares)
        raise ConfigError(
            f"classify.ratio: a batch of {batch_size} has no image for one of the shares {given}; use a larger classify.batch_size"
        )
    return counts


class Epochs:
    """Indices `0..size-1` in reshuffled epochs; a batch may end one epoch and begin the next."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self._generator = generator
        self._order = torch.randperm(size, generator=generator)
        self._position = 0

    def take(self, count: int) -> Tensor:
        """The next `count` indices, int64."""
        parts = []
        while count > 0:
            if self._position == len(self._order):
                self._order = torch.randperm(len(self._order), generator=self._generator)
                self._position = 0
            part = self._order[self._position : self._position + count]
            self._position += len(part)
            count -= len(part)
            parts.append(part)
        return torch.cat(parts)

    def state(self) -> dict[str, Tensor]:
        """The state from which `restore` resumes."""
        return {"order": self._order, "position": torch.tensor([self._position]), "generator": self._generator.get_state()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Resume from `state`."""
        self._order = state["order"]
        self._position = int(state["position"])
        self._generator.set_state(state["generator"])


class MixedBatches:
    """Endless batches in which every source has its exact number of images."""

    def __init__(self, sources: Sequence[TrainingSource], batch_size: int, seed: int) -> None:
        self._sources = sources
        self.counts = batch_counts([source.share for source in sources], batch_size)
        self._epochs = [Epochs(len(source.images), torch_stream("classify", seed, "order", i)) for i, source in enumerate(sources)]

    @property
    def soft(self) -> bool:
        """Whether any source has soft labels."""
        return any(source.second is not None for source in self._sources)

    def per_image(self, values: Sequence[float]) -> Tensor:
        """One value per source, repeated for its places in a batch, float [n]; places belong to the same source in every batch."""
        return torch.cat([torch.full((count,), value) for value, count in zip(values, self.counts, strict=True)])

    def next(self) -> MixedBatch:
        """The next batch, with the images of one source after those of another."""
        taken = [epochs.take(count) for epochs, count in zip(self._epochs, self.counts, strict=True)]
        pairs = list(zip(self._sources, taken, strict=True))
        images = torch.cat([source.images[index] for source, index in pairs])
        labels = torch.cat([source.labels[index] for source, index in pairs])
        if not self.soft:
            return MixedBatch(images=images, labels=labels)
        soft = [_soft_of(source, index) for source, index in pairs]
        return MixedBatch(
            images=images, labels=labels, second=torch.cat([part[0] for part in soft]), first_share=torch.cat([part[1] for part in soft])
        )

    def state(self) -> dict[str, Tensor]:
        """The state from which `restore` resumes, as one flat mapping."""
        return {f"{i}/{name}": value for i, epochs in enumerate(self._epochs) for name, value in epochs.state().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Resume from `state`."""
        for i, epochs in enumerate(self._epochs):
            epochs.restore({name: state[f"{i}/{name}"] for name in ("order", "position", "generator")})


def _soft_of(source: TrainingSource, index: Tensor) -> tuple[Tensor, Tensor]:
    if source.second is None or source.first_share is None:
        return torch.full((len(index),), -1), torch.ones(len(index))
    return source.second[index], source.first_share[index].float()
