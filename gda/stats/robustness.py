"""What is reported about an arm on a robustness set, from correctness alone."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gda.artifacts.evaluation import SetArm, SetGain
from gda.stats.intervals import accuracy_interval, crossed_interval
from gda.stats.paired import paired_differences, sign_flip_test
from gda.stats.two_way import Ids, flipped


def set_arm(correct: NDArray[np.bool_], *, seeds: Sequence[int], confidence: float = 0.95, sets: Ids | None = None) -> SetArm:
    """Accuracy from `correct` [seeds, images] with its interval over both, seeds of one of `sets` [seeds] counted as one.

    Raises `ValueError` where it is empty.
    """
    return SetArm(
        seeds=tuple(seeds),
        top1=tuple(float(share) for share in correct.mean(axis=1)),
        mean=float(correct.mean()),
        ci95=accuracy_interval(correct, confidence=confidence, sets=sets),
    )


def set_gain(
    correct: NDArray[np.bool_],
    rival: NDArray[np.bool_],
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
    sets: Ids | None = None,
    groups: Ids | None = None,
) -> SetGain:
    """Gain from `correct` and `rival` [seeds, images], paired by row and column.

    Seeds of one of `sets` [seeds] and images of one of `groups` [images] count as one; `rng` flips the signs of many seeds. Raises
    `ValueError` on shapes that do not pair.
    """
    differences = paired_differences(correct, rival)
    return SetGain(
        mean=float(differences.mean()),
        ci95=crossed_interval(differences, confidence=confidence, sets=sets, groups=groups),
        p_value=sign_flip_test(flipped(differences.mean(axis=1), sets), rng),
        seeds=len(differences),
    )
