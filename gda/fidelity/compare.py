"""Every distribution metric of a set, with intervals and a real-against-real floor at equal N.

Frechet distances, nearest-neighbour measures and diversities depend on the number of images, so a synthetic set is never compared with
the whole reference: set and floor are both measured with `n` images on each side, and the bias cancels. There are three comparisons:

- `compare`, to which limits apply: `n` = half the reference (or the synthetic set, where that is smaller). The reference is all real
  images but test (train and val together), since train alone may be a few dozen images per class. That makes images near train look a
  little better than they should; the copy check covers this;
- `compare_with_split`: against val alone; the floor is train against val;
- `compare_at_class_size`: at the number of images of one class, with the score of real images of a single class, which a set that has
  collapsed to one class would have. A value nearer to that than to the floor is a warning, even within the limit.

Intervals are for the average score of new sets from the same sources at that n: the images of both sides count as random, whatever the
sizes of the sets (`gda.fidelity.intervals.jackknifed`; `benchmarks/intervals.py` measures their coverage). Floors state only a mean.

All three state FID, KID, precision, recall, density and coverage of set against reference, and for the set alone its Vendi score and the
Inception Score of the cross-fitted classifiers' probabilities.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from gda.errors import DataError
from gda.fidelity.diversity import inception_score, mean_distance, vendi_score
from gda.fidelity.frechet import Statistics, frechet_of_features, frechet_to
from gda.fidelity.intervals import Estimate, LeftOut, disjoint_halves, jackknifed, left_out, over_repeats, subsets
from gda.fidelity.kid import kernel_distance
from gda.fidelity.prdc import NEIGHBOURS, prdc
from gda.runtime.rng import numpy_stream

REPEATS = 20
LARGEST_N = 5000  # images on each side; nearest-neighbour measures cost n^2
LARGEST_SECOND_N = 1000  # of comparisons that are only reported
SMALLEST_N = NEIGHBOURS + 2  # one is left out for intervals
# Bounds of the metrics, which intervals around their mean could exceed.
_LEAST = {
    "fid": 0.0,
    "precision": 0.0,
    "recall": 0.0,
    "density": 0.0,
    "coverage": 0.0,
    "mean_distance": 0.0,
    "vendi": 1.0,
    "inception_score": 1.0,
}
_MOST = {"precision": 1.0, "recall": 1.0, "coverage": 1.0}


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """A set's images: `features` [n, d], and `probabilities` [n, classes] from classifiers that were not trained on them."""

    features: np.ndarray
    probabilities: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.features)

    def pick(self, rows: np.ndarray) -> "FeatureSet":
        """The images of these row numbers, in their order."""
        return FeatureSet(features=self.features[rows], probabilities=None if self.probabilities is None else self.probabilities[rows])


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A metric of a set and its floor, real against real, with `n` images on each side; `one_class`: real images of a single class."""

    estimate: Estimate
    floor: Estimate
    n: int
    one_class: Estimate | None = None


Pair = tuple[FeatureSet, FeatureSet]  # the measured images, the images they are compared with
MeasureOnce = Callable[[FeatureSet, FeatureSet], dict[str, float]]


def measured_once(images: FeatureSet, against: FeatureSet) -> dict[str, float]:
    """Every metric by name, without interval or floor, of all these images."""
    neighbours = prdc(images.features, against.features)
    found = {
        "fid": fid(images.features, against.features),
        "kid": kernel_distance(images.features, against.features),
        "precision": neighbours.precision,
        "recall": neighbours.recall,
        "density": neighbours.density,
        "coverage": neighbours.coverage,
        "vendi": vendi_score(images.features),
    }
    return found if images.probabilities is None else found | {"inception_score": inception_score(images.probabilities)}


def compare_sets(synthetic: FeatureSet, real: FeatureSet, *, seed: int, repeats: int = REPEATS) -> dict[str, Comparison]:
    """Every metric by name. Raises `DataError` for too few images or values that are not finite."""
    n = equal_n(len(synthetic), len(real))
    floors = _collect(_halves(real, n, repeats, numpy_stream("fidelity", seed, "floor")))
    return _with_floors(_measured(synthetic, real, n, repeats, numpy_stream("fidelity", seed, "compare")), floors, n)


def compare_with_split(
    synthetic: FeatureSet, held: FeatureSet, other: FeatureSet, *, n: int, seed: int, repeats: int = REPEATS
) -> dict[str, Comparison]:
    """Every metric of `n` synthetic against `n` images of one real split; the floor is the `other` split against it."""
    values = _measured(synthetic, held, n, repeats, numpy_stream("fidelity", seed, "apart"))
    return _with_floors(values, _collect(_pairs(other, held, n, repeats, numpy_stream("fidelity", seed, "splits"))), n)


def compare_at_class_size(
    synthetic: FeatureSet, real: FeatureSet, labels: np.ndarray, *, seed: int, repeats: int = REPEATS
) -> dict[str, Comparison]:
    """Every metric at nearly the number of images of the median class; empty with a single class, or if that class is too small.

    `one_class` compares real images of each class that has as many images, in turn, with other real images, of which the class has its
    share: what a set of that class alone would score.
    """
    sizes = np.bincount(labels)
    median = int(np.median(sizes[sizes > 0]))
    n = min(len(synthetic), len(real) // 2, int(median / (1 + median / len(real))), LARGEST_SECOND_N)
    if n < SMALLEST_N or np.count_nonzero(sizes) < 2:
        return {}
    floors = _collect(_halves(real, n, repeats, numpy_stream("fidelity", seed, "class size floor")))
    found = _with_floors(_measured(synthetic, real, n, repeats, numpy_stream("fidelity", seed, "class size")), floors, n)
    rng, large = numpy_stream("fidelity", seed, "one class"), np.flatnonzero(sizes >= n + _in_reference(n, sizes, len(real)))
    collapsed = _collect(_one_class(real, labels, label, n, rng) for label in np.resize(large, repeats).tolist())
    return {name: replace(each, one_class=collapsed[name]) for name, each in found.items()}


def compare_class(synthetic: np.ndarray, real: np.ndarray, *, seed: int, repeats: int = REPEATS) -> dict[str, Comparison] | None:
    """KID, coverage, recall and mean distance of one class, features [n, d] against [m, d]; None where too few for a floor at equal n.

    FID is left out: at so few images it is nothing but bias.
    """
    n = min(len(synthetic), len(real) // 2, LARGEST_SECOND_N)
    if n < SMALLEST_N:
        return None
    rng, images, reference = numpy_stream("fidelity", seed, "class"), FeatureSet(features=synthetic), FeatureSet(features=real)
    floors = _collect(_halves(reference, n, repeats, rng), _class_metrics)
    return _with_floors(_measured(images, reference, n, repeats, rng, _class_metrics), floors, n)


def fid_floor(real: np.ndarray, *, seed: int, n: int | None = None, repeats: int = REPEATS) -> tuple[Estimate, int]:
    """FID between disjoint halves of the reference, which a perfect generator would score, and the number of images in each half."""
    size = equal_n(len(real) // 2 if n is None else n, len(real))
    halves = disjoint_halves(len(real), size, repeats, numpy_stream("fidelity", seed, "floor"))
    return over_repeats(np.array([fid(real[one], real[other]) for one, other in halves])), size


def fid_of_split(synthetic: np.ndarray, real: np.ndarray, *, n: int, seed: int, repeats: int = REPEATS) -> Estimate:
    """FID of `n` synthetic against `n` real images of one split."""
    images, reference = FeatureSet(features=synthetic), FeatureSet(features=real)
    rng = numpy_stream("fidelity", seed, "apart")
    return _measured(images, reference, n, repeats, rng, lambda a, b: {"fid": fid(a.features, b.features)})["fid"]


def fid_to(reference: Statistics, synthetic: np.ndarray, *, seed: int, repeats: int = REPEATS) -> Estimate:
    """FID of all rows of `synthetic` [n, d] to a fixed reference, with an interval for what another set of n images would score.

    The interval is the spread of halves sampled without replacement (see `over_repeats`), shifted to the FID of the whole set: fewer
    images score higher, but that bias is no uncertainty. Sets of equal n are split into the same halves. Raises `DataError` for fewer than
    four rows.
    """
    if len(synthetic) < 4:
        raise DataError(f"a FID with an interval needs at least four images, got {len(synthetic)}")
    halves = subsets(len(synthetic), len(synthetic) // 2, repeats, numpy_stream("fidelity", seed, "point"))
    spread = over_repeats(np.array([frechet_to(reference, synthetic[half]) for half in halves]))
    value = frechet_to(reference, synthetic)
    return Estimate(value=value, low=max(0.0, value + spread.low - spread.value), high=value + spread.high - spread.value)


def fid_floor_to(reference: Statistics, real: np.ndarray, *, n: int, seed: int, repeats: int = REPEATS) -> float:
    """Mean FID of `n` of the real images [m, d], or all where there are fewer, to the same reference: the floor at equal n."""
    parts = subsets(len(real), min(n, len(real)), repeats, numpy_stream("fidelity", seed, "point floor"))
    return float(np.mean([frechet_to(reference, real[chosen]) for chosen in parts]))


def fid(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of two feature sets."""
    return frechet_of_features(a, b)


