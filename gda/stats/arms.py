"""What is reported about one arm on its own."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gda.artifacts import ArmResult
from gda.stats.bootstrap import accuracy_interval


def arm_result(
    correct: NDArray[np.bool_],
    correct_top5: NDArray[np.bool_],
    labels: NDArray[np.int64],
    num_classes: int,
    rng: np.random.Generator,
    *,
    seeds: Sequence[int],
    val_top1: Sequence[float],
    num_updates: int,
    confidence: float = 0.95,
    num_resamples: int = 4000,
) -> ArmResult:
    """Accuracies of an arm from correctness [seeds, images]; a class without test images has accuracy 0 in `per_class`."""
    by_image = correct.mean(axis=0)
    sums = np.bincount(labels, weights=by_image, minlength=num_classes)
    counts = np.bincount(labels, minlength=num_classes)
    return ArmResult(
        seeds=tuple(seeds),
        top1=tuple(float(share) for share in correct.mean(axis=1)),
        top5=tuple(float(share) for share in correct_top5.mean(axis=1)),
        mean=float(correct.mean()),
        ci95=accuracy_interval(correct, rng, confidence=confidence, num_resamples=num_resamples),
        per_class=tuple(float(share) for share in sums / np.maximum(counts, 1)),
        val_top1=tuple(val_top1),
        num_updates=num_updates,
    )


def skipped_arm(reason: str) -> ArmResult:
    """An arm that did not run."""
    return ArmResult(seeds=(), top1=(), top5=(), mean=None, ci95=None, per_class=(), skipped=reason)
