"""What is reported about an arm on a robustness set, from correctness alone."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gda.artifacts import SetArm, SetGain
from gda.stats.intervals import accuracy_interval, crossed_interval
from gda.stats.paired import paired_differences, sign_flip_test


def set_arm(correct: NDArray[np.bool_], *, seeds: Sequence[int], confidence: float = 0.95) -> SetArm:
    """Accuracy from `correct` [seeds, images] with its interval over both. Raises `ValueError` where it is empty."""
    return SetArm(
        seeds=tuple(seeds),
        top1=tuple(float(share) for share in correct.mean(axis=1)),
        mean=float(correct.mean()),
        ci95=accuracy_interval(correct, confidence=confidence),
    )


def set_gain(correct: NDArray[np.bool_], rival: NDArray[np.bool_], rng: np.random.Generator, *, confidence: float = 0.95) -> SetGain:
    """Gain from `correct` and `rival` [seeds, images], paired by row and column.

    `rng` flips the signs of many seeds. Raises `ValueError` on shapes that do not pair.
    """
    differences = paired_differences(correct, rival)
    return SetGain(
        mean=float(differences.mean()),
        ci95=crossed_interval(differences, confidence=confidence),
        p_value=sign_flip_test(differences.mean(axis=1), rng),
        seeds=len(differences),
    )
