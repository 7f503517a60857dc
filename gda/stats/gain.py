"""One arm against its rival: everything that is reported about a gain, from correctness alone."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from gda.artifacts import Gain
from gda.stats.bootstrap import crossed_interval, image_interval, seed_interval
from gda.stats.harm import harmed_classes, smallest_visible_harm
from gda.stats.paired import Floats, mcnemar_exact, paired_differences, sign_flip_test, two_way

POWER = 0.8


def minimal_detectable_effect(differences: Floats, *, alpha: float, power: float = POWER) -> float | None:
    """The smallest gain that a repetition of this comparison would find significant with probability `power`.

    (t at 1 - alpha/2 plus t at `power`) times the two-way standard error (Bloom 1995). None when there are too few seeds for the
    sign-flip test to reach `alpha` at all, whatever the gain.
    """
    if 2.0 ** (1 - differences.shape[0]) > alpha:
        return None
    estimate = two_way(differences)
    return float((stats.t.ppf(1 - alpha / 2, estimate.freedom) + stats.t.ppf(power, estimate.freedom)) * estimate.error)


def compare(
    correct: NDArray[np.bool_],
    rival: NDArray[np.bool_],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    rng: np.random.Generator,
    *,
    alpha: float = 0.05,
    confidence: float = 0.95,
    num_resamples: int = 4000,
) -> Gain:
    """The gain of an arm over its rival from `correct` and `rival` [seeds, images], paired by row and column.

    `labels` [images] index `classes`; intervals have level `confidence`, tests level `alpha`.
    Raises `ValueError` on shapes that do not pair.
    """
    differences = paired_differences(correct, rival)
    by_seed = differences.mean(axis=1)
    crossed, seeds, images = (
        interval(differences, rng, confidence=confidence, num_resamples=num_resamples)
        for interval in (crossed_interval, seed_interval, image_interval)
    )
    assert crossed is not None
    return Gain(
        mean=float(differences.mean()),
        ci95=crossed,
        ci95_seeds=seeds,
        ci95_images=images,
        p_value=sign_flip_test(by_seed, rng),
        mcnemar_p=mcnemar_exact(differences),
        seeds=differences.shape[0],
        differences=tuple(float(d) for d in by_seed),
        harmed_classes=harmed_classes(differences, labels, classes, alpha=alpha),
        smallest_visible_harm=smallest_visible_harm(differences, labels, len(classes), alpha=alpha),
        minimal_detectable_effect=minimal_detectable_effect(differences, alpha=alpha),
    )
