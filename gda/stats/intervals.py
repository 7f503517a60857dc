"""Intervals of a mean over [seeds, images]: over seeds, over images, or over both at once."""

import math

import numpy as np
from numpy.typing import NDArray

from gda.stats.paired import Floats
from gda.stats.two_way import Ids, Interval, two_way


def crossed_interval(values: Floats, *, confidence: float = 0.95, sets: Ids | None = None, groups: Ids | None = None) -> Interval:
    """Interval of the mean of `values` [seeds, images], each in [-1, 1], over both factors; with one seed it is over images alone.

    `sets` [seeds] and `groups` [images] mark what was sampled together. Negating the values negates and swaps the ends, and the order of
    seeds and images does not matter. Raises `ValueError` as `two_way`.
    """
    low, high = two_way(values, sets=sets, groups=groups).interval(confidence)
    return max(-1.0, low), min(1.0, high)


def seed_interval(values: Floats, *, confidence: float = 0.95, sets: Ids | None = None) -> Interval | None:
    """Interval of the mean of `values` [seeds, images] over seeds alone, or over sets of them; None where there is only one."""
    if len(values if sets is None else np.unique(sets)) < 2:
        return None
    return crossed_interval(np.mean(values, axis=1, keepdims=True), confidence=confidence, sets=sets)


def image_interval(values: Floats, *, confidence: float = 0.95, groups: Ids | None = None) -> Interval:
    """Interval of the mean of `values` [seeds, images] over images alone, or groups of them: what another test set could have given."""
    return crossed_interval(np.mean(values, axis=0, keepdims=True), confidence=confidence, groups=groups)


def accuracy_interval(
    correct: NDArray[np.bool_], *, confidence: float = 0.95, sets: Ids | None = None, groups: Ids | None = None
) -> Interval:
    """Interval of an accuracy from `correct` [seeds, images] over both factors, inside [0, 1] and never empty.

    Wilson's interval (1927) for as many independent images as would give the two-way standard error (Korn and Graubard 1998), so that an
    accuracy of 1 is not reported as certain.
    """
    estimate = two_way(np.asarray(correct, dtype=np.float64), sets=sets, groups=groups)
    share, images = estimate.mean, correct.shape[1] if groups is None else np.unique(groups).size
    independent = share * (1 - share) / estimate.error**2 if estimate.error > 0 else float(images)
    square = estimate.critical(1 - confidence) ** 2 / independent
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(square * share * (1 - share) + square**2 / 4) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)
