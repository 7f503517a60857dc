"""Intervals that do not bias what they bracket: subsets drawn without replacement, and Wilson's interval for shares."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from gda.errors import DataError

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with the ends of its 95% interval."""

    value: float
    low: float
    high: float


def named_rng(seed: int, name: str) -> np.random.Generator:
    """A random stream of its own for every (seed, name)."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}/fidelity/{name}".encode()).digest()[:16], "big"))


def share(hits: int, total: int) -> Estimate:
    """`hits` of `total` with Wilson's interval (Wilson 1927), which stays honest at 0 and at 1. Raises `DataError` when total is 0."""
    if total == 0:
        raise DataError("a share of no images is undefined")
    interval = binomtest(hits, total).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(value=hits / total, low=float(interval.low), high=float(interval.high))


def over_repeats(values: np.ndarray) -> Estimate:
    """Mean and 2.5th/97.5th percentiles of one metric over subsets drawn without replacement.

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
