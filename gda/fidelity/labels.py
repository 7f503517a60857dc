"""Do the images show what their labels say, as classifiers that were trained on real images see it?"""

from dataclasses import dataclass

import numpy as np

from gda.errors import DataError
from gda.fidelity.intervals import Estimate, share


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """An image whose label the classifiers dispute; `probability` is what they give the class they see instead."""

    position: int
    label: int
    predicted: int
    probability: float
    own_probability: float


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Share of images whose label is confirmed: overall, by class index (None for an absent class), and the disputed ones."""

    overall: Estimate
    by_class: tuple[Estimate | None, ...]
    suspects: tuple[Suspect, ...]  # most confidently disputed first

    @property
    def worst(self) -> int:
        """Index of the class that is confirmed least."""
        return min((i for i, e in enumerate(self.by_class) if e is not None), key=lambda i: self.by_class[i].value)  # type: ignore[union-attr]


def agreement(probabilities: np.ndarray, labels: np.ndarray) -> Agreement:
    """Compare labels int64 [n] (-1: a class the classifiers do not know) with class probabilities float [n, classes].

    Raises `DataError` for an empty set or probabilities that are not finite.
    """
    if len(labels) == 0 or not np.isfinite(probabilities).all():
        raise DataError(f"labels: {len(labels)} images with finite probabilities are needed to compare")
    predicted = probabilities.argmax(1)
    confirmed = predicted == labels
    by_class = [_share_of(confirmed[labels == c]) for c in range(probabilities.shape[1])]
    disputed = [_suspect(int(i), probabilities[i], int(labels[i])) for i in np.flatnonzero(~confirmed)]
    return Agreement(
        overall=share(int(confirmed.sum()), len(labels)),
        by_class=tuple(by_class),
        suspects=tuple(sorted(disputed, key=lambda s: (s.own_probability - s.probability, s.position))),
    )


def _share_of(confirmed: np.ndarray) -> Estimate | None:
    return share(int(confirmed.sum()), len(confirmed)) if len(confirmed) else None


def _suspect(position: int, row: np.ndarray, label: int) -> Suspect:
    own = float(row[label]) if label >= 0 else 0.0
    predicted = int(row.argmax())
    return Suspect(position=position, label=label, predicted=predicted, probability=float(row[predicted]), own_probability=own)