def equal_n(synthetic: int, real: int) -> int:
    """Number of images on each side for sets of these sizes. Raises `DataError` when that is too few for one of the metrics."""
    n = min(synthetic, real // 2, LARGEST_N)
    if n < SMALLEST_N:
        raise DataError(
            f"too few images to compare: {synthetic} synthetic and {real} real give {n} on each side, at least {SMALLEST_N} are needed"
        )
    return n


def _pairs(one: FeatureSet, other: FeatureSet, n: int, repeats: int, rng: np.random.Generator) -> Iterator[Pair]:
    for rows, more in zip(subsets(len(one), n, repeats, rng), subsets(len(other), n, repeats, rng), strict=True):
        yield one.pick(rows), other.pick(more)


def _halves(real: FeatureSet, n: int, repeats: int, rng: np.random.Generator) -> Iterator[Pair]:
    for one, other in disjoint_halves(len(real), n, repeats, rng):
        yield real.pick(one), real.pick(other)


def _one_class(real: FeatureSet, labels: np.ndarray, label: int, n: int, rng: np.random.Generator) -> Pair:
    """`n` real images of a class, and `n` other real images, of which the class has its share."""
    own, others = (rng.permutation(np.flatnonzero(chosen)) for chosen in (labels == label, labels != label))
    share = int(_in_reference(n, np.array(len(own)), len(real)))
    return real.pick(own[:n]), real.pick(np.concatenate([own[n : n + share], others[: n - share]]))


def _in_reference(n: int, sizes: np.ndarray, total: int) -> np.ndarray:
    """How many of `n` images of a set of `total` are of a class, int64, for classes of `sizes` images."""
    return np.rint(n * sizes / total).astype(np.int64)


def _class_metrics(images: FeatureSet, against: FeatureSet) -> dict[str, float]:
    neighbours = prdc(images.features, against.features)
    return {
        "kid": kernel_distance(images.features, against.features),
        "coverage": neighbours.coverage,
        "recall": neighbours.recall,
        "mean_distance": mean_distance(images.features),
    }


def _measured(
    images: FeatureSet, against: FeatureSet, n: int, repeats: int, rng: np.random.Generator, metrics: MeasureOnce = measured_once
) -> dict[str, Estimate]:
    """Every metric with its interval; groups are left out of the first pair, of one side and then of the other."""
    pairs = list(_pairs(images, against, n, repeats, rng))
    values = _table(metrics(one, other) for one, other in pairs)
    one, other = pairs[0]
    of_one = _table(metrics(one.pick(kept), other) for kept in left_out(n, rng))
    of_other = _table(metrics(one, other.pick(kept)) for kept in left_out(n, rng))
    sides = {name: [LeftOut(values=of_one[name], total=len(images)), LeftOut(values=of_other[name], total=len(against))] for name in values}
    return {name: _within_bounds(name, jackknifed(values[name], sides[name], n=n)) for name in values}


def _within_bounds(name: str, found: Estimate) -> Estimate:
    return replace(found, low=max(found.low, _LEAST.get(name, found.low)), high=min(found.high, _MOST.get(name, found.high)))


def _with_floors(values: Mapping[str, Estimate], floors: Mapping[str, Estimate], n: int) -> dict[str, Comparison]:
    return {name: Comparison(estimate=values[name], floor=floors[name], n=n) for name in values}


def _collect(pairs: Iterable[Pair], metrics: MeasureOnce = measured_once) -> dict[str, Estimate]:
    """Every metric's mean and spread over the pairs, for floors."""
    return {name: over_repeats(values) for name, values in _table(metrics(*pair) for pair in pairs).items()}


def _table(rows: Iterable[dict[str, float]]) -> dict[str, np.ndarray]:
    found = list(rows)
    return {name: np.array([row[name] for row in found]) for name in found[0]}
