"""The smallest gain that the gate would let pass with a given probability: its two tests, simulated on repetitions of a comparison."""

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from gda.runtime.rng import numpy_stream
from gda.stats.paired import Floats
from gda.stats.two_way import Ids, two_way

POWER = 0.8
_REPETITIONS = 1000
_MOST_FLIPPED = 10  # seeds: above, the t test stands for the sign-flip test, to which it is then close
_HALVINGS = 10


def minimal_detectable_effect(
    differences: Floats, *, alpha: float, power: float = POWER, sets: Ids | None = None, groups: Ids | None = None
) -> float | None:
    """The smallest gain that a repetition of this comparison would confirm with probability `power`, by interval and by sign flips.

    `differences` [seeds, images]; both tests have level `alpha`. A repetition samples the effect of the images, which all seeds share,
    from a normal distribution, and the effect of each seed from another, with the variances that were found here; its interval is as
    long as this one times the ratio of its own standard error to this one's. None when there are too few seeds, or too few of several
    synthetic sets, for the sign-flip test to reach `alpha` at all.
    """
    by_seed = differences.mean(axis=1)
    if sets is not None:
        by_seed = np.array([by_seed[sets == one].mean() for one in np.unique(sets)])
    seeds = len(by_seed)
    if 2.0 ** (1 - seeds) > alpha:
        return None
    estimate = two_way(differences, sets=sets, groups=groups)
    error, half = estimate.error, estimate.critical(alpha) * estimate.error
    spread = float(by_seed.std(ddof=1))
    shared = max(0.0, error**2 - spread**2 / seeds)
    rng = numpy_stream("power")
    simulated = np.sqrt(shared) * rng.normal(size=(_REPETITIONS, 1)) + spread * rng.normal(size=(_REPETITIONS, seeds))
    ratio = np.sqrt(shared + simulated.var(axis=1, ddof=1) / seeds) / error if error > 0 else np.zeros(_REPETITIONS)
    low, high = 0.0, half + 10 * error  # certain to pass
    for _ in range(_HALVINGS):
        effect = (low + high) / 2
        shifted = simulated + effect
        passed = (shifted.mean(axis=1) > ratio * half) & (_flip_p_values(shifted) <= alpha)
        low, high = (low, effect) if passed.mean() >= power else (effect, high)
    return min(1.0, high)


def _flip_p_values(values: Floats) -> NDArray[np.float64]:
    """Two-sided sign-flip p-value of every row of `values` [repetitions, seeds]."""
    seeds = values.shape[1]
    if seeds > _MOST_FLIPPED:
        return np.asarray(stats.ttest_1samp(values, 0.0, axis=1).pvalue)
    # One of every two opposite patterns: both give the same absolute sum.
    signs = np.array([(1.0, *rest) for rest in itertools.product((1.0, -1.0), repeat=seeds - 1)])
    sums = np.abs(values @ signs.T)
    return (sums >= sums[:, :1] * (1 - 1e-12)).mean(axis=1)
