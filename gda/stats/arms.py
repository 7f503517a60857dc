"""What is reported about one arm on its own, and which arm it is fair to compare it with."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gda.artifacts.evaluation import ArmResult, Confusion
from gda.config.arm import Arm, in_order
from gda.stats.calibration import negative_log_likelihood, reliability
from gda.stats.confusion import confusion_counts, most_confused
from gda.stats.intervals import accuracy_interval
from gda.stats.two_way import Ids

CONFUSIONS = 20  # kept per arm


def arm_result(
    correct: NDArray[np.bool_],
    correct_top5: NDArray[np.bool_],
    labels: NDArray[np.int64],
    num_classes: int,
    *,
    seeds: Sequence[int],
    val_top1: Sequence[float],
    num_train_steps: int,
    confidence: float = 0.95,
    sets: Ids | None = None,
    groups: Ids | None = None,
) -> ArmResult:
    """Accuracies of an arm from correctness [seeds, images]; a class without test images has accuracy 0 in `per_class`.

    Seeds of one of `sets` [seeds] and images of one of `groups` [images] were sampled together.
    """
    by_image = correct.mean(axis=0)
    sums = np.bincount(labels, weights=by_image, minlength=num_classes)
    counts = np.bincount(labels, minlength=num_classes)
    return ArmResult(
        seeds=tuple(seeds),
        top1=tuple(float(share) for share in correct.mean(axis=1)),
        top5=tuple(float(share) for share in correct_top5.mean(axis=1)),
        mean=float(correct.mean()),
        ci95=accuracy_interval(correct, confidence=confidence, sets=sets, groups=groups),
        ci95_top5=accuracy_interval(correct_top5, confidence=confidence, sets=sets, groups=groups),
        per_class=tuple(float(share) for share in sums / np.maximum(counts, 1)),
        val_top1=tuple(val_top1),
        num_train_steps=num_train_steps,
    )


def with_probabilities(result: ArmResult, probabilities: NDArray[np.float32], correct: NDArray[np.bool_]) -> ArmResult:
    """The same with its calibration, from `probabilities` [seeds, images, 2] of the predicted and the true class."""
    errors = [reliability(best, right).error for best, right in zip(probabilities[..., 0], correct, strict=True)]
    losses = [negative_log_likelihood(own) for own in probabilities[..., 1]]
    return result.model_copy(update={"ece": tuple(errors), "nll": tuple(losses)})


def with_confusions(result: ArmResult, predicted: NDArray[np.int32], labels: NDArray[np.int32], classes: Sequence[str]) -> ArmResult:
    """The same with its largest confusions, from classes `predicted` [seeds, images]."""
    found = most_confused(confusion_counts(predicted, labels, len(classes)), CONFUSIONS)
    named = [Confusion(class_name=classes[label], predicted=classes[seen], share=share) for label, seen, share in found]
    return result.model_copy(update={"most_confused": tuple(named)})


def skipped_arm(reason: str) -> ArmResult:
    """An arm that did not run."""
    return ArmResult(seeds=(), top1=(), top5=(), mean=None, ci95=None, per_class=(), skipped=reason)


def real_alone_as_long(arm: Arm, arms: Mapping[Arm, ArmResult]) -> Arm | None:
    """The training on real images alone, by the settings of `arm`, that took no fewer steps than it; of two, the shorter.

    Of two of equal length it is the plainer. None where no such arm ran, or where the lengths are unknown.
    """
    own = arms.get(arm)
    needed = own.num_train_steps if own is not None else None
    alike = [name for name in in_order(arms) if name.data.name == Arm.REAL and name is not arm and name.trained_like(arm)]
    lengths = {name: steps for name in alike if arms[name].skipped is None and (steps := arms[name].num_train_steps) is not None}
    enough = {name: steps for name, steps in lengths.items() if needed is not None and steps >= needed}
    return min(enough, key=lambda name: enough[name], default=None)
