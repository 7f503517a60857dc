"""Which classes an arm makes significantly worse, and how small a harm could have been seen."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gda.artifacts import ClassHarm
from gda.stats.paired import Floats, holm, mcnemar_exact
from gda.stats.two_way import Ids, two_way


def per_class_change(differences: Floats, labels: NDArray[np.int64], num_classes: int) -> Floats:
    """Mean difference of each class over seeds and its images [num_classes]; NaN for a class without test images."""
    return np.array([differences[:, labels == c].mean() if (labels == c).any() else math.nan for c in range(num_classes)])


def harm_p_values(
    differences: Floats, labels: NDArray[np.int64], num_classes: int, *, sets: Ids | None = None, groups: Ids | None = None
) -> Floats:
    """Two-sided p-value per class [num_classes]: the larger of the two-way t test (seeds and images random) and exact McNemar over images.

    The first sees a whim of a seed that moves a class as one, which images alone would call significant; the second stays exact
    where a class has a handful of discordant images. Seeds of one of `sets` [seeds], and images of one of `groups` [images], count as
    one. A class without test images cannot be shown harmed: 1.
    """
    return np.array([_class_p_value(*_of_class(differences, labels, c, groups), sets) for c in range(num_classes)])


def harmed_classes(
    differences: Floats,
    labels: NDArray[np.int64],
    classes: Sequence[str],
    *,
    alpha: float,
    sets: Ids | None = None,
    groups: Ids | None = None,
) -> tuple[ClassHarm, ...]:
    """Classes that lost accuracy with a Holm-adjusted p-value of at most `alpha`; the p-values returned are the adjusted ones."""
    changes = per_class_change(differences, labels, len(classes))
    adjusted = holm(harm_p_values(differences, labels, len(classes), sets=sets, groups=groups))
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
    sets: Ids | None = None,
    groups: Ids | None = None,
) -> float:
    """The drop, in [0, 1], that in the least visible class would just have been significant at Holm's first step, alpha / classes.

    The larger of the t test's critical value times the class's own standard error, and the fewest discordant images, all losses,
    with which McNemar's test can reach that level, as a share of the class. 1 when some class has too few images to show any harm.
    """
    level = alpha / num_classes
    return max(_visible_drop(*_of_class(differences, labels, c, groups), sets, level) for c in range(num_classes))


def _of_class(differences: Floats, labels: NDArray[np.int64], label: int, groups: Ids | None) -> tuple[Floats, Ids | None]:
    own = labels == label
    return differences[:, own], None if groups is None else groups[own]


def _class_p_value(differences: Floats, groups: Ids | None, sets: Ids | None) -> float:
    if differences.shape[1] == 0:
        return 1.0
    return max(two_way(differences, sets=sets, groups=groups).p_value(), mcnemar_exact(differences))


def _visible_drop(differences: Floats, groups: Ids | None, sets: Ids | None, level: float) -> float:
    images = differences.shape[1]
    if images == 0:
        return 1.0
    estimate = two_way(differences, sets=sets, groups=groups)
    by_error = estimate.critical(level) * estimate.error
    fewest_losses = math.ceil(1 - math.log2(level))  # 2 * 2^-k <= level
    return min(1.0, max(by_error, fewest_losses / images))
