"""Do the images show what their labels say, as classifiers that were trained on real images see it?"""

from dataclasses import dataclass

import numpy as np

from gda.data.store.soft_labels import NOBODY
from gda.errors import DataError
from gda.fidelity.intervals import Estimate, share


@dataclass(frozen=True, kw_only=True)
class LabelCheckResult:
    """The labels of n images: `classes` int64 [n], and `second` int64 [n], the other class of a soft label.

    `weights` float64 [n] in [0, 1] is what the soft label gives to `classes`; without a second class it is 1, and `second` is -1.
    """

    classes: np.ndarray
    second: np.ndarray
    weights: np.ndarray

    @classmethod
    def hard(cls, classes: np.ndarray) -> "LabelCheckResult":
        """One class per image; -1 for one that the classifiers do not know."""
        return cls(classes=classes, second=np.full(len(classes), NOBODY), weights=np.ones(len(classes)))

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def soft(self) -> np.ndarray:
        """Bool [n]: images whose label names two classes that the classifiers know."""
        return (self.second != NOBODY) & (self.classes != NOBODY)

    def named(self, seen: np.ndarray) -> np.ndarray:
        """Bool [n]: is the class `seen`, int64 [n] from 0, one that the label names?"""
        return (seen == self.classes) | (seen == self.second)


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """An image whose label the classifiers dispute; `probability` is what they give the class they see instead.

    `confident`: they are as sure of it as they are of real images of that class. If less sure, they may see the label's class as well.
    """

    position: int
    label: int
    predicted: int
    probability: float
    own_probability: float
    confident: bool
    confirmed: bool  # the label's class is the likeliest, but another reaches its threshold and the label's does not


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Share of images whose label is confirmed: overall, by class index (None for an absent class), and the disputed ones.

    `confident` is the share that is disputed with confidence; `soft_gap`, None without soft labels, is by how much more images with a
    soft label are seen as its first class than its weights say.
    """

    overall: Estimate
    by_class: tuple[Estimate | None, ...]
    confident: Estimate
    soft_gap: Estimate | None
    suspects: tuple[Suspect, ...]  # most confidently disputed first

    def confusions(self, most: int) -> list[tuple[int, int, int]]:
        """(label, class seen instead, number of images) of the pairs most frequent among the suspects, at most `most`."""
        pairs, counts = np.unique([(s.label, s.predicted) for s in self.suspects] or np.zeros((0, 2), int), axis=0, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:most]
        return [(int(pairs[i][0]), int(pairs[i][1]), int(counts[i])) for i in order]


def class_thresholds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How sure classifiers are of real images of each class, float64 [classes]; infinite for a class without images.

    The mean probability of their own class over images that the classifiers have not seen: `probabilities` float [n, classes], labels
    int64 [n]. The per-class thresholds of confident learning (Northcutt, Jiang and Chuang 2021, equation 2).
    """
    own = probabilities[np.arange(len(labels)), labels]
    classes = range(probabilities.shape[1])
    return np.array([own[labels == c].mean() if (labels == c).any() else np.inf for c in classes])


def agreement(probabilities: np.ndarray, labels: LabelCheckResult, thresholds: np.ndarray) -> Agreement:
    """Compare labels with class probabilities float [n, classes]; `thresholds` as of `class_thresholds`.

    A label is confirmed when the likeliest class is one that it names. It is disputed with confidence when, of the classes that reach
    their threshold, the likeliest is none that it names: the off-diagonal of the confident joint. Raises `DataError` for an empty set
    or probabilities that are not finite.
    """
    if len(labels) == 0 or not np.isfinite(probabilities).all():
        raise DataError(f"labels: {len(labels)} images with finite probabilities are needed to compare")
    likeliest = probabilities.argmax(1)
    confirmed = labels.named(likeliest)
    reaching = np.where(probabilities >= thresholds, probabilities, -1.0)
    sure_of = np.where(reaching.max(1) >= 0, reaching.argmax(1), NOBODY)
    confident = (sure_of != NOBODY) & ~labels.named(sure_of)
    disputed = np.flatnonzero(~confirmed | confident)
    seen = np.where(confident, sure_of, likeliest)
    suspects = [_suspect(int(i), probabilities[i], labels, int(seen[i]), bool(confident[i]), bool(confirmed[i])) for i in disputed]
    return Agreement(
        overall=share(int(confirmed.sum()), len(labels)),
        by_class=tuple(_share_of(confirmed[labels.classes == c]) for c in range(probabilities.shape[1])),
        confident=share(int(confident.sum()), len(labels)),
        soft_gap=_soft_gap(likeliest, labels),
        suspects=tuple(sorted(suspects, key=lambda s: (not s.confident, s.own_probability - s.probability, s.position))),
    )


def _share_of(confirmed: np.ndarray) -> Estimate | None:
    return share(int(confirmed.sum()), len(confirmed)) if len(confirmed) else None


def _soft_gap(seen: np.ndarray, labels: LabelCheckResult) -> Estimate | None:
    """Of soft-labelled images seen as one of their two classes: the share seen as the first, less the share that the weights give it."""
    counted = labels.soft & labels.named(seen)
    if not counted.any():
        return None
    expected = float(labels.weights[counted].mean())
    found = share(int((seen == labels.classes)[counted].sum()), int(counted.sum()))
    return Estimate(value=found.value - expected, low=found.low - expected, high=found.high - expected)


def _suspect(position: int, row: np.ndarray, labels: LabelCheckResult, seen: int, confident: bool, confirmed: bool) -> Suspect:
    label, second = int(labels.classes[position]), int(labels.second[position])
    own = sum(float(row[c]) for c in (label, second) if c != NOBODY)
    return Suspect(
        position=position,
        label=label,
        predicted=seen,
        probability=float(row[seen]),
        own_probability=own,
        confident=confident,
        confirmed=confirmed,
    )
