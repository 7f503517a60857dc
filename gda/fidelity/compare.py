"""Every distribution metric of a set, with intervals and a real-against-real floor at equal N.

Frechet distances, nearest-neighbour measures and diversities depend on the number of images, so a synthetic set is never held against the
whole reference: both it and the floor are measured on `n` images a side, and the bias cancels. Three comparisons are made:

- `compare`, which is judged: `n` = half the reference (or the synthetic set, where that is smaller). The reference is all real images but
  test (train and val together): train alone may be a few dozen images a class. That makes images near train look a little better than
  they should, which the copy check answers for;
- `compare_with_split`: against val alone, the floor being train against val;
- `compare_at_class_size`: at the number of images of one class, with what real images of one class alone score, as a set would that has
  collapsed to it. A value nearer to that than to the floor is a warning whatever the limit says.

All three state FID, KID, precision, recall, density and coverage of set against reference, and of the set alone its Vendi score and the
Inception Score of the cross-fitted classifiers' probabilities.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from gda.errors import DataError
from gda.fidelity.diversity import inception_score, mean_distance, vendi_score
from gda.fidelity.frechet import Statistics, frechet_of_features, frechet_to
from gda.fidelity.intervals import Estimate, disjoint_halves, named_rng, over_repeats, subsets
from gda.fidelity.kid import kernel_distance
from gda.fidelity.prdc import NEIGHBOURS, prdc

REPEATS = 20
LARGEST_N = 5000  # images a side; nearest-neighbour measures cost n^2
LARGEST_SECOND_N = 1000  # of comparisons that are only reported
SMALLEST_N = NEIGHBOURS + 1


@dataclass(frozen=True, kw_only=True)
class Images:
    """What is known of a set's images: `features` [n, d], and `probabilities` [n, classes] of classifiers that have not seen them."""

    features: np.ndarray
    probabilities: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.features)

    def pick(self, rows: np.ndarray) -> "Images":
        """The images of these row numbers, in their order."""
        return Images(features=self.features[rows], probabilities=None if self.probabilities is None else self.probabilities[rows])


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One metric of a set against real images and of real against real, on `n` images a side; `one_class`: of real ones of one class."""

    estimate: Estimate
    floor: Estimate
    n: int
    one_class: Estimate | None = None


Pair = tuple[Images, Images]  # what is judged, what it is held against


def compare(synthetic: Images, real: Images, *, seed: int, repeats: int = REPEATS) -> dict[str, Comparison]:
    """Every metric by name. Raises `DataError` for too few images or values that are not finite."""
    n = equal_n(len(synthetic), len(real))
    floors = _halves(real, n, repeats, named_rng(seed, "floor"))
    return _compared(_pairs(synthetic, real, n, repeats, named_rng(seed, "compare")), floors, n)


def compare_with_split(
    synthetic: Images, held: Images, other: Images, *, n: int, seed: int, repeats: int = REPEATS
) -> dict[str, Comparison]:
    """Every metric of `n` synthetic against `n` images of one real split, the floor being the `other` split against it."""
    values = _pairs(synthetic, held, n, repeats, named_rng(seed, "apart"))
    return _compared(values, _pairs(other, held, n, repeats, named_rng(seed, "splits")), n)


def compare_at_class_size(
    synthetic: Images, real: Images, labels: np.ndarray, *, seed: int, repeats: int = REPEATS
) -> dict[str, Comparison]:
    """Every metric at the number of images of a class; nothing where there is one class, or none is large enough.

    The number is that of the median class; `one_class` is of real images of the classes that have as many, in turn, against others.
    """
    sizes = np.bincount(labels)
    n = min(len(synthetic), len(real) // 2, int(np.median(sizes[sizes > 0])), LARGEST_SECOND_N)
    if n < SMALLEST_N or np.count_nonzero(sizes) < 2:
        return {}
    floors = _halves(real, n, repeats, named_rng(seed, "class size floor"))
    found = _compared(_pairs(synthetic, real, n, repeats, named_rng(seed, "class size")), floors, n)
    rng = named_rng(seed, "one class")
    collapsed = _estimates(_one_class(real, labels, label, n, rng) for label in np.resize(np.flatnonzero(sizes >= n), repeats).tolist())
    return {name: replace(each, one_class=collapsed[name]) for name, each in found.items()}


def compare_class(synthetic: np.ndarray, real: np.ndarray, *, seed: int, repeats: int = REPEATS) -> dict[str, Comparison] | None:
    """KID, coverage and mean distance of one class, features [n, d] against [m, d]; None where too few for a floor at equal n.

    FID is left out: at so few images it is nothing but bias.
    """
    n = min(len(synthetic), len(real) // 2, LARGEST_SECOND_N)
    if n < SMALLEST_N:
        return None
    rng = named_rng(seed, "class")
    halves = disjoint_halves(len(real), n, repeats, rng)
    floors = _collect(_class_metrics(real[one], real[other]) for one, other in halves)
    pairs = zip(subsets(len(synthetic), n, repeats, rng), subsets(len(real), n, repeats, rng), strict=True)
    values = _collect(_class_metrics(synthetic[fake], real[true]) for fake, true in pairs)
    return {name: Comparison(estimate=values[name], floor=floors[name], n=n) for name in values}


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


def _pairs(one: Images, other: Images, n: int, repeats: int, rng: np.random.Generator) -> Iterator[Pair]:
    for rows, more in zip(subsets(len(one), n, repeats, rng), subsets(len(other), n, repeats, rng), strict=True):
        yield one.pick(rows), other.pick(more)


def _halves(real: Images, n: int, repeats: int, rng: np.random.Generator) -> Iterator[Pair]:
    for one, other in disjoint_halves(len(real), n, repeats, rng):
        yield real.pick(one), real.pick(other)


def _one_class(real: Images, labels: np.ndarray, label: int, n: int, rng: np.random.Generator) -> Pair:
    """`n` real images of a class and `n` others of any class."""
    alike = rng.permutation(np.flatnonzero(labels == label))[:n]
    others = rng.permutation(np.setdiff1d(np.arange(len(real)), alike))[:n]
    return real.pick(alike), real.pick(others)


def _compared(values: Iterable[Pair], floors: Iterable[Pair], n: int) -> dict[str, Comparison]:
    estimates, of_real = _estimates(values), _estimates(floors)
    return {name: Comparison(estimate=estimates[name], floor=of_real[name], n=n) for name in estimates}


def _estimates(pairs: Iterable[Pair]) -> dict[str, Estimate]:
    return _collect(_metrics(judged, against) for judged, against in pairs)


def _metrics(judged: Images, against: Images) -> dict[str, float]:
    neighbours = prdc(judged.features, against.features)
    found = {
        "fid": fid(judged.features, against.features),
        "kid": kernel_distance(judged.features, against.features),
        "precision": neighbours.precision,
        "recall": neighbours.recall,
        "density": neighbours.density,
        "coverage": neighbours.coverage,
        "vendi": vendi_score(judged.features),
    }
    return found if judged.probabilities is None else found | {"inception_score": inception_score(judged.probabilities)}


def _class_metrics(judged: np.ndarray, against: np.ndarray) -> dict[str, float]:
    return {
        "kid": kernel_distance(judged, against),
        "coverage": prdc(judged, against).coverage,
        "mean_distance": mean_distance(judged),
    }


def _collect(rows: Iterable[dict[str, float]]) -> dict[str, Estimate]:
    found = list(rows)
    return {name: over_repeats(np.array([row[name] for row in found])) for name in found[0]}
