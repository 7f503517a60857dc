"""The verdict: measures in, pass or fail and reasons out. Pure; anything empty, missing or not finite fails."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gda.artifacts.verdict import Measure
from gda.config.sections import ValidateConfig
from gda.gate.limits import RULES, Direction, Rule, rule_of


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """One metric against one limit: `bound` is the end that must keep it; None where it or the limit is missing or not finite."""

    name: str
    direction: Direction
    bound: float | None
    limit: float | None
    passed: bool
    complaint: str  # why it did not pass


def assess(measures: Mapping[str, Measure], config: ValidateConfig) -> tuple[bool, tuple[str, ...]]:
    """May a set with these measures be used, and if not, why: one sentence per reason. Never raises, whatever a measure holds."""
    assessments = assess_each(measures, config)
    expected = dict.fromkeys([*(name for name, rule in RULES.items() if not rule.optional), *(given.metric for given in config.limits)])
    # Metrics that are only reported count as well: a missing number means that something broke.
    unmeasured = [name for name in expected if name not in measures]
    unmeasured += [name for name, measure in measures.items() if not _measured(measure)]
    reasons = [found.complaint for found in assessments if found.name not in unmeasured and not found.passed]
    if unmeasured:
        reasons.append(f"could not be measured, which counts as failed: {', '.join(unmeasured)}")
    return not reasons, tuple(reasons)


def assess_each(measures: Mapping[str, Measure], config: ValidateConfig) -> tuple[Assessment, ...]:
    """Every rule, and every limit of `validate.limits`, applied to its metric where that was measured."""
    rules = [*RULES.items(), *((given.metric, rule_of(given)) for given in config.limits)]
    return tuple(_assessment(name, measures[name], rule, config) for name, rule in rules if name in measures)


def limit_of(name: str, measure: Measure, config: ValidateConfig) -> float | None:
    """The limit that the rule of metric `name` sets for this measure; None where it cannot be computed."""
    return _finite(RULES[name].limit(measure, config))


def apply_limits(measures: Mapping[str, Measure], config: ValidateConfig) -> dict[str, Measure]:
    """The same measures with `limit` and `passed` filled in for metrics with a rule; of several limits the first that failed."""
    found: dict[str, Measure] = dict(measures)
    for assessment in assess_each(measures, config):
        if found[assessment.name].passed is not False and (found[assessment.name].passed is None or not assessment.passed):
            found[assessment.name] = measures[assessment.name].model_copy(update={"limit": assessment.limit, "passed": assessment.passed})
    return found


def _assessment(name: str, measure: Measure, rule: Rule, config: ValidateConfig) -> Assessment:
    limit, bound = _finite(rule.limit(measure, config)), _bound(measure, rule)
    known = bound is not None and limit is not None and _measured(measure)
    passed = known and (bound >= limit if rule.direction == "at_least" else bound <= limit)  # type: ignore[operator]
    complaint = "" if passed else _complaint(name, measure, rule, bound, limit)
    return Assessment(name=name, direction=rule.direction, bound=bound, limit=limit, passed=passed, complaint=complaint)


def _measured(measure: Measure) -> bool:
    return measure.value is not None and all(math.isfinite(v) for v in (measure.value, measure.low, measure.high) if v is not None)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _bound(measure: Measure, rule: Rule) -> float | None:
    """The end of the interval that the limit applies to; the value itself where there is no interval."""
    upper = (rule.direction == "at_most") == (rule.end == "unfavourable")
    end = measure.high if upper else measure.low
    return _finite(measure.value if rule.end == "value" or end is None else end)


def _complaint(name: str, measure: Measure, rule: Rule, bound: float | None, limit: float | None) -> str:
    if limit is None and measure.chance is not None and measure.floor is not None and measure.floor <= measure.chance:
        return f"{name}: unseen real images reach {measure.floor:.1%}, no more than labels given at random, so labels cannot be checked"
    if limit is None:
        return f"{name} has no real-against-real floor to compare with"
    if bound is None or measure.value is None:
        return f"{name} could not be measured"
    the_class = "the class" if measure.class_name is None else f"{measure.class_name}, the class"
    return rule.complaint.format(
        value=measure.value, bound=bound, limit=limit, floor=_Floor(measure.floor), n=measure.n, the_class=the_class
    )


class _Floor:
    """A floor in a sentence; it may be unknown."""

    def __init__(self, value: float | None) -> None:
        self._value = value

    def __format__(self, spec: str) -> str:
        return "an unknown share or score" if self._value is None else format(self._value, spec)
