"""The gate: measures in, verdict and reasons out. Pure, and closed to anything empty, missing or not finite."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from gda.artifacts import Measure
from gda.config import ValidateConfig

Limit = Callable[[Measure, ValidateConfig], float | None]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How one metric is judged.

    `at_most` and `at_least` must hold for the unfavourable end of the interval: a set is refused unless it is shown to be sound.
    `no_excess` refuses only when even the favourable end is above the limit: a rate that may rightly equal the real one.
    """

    kind: Literal["at_most", "at_least", "no_excess"]
    limit: Limit
    complaint: str  # of {value}, {bound}, {limit}, {floor}, {n}


def _constant(value: float) -> Limit:
    return lambda measure, config: value


def _ratio_of_floor(ratio: Callable[[ValidateConfig], float]) -> Limit:
    return lambda measure, config: None if measure.floor is None else ratio(config) * measure.floor


RULES: Mapping[str, Rule] = {
    "failed_expectations": Rule(
        kind="at_most", limit=_constant(0.0), complaint="{value:.0f} structural expectations failed; expectations.json has the details"
    ),
    "undecodable": Rule(kind="at_most", limit=_constant(0.0), complaint="{value:.0f} of {n} images cannot be decoded"),
    "class_ratio": Rule(
        kind="at_most",
        limit=lambda measure, config: config.max_class_ratio,
        complaint="the largest class has {value:.2f} times the images of the smallest; at most {limit:g} times is accepted",
    ),
    "duplicate_fraction": Rule(
        kind="at_most",
        limit=lambda measure, config: config.max_duplicate_fraction,
        complaint="{value:.1%} of the images repeat another one exactly; at most {limit:.1%} is accepted",
    ),
    "near_duplicate_fraction": Rule(
        kind="at_most",
        limit=lambda measure, config: None if measure.floor is None else measure.floor + config.max_near_duplicate_fraction,
        complaint="{value:.1%} of the images repeat another one but for encoding, size, mirroring or light; at most {limit:.1%} is "
        "accepted, of real images {floor:.1%} do",
    ),
    "exact_train": Rule(kind="at_most", limit=_constant(0.0), complaint="{value:.0f} images are pixel for pixel images of the train split"),
    "exact_val": Rule(kind="at_most", limit=_constant(0.0), complaint="{value:.0f} images are pixel for pixel images of the val split"),
    "exact_test": Rule(kind="at_most", limit=_constant(0.0), complaint="{value:.0f} images are pixel for pixel images of the test split"),
    "near_val": Rule(
        kind="no_excess",
        limit=lambda measure, config: measure.floor,
        complaint="{value:.2%} of the images are val images but for encoding, size, mirroring or light; of real ones {floor:.2%} may be",
    ),
    "near_test": Rule(
        kind="no_excess",
        limit=lambda measure, config: measure.floor,
        complaint="{value:.2%} of the images are test images but for encoding, size, mirroring or light; of real ones {floor:.2%} may be",
    ),
    "copy_fraction": Rule(
        kind="at_most",
        limit=lambda measure, config: config.max_copy_fraction,
        complaint="{value:.1%} (up to {bound:.1%}) of the images are closer to a training image than held-out real images come "
        "({floor:.1%} of those do); at most {limit:.1%} is accepted",
    ),
    "label_agreement": Rule(
        kind="at_least",
        limit=lambda measure, config: config.min_label_agreement,
        complaint="classifiers trained on real images confirm {value:.1%} (as low as {bound:.1%}) of the labels; "
        "at least {limit:.1%} is needed, unseen real images reach {floor:.1%}",
    ),
    "label_agreement_worst_class": Rule(
        kind="at_least",
        limit=lambda measure, config: config.min_class_agreement,
        complaint="in the worst class {value:.1%} (as low as {bound:.1%}) of the labels are confirmed; at least {limit:.1%} is needed",
    ),
    "fid": Rule(
        kind="at_most",
        limit=_ratio_of_floor(lambda config: config.fid_max_ratio),
        complaint="FID is {value:.3g} (up to {bound:.3g}), above {limit:.3g}; "
        "real images against real ones score {floor:.3g} at {n} a side",
    ),
    "coverage": Rule(
        kind="at_least",
        limit=_ratio_of_floor(lambda config: config.min_coverage_ratio),
        complaint="only {value:.1%} (as low as {bound:.1%}) of the real images have a synthetic one near them; "
        "at least {limit:.1%} is needed, real images against real ones reach {floor:.1%}",
    ),
}


def judge(measures: Mapping[str, Measure], config: ValidateConfig) -> tuple[bool, tuple[str, ...]]:
    """May a set with these measures be used, and if not, why: one sentence a reason. Never raises for what a measure holds."""
    judged = apply_limits(measures, config)
    # Metrics that are only reported count as well: a number that should be there and is not says that something broke.
    unmeasured = [name for name in RULES if name not in judged] + [name for name, measure in judged.items() if not _measured(measure)]
    reasons = [_complaint(name, judged[name]) for name in RULES if name not in unmeasured and judged[name].passed is not True]
    if unmeasured:
        reasons.append(f"could not be measured, which counts as failed: {', '.join(unmeasured)}")
    return not reasons, tuple(reasons)


def apply_limits(measures: Mapping[str, Measure], config: ValidateConfig) -> dict[str, Measure]:
    """The same measures with `limit` and `passed` filled in where there is a rule; others are only reported."""
    return {name: _judged(measure, RULES[name], config) if name in RULES else measure for name, measure in measures.items()}


def _judged(measure: Measure, rule: Rule, config: ValidateConfig) -> Measure:
    limit = rule.limit(measure, config)
    bound = _bound(measure, rule.kind)
    if limit is None or not math.isfinite(limit):
        return measure.model_copy(update={"limit": None, "passed": False})
    if not _measured(measure) or not math.isfinite(bound):
        return measure.model_copy(update={"limit": limit, "passed": False})
    passed = bound >= limit if rule.kind == "at_least" else bound <= limit
    return measure.model_copy(update={"limit": limit, "passed": passed})


def _measured(measure: Measure) -> bool:
    return measure.value is not None and all(math.isfinite(v) for v in (measure.value, measure.low, measure.high) if v is not None)


def _bound(measure: Measure, kind: str) -> float:
    end = measure.high if kind == "at_most" else measure.low
    if end is not None:
        return end
    return math.nan if measure.value is None else measure.value


def _complaint(name: str, measure: Measure) -> str:
    rule = RULES[name]
    if measure.limit is None:
        return f"{name} has no real-against-real floor to be judged by"
    floor = math.nan if measure.floor is None else measure.floor
    return rule.complaint.format(value=measure.value, bound=_bound(measure, rule.kind), limit=measure.limit, floor=floor, n=measure.n)
