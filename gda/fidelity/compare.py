"""FID, KID, precision, recall, density and coverage of a set, with intervals and a real-against-real floor at equal N.

Frechet distances and nearest-neighbour measures depend on the number of images, so a synthetic set is never held against the
whole reference: both it and the floor are measured on `n` images a side, `n` = half the reference (or the synthetic set, where
that is smaller), and the bias cancels. The reference is all real images but test (train and val together): train alone may be a few
dozen images a class. That makes images near train look a little better than they should, which the copy check answers for;
`fid_train` and `fid_val` state the two apart, at an equal n of their own.
"""

from dataclasses import dataclass

import numpy as np

from gda.errors import DataError
from gda.fidelity.frechet import Statistics, frechet_of_features, frechet_to
from gda.fidelity.intervals import Estimate, disjoint_halves, named_rng, over_repeats, subsets
from gda.fidelity.kid import kernel_distance
from gda.fidelity.prdc import NEIGHBOURS, prdc

REPEATS = 20
LARGEST_N = 5000  # images a side; nearest-neighbour measures cost n^2
SMALLEST_N = NEIGHBOURS + 1


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One metric of a set against the reference, and of the reference against itself, on `n` images a side."""

    estimate: Estimate
    floor: Estimate
    n: int


def compare(synthetic: np.ndarray, real: np.ndarray, *, seed: int, repeats: int = REPEATS) -> dict[str, Comparison]:
    """Every metric by name, for features [n, d] against [m, d]. Raises `DataError` for too few rows or values that are not finite."""
    n = equal_n(len(synthetic), len(real))
    rng = named_rng(seed, "compare")
    halves = disjoint_halves(len(real), n, repeats, named_rng(seed, "floor"))
    floors = _collect([_metrics(real[one], real[other]) for one, other in halves])
    pairs = zip(subsets(len(synthetic), n, repeats, rng), subsets(len(real), n, repeats, rng), strict=True)
    values = _collect([_metrics(synthetic[fake], real[true]) for fake, true in pairs])
    return {name: Comparison(estimate=over_repeats(values[name]), floor=over_repeats(floors[name]), n=n) for name in values}


def fid_floor(real: np.ndarray, *, seed: int, n: int | None = None, repeats: int = REPEATS) -> tuple[Estimate, int]:
    """FID between disjoint halves of the reference and the number of images a side: what a perfect generator would score."""
    size = equal_n(len(real) // 2 if n is None else n, len(real))
    halves = disjoint_halves(len(real), size, repeats, named_rng(seed, "floor"))
    return over_repeats(np.array([fid(real[one], real[other]) for one, other in halves])), size


def fid_apart(synthetic: np.ndarray, real: np.ndarray, *, n: int, seed: int, repeats: int = REPEATS) -> Estimate:
    """FID of `n` synthetic against `n` real images of one split."""
    rng = named_rng(seed, "apart")
    pairs = zip(subsets(len(synthetic), n, repeats, rng), subsets(len(real), n, repeats, rng), strict=True)
    return over_repeats(np.array([fid(synthetic[fake], real[true]) for fake, true in pairs]))


def fid_to(reference: Statistics, synthetic: np.ndarray, *, seed: int, repeats: int = REPEATS) -> Estimate:
    """FID of all rows of `synthetic` [n, d] to a fixed reference, with an interval for what another set of n images would score.

    The interval is the spread of halves drawn without replacement (see `over_repeats`), moved to where the whole set is: fewer images
    score higher, by a bias that is no uncertainty. Sets of equal n are halved alike. Raises `DataError` for fewer than four rows.
    """
    if len(synthetic) < 4:
        raise DataError(f"a FID with an interval needs at least four images, got {len(synthetic)}")
    halves = subsets(len(synthetic), len(synthetic) // 2, repeats, named_rng(seed, "point"))
    spread = over_repeats(np.array([frechet_to(reference, synthetic[half]) for half in halves]))
    value = frechet_to(reference, synthetic)
    return Estimate(value=value, low=max(0.0, value + spread.low - spread.value), high=value + spread.high - spread.value)


def fid_floor_to(reference: Statistics, real: np.ndarray, *, n: int, seed: int, repeats: int = REPEATS) -> float:
    """Mean FID of `n` of the real images [m, d], or all where there are fewer, to the same reference: the floor at equal n."""
    parts = subsets(len(real), min(n, len(real)), repeats, named_rng(seed, "point floor"))
    return float(np.mean([frechet_to(reference, real[chosen]) for chosen in parts]))


def fid(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of two feature sets."""
    return frechet_of_features(a, b)


def equal_n(synthetic: int, real: int) -> int:
    """Images a side for sets of these sizes. Raises `DataError` when that is too few for any of the metrics."""
    n = min(synthetic, real // 2, LARGEST_N)
    if n < SMALLEST_N:
        raise DataError(
            f"too few images to compare: {synthetic} synthetic and {real} real give {n} a side, at least {SMALLEST_N} are needed"
        )
    return n


def _metrics(synthetic: np.ndarray, real: np.ndarray) -> dict[str, float]:
    neighbours = prdc(synthetic, real)
    return {
        "fid": fid(synthetic, real),
        "kid": kernel_distance(synthetic, real),
        "precision": neighbours.precision,
        "recall": neighbours.recall,
        "density": neighbours.density,
        "coverage": neighbours.coverage,
    }


def _collect(rows: list[dict[str, float]]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}
