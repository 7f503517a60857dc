"""Label agreement of a set, compared with that of unseen real images: the measures of the verdict, and the limit of each class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gda.artifacts.verdict import Measure
from gda.config.sections import ValidateConfig
from gda.gate.checks.labels import Agreement, LabelCheckResult, agreement, class_thresholds
from gda.gate.measures import MeasuredWith, estimated
from gda.gate.verdict import limit_of

_WORST = "label_agreement_worst_class"


@dataclass(frozen=True, kw_only=True)
class LabelCheck:
    """What the classifiers confirm of a set; `limits` of the confirmed share by class index, None for a class that has no limit."""

    agreement: Agreement
    limits: tuple[float | None, ...]
    measures: Mapping[str, Measure]

    def disputed(self, *, in_low_classes: bool) -> list[int]:
        """Positions of images whose label is not confirmed; `in_low_classes`: only of classes whose share may be below their limit."""
        pairs = zip(self.agreement.by_class, self.limits, strict=True)
        low = {label for label, (own, limit) in enumerate(pairs) if own is not None and limit is not None and own.low < limit}
        unconfirmed = [suspect for suspect in self.agreement.suspects if not suspect.confirmed]
        return [suspect.position for suspect in unconfirmed if suspect.label in low or not in_low_classes]


def check_labels(
    seen: np.ndarray,
    labels: LabelCheckResult,
    unseen: np.ndarray,
    truth: np.ndarray,
    config: ValidateConfig,
    *,
    names: Sequence[str],
    measured: MeasuredWith,
) -> LabelCheck:
    """Compare `labels` and probabilities `seen` [n, classes] of images with `truth` int64 [m] and `unseen` [m, classes] of real ones.

    `names` are those of the classes by index. The floor of every measure is that of the real images, and chance is one divided by the
    number of classes. The worst class is the one with the smallest margin above its own limit; a class whose real images are recognised no
    better than by chance is left out, unless all are. Raises `DataError` as `agreement` does.
    """
    thresholds = class_thresholds(unseen, truth)
    real, own = agreement(unseen, LabelCheckResult.hard(truth), thresholds), agreement(seen, labels, thresholds)
    chance = {"chance": 1.0 / unseen.shape[1]}
    overall = estimated(own.overall, floor=real.overall.value, n=len(labels), measured=measured)
    named = zip(names, _by_class(own, real, labels, measured), strict=True)
    by_class = [measure.model_copy(update=chance | {"class_name": name}) for name, measure in named]
    limits = tuple(limit_of(_WORST, measure, config) for measure in by_class)
    measures = {
        "label_agreement": overall.model_copy(update=chance),
        _WORST: _least_to_spare(by_class, limits),
        "confident_disagreement": estimated(own.confident, floor=real.confident.value, n=len(labels), measured=measured),
    }
    if own.soft_gap is not None:
        measures["soft_label_gap"] = estimated(own.soft_gap, n=int(labels.soft.sum()), measured=measured)
    return LabelCheck(agreement=own, limits=limits, measures=measures)


def _by_class(own: Agreement, real: Agreement, labels: LabelCheckResult, measured: MeasuredWith) -> list[Measure]:
    """Each class with its unseen real images as the floor; null for a class without images."""
    counts = [int((labels.classes == label).sum()) for label in range(len(own.by_class))]
    return [
        Measure(value=None, n=0)
        if share is None
        else estimated(share, floor=None if floor is None else floor.value, n=n, measured=measured)
        for share, floor, n in zip(own.by_class, real.by_class, counts, strict=True)
    ]


def _least_to_spare(by_class: Sequence[Measure], limits: Sequence[float | None]) -> Measure:
    found = [(measure.value, limit, measure) for measure, limit in zip(by_class, limits, strict=True) if measure.value is not None]
    limited = [(value - limit, measure) for value, limit, measure in found if limit is not None]
    return min(limited or [(value, measure) for value, _, measure in found], key=lambda pair: pair[0])[1]
