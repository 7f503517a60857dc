"""One arm against its rival: everything that is reported about a gain, from correctness alone."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gda.artifacts import Gain
from gda.stats.bootstrap import crossed_interval, image_interval, seed_interval
from gda.stats.harm import harmed_classes, smallest_visible_harm
from gda.stats.paired import mcnemar_exact, paired_differences, sign_flip_test
from gda.stats.power import minimal_detectable_effect


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
        minimal_detectable_effect=minimal_detectable_effect(differences, crossed, alpha=alpha),
    )
