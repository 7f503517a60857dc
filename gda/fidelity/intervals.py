"""Intervals: a jackknife that leaves out groups of images in turn, and Wilson's interval for shares."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student

from gda.errors import DataError

CONFIDENCE = 0.95
JACKKNIFE_GROUPS = 10  # of each side's images; one group is left out at a time


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with the ends of its 95% interval."""

    value: float
    low: float
    high: float


def share(hits: int, total: int) -> Estimate:
    """`hits` of `total` with Wilson's interval (Wilson 1927), which is also valid at 0 and at 1. Raises `DataError` when total is 0."""
    if total == 0:
        raise DataError("a share of no images is undefined")
    interval = binomtest(hits, total).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(value=hits / total, low=float(interval.low), high=float(interval.high))


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A metric with one group of one side left out at a time, float64 [groups]; that side has `total` images."""

    values: np.ndarray
    total: int


def left_out(n: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the rows of range(n) without one of `GROUPS` random groups, ascending; every row is left out once. n must be at least 2."""
    for group in np.array_split(rng.permutation(n), min(JACKKNIFE_GROUPS, n)):
        yield np.setdiff1d(np.arange(n), group, assume_unique=True)


def jackknifed(values: np.ndarray, sides: Sequence[LeftOut], *, n: int) -> Estimate:
    """Mean of a metric over repeats with `n` images on each side, with the 95% interval of the average score of new sets at that n.

    Each repeat takes `n` of each side's images without replacement. If a side has no more than n, all repeats hold the same images, and
    their spread does not show its variance. So each side's variance at n is that of the delete-a-group jackknife, (g - 1) / g times the sum
    of squares about the mean (Shao and Wu 1989; Kott 2001), which excludes the metric's bias in n. Of this variance, a share n / m remains
    in the mean of all subsets of m images; the repeats average the rest down. Student's t with g - 1 degrees of freedom.
    """
    variance = 0.0
    for side in sides:
        groups, used = len(side.values), n / side.total
        of_n = (groups - 1) / groups * float(np.square(side.values - side.values.mean()).sum())
        variance += of_n * (used + (1 - used) / len(values))
    freedom = min(len(side.values) for side in sides) - 1
    value, margin = float(np.mean(values)), float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * float(np.sqrt(variance))
    return Estimate(value=value, low=value - margin, high=value + margin)


def over_repeats(values: np.ndarray) -> Estimate:
    """Mean and 2.5th/97.5th percentiles of one metric over subsets sampled without replacement: the spread of floors, and of halves.

    Subsets of half a set spread about as much as the metric of the whole set does from set to set (the delete-half jackknife,
    Shao and Wu 1989), and no image is in a subset twice: bootstrap copies would raise FID and collapse nearest-neighbour radii.
    """
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return Estimate(value=float(np.mean(values)), low=float(low), high=float(high))


def disjoint_halves(total: int, size: int, repeats: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield `repeats` pairs of disjoint index sets of `size` from range(total); 2 x size must not exceed total."""
    assert 1 <= size <= total // 2, f"two disjoint sets of {size} do not fit in {total}"
    for _ in range(repeats):
        order = rng.permutation(total)
        yield order[:size], order[size : 2 * size]


def subsets(total: int, size: int, repeats: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield `repeats` index sets of `size` from range(total), each without replacement."""
    for _ in range(repeats):
        yield rng.permutation(total)[:size]
