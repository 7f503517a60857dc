"""For each metric that is measured per class, the class that decides: the one with the smallest margin to its own limit."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

from gda.artifacts.verdict import Measure
from gda.config.sections import ValidateConfig
from gda.fidelity.compare import Comparison
from gda.gate.measures import MeasuredWith, compared
from gda.gate.verdict import limit_of

_TINY = 1e-12  # a class of equal real images has no distance
_LIMITED = ("coverage", "recall", "mean_distance")


def worst_classes(
    by_class: Sequence[Mapping[str, Comparison] | None], names: Sequence[str], config: ValidateConfig, *, measured: MeasuredWith
) -> dict[str, Measure]:
    """The measures `<metric>_worst_class`, each with the name of its class; none where no class was measured.

    For KID, which has no limit, it is the class that is furthest above its floor; for coverage, recall and mean distance the one that is
    least above its own limit, as a share of its floor. A missing number counts as worst, because the set is refused for it.
    """
    known = [(name, found) for name, found in zip(names, by_class, strict=True) if found is not None]
    if not known:
        return {}
    worst = {}
    for metric in ("kid", *_LIMITED):
        name = f"{metric}_worst_class"
        of_classes = [(class_name, compared(found[metric], measured)) for class_name, found in known]
        measures = [each.model_copy(update={"class_name": class_name, "num_classes": len(known)}) for class_name, each in of_classes]
        worst[name] = min(measures, key=partial(_spare, name, config=config) if metric in _LIMITED else _below_floor)
    return worst


def _spare(name: str, measure: Measure, *, config: ValidateConfig) -> float:
    limit = limit_of(name, measure, config)
    if measure.value is None or measure.floor is None or limit is None:
        return -math.inf
    return (measure.value - limit) / max(measure.floor, _TINY)


def _below_floor(measure: Measure) -> float:
    return -math.inf if measure.value is None or measure.floor is None else measure.floor - measure.value
