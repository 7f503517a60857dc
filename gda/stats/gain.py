"""One arm against its rival: everything that is reported about a gain, from correctness alone."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gda.artifacts.evaluation import Gain, Spread
from gda.stats.intervals import crossed_interval, image_interval, seed_interval
from gda.stats.multiplicity.harm import MANY, harmed_classes, smallest_visible_harm
from gda.stats.multiplicity.looks import level_of_look
from gda.stats.paired import mcnemar_exact, paired_differences, sign_flip_test
from gda.stats.power import minimal_detectable_effect
from gda.stats.two_way import FEWEST_FLIPPED, Ids, Interval, TwoWay, flipped, two_way


def paired_gain(
    correct: NDArray[np.bool_],
    rival: NDArray[np.bool_],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    rng: np.random.Generator,
    *,
    sets: Ids | None = None,
    groups: Ids | None = None,
    alpha: float = 0.05,
    confidence: float = 0.95,
) -> Gain:
    """The gain of an arm over its rival from `correct` and `rival` [seeds, images], paired by row and column.

    `labels` [images] index `classes`. Seeds of one of `sets` [seeds] trained on the same synthetic images, images of one of `groups`
    [images] were taken together; without `sets`, all seeds trained on one set and the result holds for it alone. Intervals have level
    `confidence`, tests level `alpha`; `rng` flips the signs of many seeds. Raises `ValueError` on shapes that do not pair.
    """
    differences = paired_differences(correct, rival)
    by_seed = differences.mean(axis=1)
    estimate = two_way(differences, sets=sets, groups=groups)
    crossed = crossed_interval(differences, confidence=confidence, sets=sets, groups=groups)
    return Gain(
        mean=estimate.mean,
        ci95=crossed,
        spread=Spread(
            error=estimate.error,
            seed_share=estimate.seed_share,
            seed_freedom=estimate.seed_freedom,
            image_freedom=estimate.image_freedom,
        ),
        sets=1 if sets is None else np.unique(sets).size,
        groups=None if groups is None else np.unique(groups).size,
        ci95_seeds=seed_interval(differences, confidence=confidence, sets=sets),
        ci95_images=image_interval(differences, confidence=confidence, groups=groups),
        p_value=sign_flip_test(flipped(by_seed, sets), rng),
        mcnemar_p=mcnemar_exact(differences),
        seeds=differences.shape[0],
        differences=tuple(float(d) for d in by_seed),
        harmed_classes=harmed_classes(differences, labels, classes, alpha=alpha, sets=sets, groups=groups),
        smallest_visible_harm=smallest_visible_harm(differences, labels, len(classes), alpha=alpha, sets=sets, groups=groups),
        smallest_common_harm=smallest_visible_harm(differences, labels, len(classes), alpha=alpha, share=MANY, sets=sets, groups=groups),
        minimal_detectable_effect=minimal_detectable_effect(differences, alpha=level_of_look(alpha, 1), sets=sets, groups=groups),
    )


def interval_of(gain: Gain, confidence: float) -> Interval | None:
    """The interval of a recorded gain over seeds and images at any level; None where its spread was not kept."""
    if gain.spread is None:
        return None
    spread = gain.spread
    return TwoWay(
        mean=gain.mean,
        error=spread.error,
        seed_share=spread.seed_share,
        seed_freedom=spread.seed_freedom,
        image_freedom=spread.image_freedom,
    ).interval(confidence)


def signs_of(gain: Gain) -> tuple[int, str]:
    """The number of signs that the p-value of a gain rests on, and their unit: seeds, or synthetic sets if there are enough."""
    return (gain.sets, "synthetic sets") if gain.sets >= FEWEST_FLIPPED else (gain.seeds, "seeds")
