"""How close a synthetic set is to the real one: which images are compared, and under which metric names."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gda.fidelity.compare import (
    LARGEST_SECOND_N,
    SMALLEST_N,
    Comparison,
    FeatureSet,
    compare_at_class_size,
    compare_class,
    compare_sets,
    compare_with_split,
    fid_floor_to,
    fid_of_split,
    fid_to,
)
from gda.fidelity.frechet import Statistics
from gda.fidelity.intervals import Estimate, subsets
from gda.runtime.rng import numpy_stream

ByClass = tuple[Mapping[str, Comparison] | None, ...]


@dataclass(frozen=True, kw_only=True)
class Closeness:
    """`overall` by name; `by_class`, by class index, has KID, coverage, recall and mean distance, None where a floor needs more images."""

    overall: Mapping[str, Comparison]
    by_class: ByClass


def closeness(
    synthetic: FeatureSet,
    labels: np.ndarray,
    real: Mapping[str, FeatureSet],
    real_labels: Mapping[str, np.ndarray],
    *,
    classes: int,
    seed: int,
) -> Closeness:
    """Compare a set whose labels are int64 [n], -1 for none of the real classes, with the `real` splits train and val.

    Names: as of `compare`; `<metric>_val` against val alone, and `fid_train`; `<metric>_at_class_size`. Raises `DataError` as `compare`
    does.
    """
    pooled, pooled_labels = _pooled(real), np.concatenate(list(real_labels.values()))
    by_class = tuple(
        compare_class(synthetic.features[labels == label], pooled.features[pooled_labels == label], seed=seed) for label in range(classes)
    )
    overall = compare_sets(synthetic, pooled, seed=seed) | _apart(synthetic, real, seed)
    at_class_size = compare_at_class_size(synthetic, pooled, pooled_labels, seed=seed)
    overall |= {f"{name}_at_class_size": found for name, found in at_class_size.items()}
    return Closeness(overall=overall, by_class=by_class)


def to_statistics(synthetic: np.ndarray, real: np.ndarray, given: Statistics, *, seed: int) -> Comparison:
    """FID of features [n, d] to given statistics at the largest n that real images [m, d] have too, whose own distance is the floor."""
    n = min(len(synthetic), len(real))
    floor = fid_floor_to(given, real, n=n, seed=seed)
    chosen = next(subsets(len(synthetic), n, 1, numpy_stream("fidelity", seed, "statistics")))
    found = fid_to(given, synthetic[chosen], seed=seed)
    return Comparison(estimate=found, floor=Estimate(value=floor, low=floor, high=floor), n=n)


def _pooled(real: Mapping[str, FeatureSet]) -> FeatureSet:
    parts = list(real.values())
    known = [part.probabilities for part in parts if part.probabilities is not None]
    return FeatureSet(
        features=np.concatenate([part.features for part in parts]),
        probabilities=np.concatenate(known) if len(known) == len(parts) else None,
    )


def _apart(synthetic: FeatureSet, real: Mapping[str, FeatureSet], seed: int) -> dict[str, Comparison]:
    """Against val alone, and FID against train alone: being much nearer to train indicates memorisation. One floor, train against val."""
    train, val = real["train"], real["val"]
    n = min(len(synthetic), len(train), len(val), LARGEST_SECOND_N)
    if n >= SMALLEST_N:
        against_val = compare_with_split(synthetic, val, train, n=n, seed=seed)
    else:  # too few for neighbours
        fids = [fid_of_split(each.features, val.features, n=n, seed=seed) for each in (synthetic, train)]
        against_val = {"fid": Comparison(estimate=fids[0], floor=fids[1], n=n)}
    near_train = fid_of_split(synthetic.features, train.features, n=n, seed=seed)
    found = {f"{name}_val": each for name, each in against_val.items()}
    return found | {"fid_train": Comparison(estimate=near_train, floor=against_val["fid"].floor, n=n)}
