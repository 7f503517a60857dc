"""Which classes an arm makes significantly worse, and how small a harm could have been seen."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from gda.artifacts.evaluation import ClassHarm
from gda.stats.multiplicity.moderated import moderated
from gda.stats.paired import Floats, flip_tail
from gda.stats.two_way import Ids, Parts, TwoWay, critical_values, parts_of

MANY = 0.1  # share of the classes of the smallest common harm, reported in addition to that of one class


def per_class_change(differences: Floats, labels: NDArray[np.int64], num_classes: int) -> Floats:
    """Mean difference of each class over seeds and its images [num_classes]; NaN for a class without test images."""
    return np.array([differences[:, labels == c].mean() if (labels == c).any() else math.nan for c in range(num_classes)])


def harm_p_values(
    differences: Floats, labels: NDArray[np.int64], num_classes: int, *, sets: Ids | None = None, groups: Ids | None = None
) -> Floats:
    """One-sided p-value of "is not worse" per class [num_classes]: the larger of a two-way t test and exact sign flips over images.

    In the first, seeds and images are random: a seed may move a whole class by chance, which a test over images alone would call
    significant. The effect of seeds on one class has few degrees of freedom, so it is moderated by the other classes (`moderated`). The
    second test stays exact where only a handful of a class's images differ. Seeds of one of `sets` [seeds], and images of one of `groups`
    [images], count as one. A class without test images cannot be shown harmed: 1.
    """
    tests = _tests(differences, labels, num_classes, sets, groups)
    return np.array([1.0 if test is None else max(test.p_value_below(), flips) for test, flips in tests])


def harmed_classes(
    differences: Floats,
    labels: NDArray[np.int64],
    classes: Sequence[str],
    *,
    alpha: float,
    sets: Ids | None = None,
    groups: Ids | None = None,
) -> tuple[ClassHarm, ...]:
    """Classes that lost accuracy at a false discovery rate of `alpha` (Benjamini and Hochberg 1995); their p-values are the adjusted ones.

    Where no class is harmed, `alpha` is the probability of naming any.
    """
    changes = per_class_change(differences, labels, len(classes))
    adjusted = stats.false_discovery_control(harm_p_values(differences, labels, len(classes), sets=sets, groups=groups))
    return tuple(
        ClassHarm(class_name=name, change=float(change), p_value=float(p))
        for name, change, p in zip(classes, changes, adjusted, strict=True)
        if change < 0 and p <= alpha
    )


def smallest_visible_harm(
    differences: Floats,
    labels: NDArray[np.int64],
    num_classes: int,
    *,
    alpha: float,
    share: float = 0.0,
    sets: Ids | None = None,
    groups: Ids | None = None,
) -> float:
    """The drop, in [0, 1], that is sure to have been significant in a class, had one class or a `share` of the classes suffered it.

    For one class it is that of the class where a drop is hardest to see, for a share that of the median class. It is the larger of the t
    test's critical value times the class's standard error, and of the fewest images, or groups, that all seeds have to lose for sign flips
    to reach that level, as a share of the class. A drop that seeds share unequally may show earlier. 1 where a class has too few images.
    """
    level = alpha * max(1 / num_classes, share)
    fewest = math.ceil(-math.log2(level) - 1e-9)
    tests = [test for test, _ in _tests(differences, labels, num_classes, sets, groups)]
    known = [test for test in tests if test is not None]
    by_error = critical_values(known, 2 * level) * [test.error for test in known]
    own = [labels == c for c, test in enumerate(tests) if test is not None]
    units = np.array([int(images.sum()) if groups is None else np.unique(groups[images]).size for images in own])
    drops = np.concatenate([np.maximum(by_error, fewest / units), np.ones(len(tests) - len(known))]).clip(max=1.0)
    return float(np.median(drops) if share else drops.max())


def _tests(
    differences: Floats, labels: NDArray[np.int64], num_classes: int, sets: Ids | None, groups: Ids | None
) -> list[tuple[TwoWay | None, float]]:
    """Of each class the two-way estimate and the p-value of sign flips; None and 1 for a class without images."""
    found: list[tuple[Parts | None, float]] = []
    for label in range(num_classes):
        own = labels == label
        if not own.any():
            found.append((None, 1.0))
            continue
        values, ids = differences[:, own], None if groups is None else groups[own]
        found.append((parts_of(values, sets=sets, groups=ids), flip_tail(_net(values, ids))))
    known = [part for part, _ in found if part is not None]
    seeds, interactions = (np.array([getattr(part, name) for part in known]) for name in ("over_seeds", "interaction"))
    # Expected seed variance of a class: that of the interaction, plus an excess that is the same for all classes.
    expected = interactions + max(0.0, float((seeds - interactions).mean()))
    shared, freedom = moderated(seeds, expected, known[0].seed_freedom)
    estimates = iter([replace(p, over_seeds=float(v), seed_freedom=freedom).estimate() for p, v in zip(known, shared, strict=True)])
    return [(None if part is None else next(estimates), flips) for part, flips in found]


def _net(differences: Floats, groups: Ids | None) -> NDArray[np.int64]:
    """Wins less losses of each image, or group of images, over all seeds."""
    sums = differences.sum(axis=0)
    if groups is not None:
        sums = np.bincount(np.unique(groups, return_inverse=True)[1], weights=sums)
    return np.asarray(np.rint(sums), dtype=np.int64)
