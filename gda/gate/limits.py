"""The limits of the gate: which end of each metric's interval must keep which limit, and the message if it does not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from scipy.stats import binom

from gda.artifacts.verdict import Measure
from gda.config.sections import MetricLimit, ValidateConfig
from gda.fidelity.prdc import NEIGHBOURS

Direction = Literal["at_most", "at_least"]
Limit = Callable[[Measure, ValidateConfig], float | None]
_CHANCE_MISS = 0.01  # how often a sound set may be refused for the worst of its classes


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which end of a metric's interval must keep which limit (docs/adr/0011).

    Mostly it is the `unfavourable` end: a set is refused unless it is shown to be sound. The `favourable` end decides for rates that are
    above zero in sound sets and in real images too: a set is refused when it is shown to exceed the limit. The `value` itself decides
    where it is already the worst of many, because an interval would count chance twice.
    """

    direction: Direction
    end: Literal["unfavourable", "favourable", "value"] = "unfavourable"
    limit: Limit
    complaint: str  # with {value}, {bound}, {limit}, {floor}, {n} and {the_class}, its name
    optional: bool = False  # some sets are too small for it; every other metric is required


def _constant(value: float) -> Limit:
    return lambda measure, config: value


def _ratio_of_floor(ratio: Callable[[ValidateConfig], float]) -> Limit:
    return lambda measure, config: None if measure.floor is None else ratio(config) * measure.floor


def _above_chance(ratio: float, measure: Measure) -> float | None:
    """Chance plus `ratio` times what the floor has above chance (Cohen 1960); None without a floor above chance."""
    chance = measure.chance or 0.0
    return None if measure.floor is None or not measure.floor > chance else chance + ratio * (measure.floor - chance)


def _label_limit(measure: Measure, config: ValidateConfig) -> float | None:
    return (
        config.min_label_agreement if config.min_label_agreement is not None else _above_chance(config.min_label_agreement_ratio, measure)
    )


def _class_limit(measure: Measure, config: ValidateConfig) -> float | None:
    """For one class of many: so low that a sound set misses it in any of its classes in at most `_CHANCE_MISS` of cases."""
    if config.min_class_agreement is not None:
        return config.min_class_agreement
    limit = _above_chance(config.min_class_agreement_ratio, measure)
    if limit is None or measure.floor is None or not measure.n:
        return limit
    classes = 1.0 / measure.chance if measure.chance else 1.0
    return min(limit, _missed_by_chance(measure.floor, trials=measure.n, classes=classes))


def _class_share_limit(ratio: Callable[[ValidateConfig], float]) -> Limit:
    """For the covered share of the real images of one class of many: as `_class_limit`, but with fewer trials than images.

    Real images are missed together with their neighbours, so that the tail for `n` of them is about that of n / `NEIGHBOURS` independent
    trials (`benchmarks/class_coverage.py`).
    """

    def limit(measure: Measure, config: ValidateConfig) -> float | None:
        if measure.floor is None or not measure.n:
            return None
        trials = max(1, measure.n // NEIGHBOURS)
        sure = min(measure.floor, 1 - 0.5 / measure.n)  # a floor of 1 from few images is not certain
        return min(ratio(config) * measure.floor, _missed_by_chance(sure, trials=trials, classes=measure.num_classes or 1))

    return limit


def _missed_by_chance(floor: float, *, trials: int, classes: float) -> float:
    """The share that one of `classes` sound classes falls below in at most `_CHANCE_MISS` of cases, of `trials` in each."""
    return float(binom.ppf(_CHANCE_MISS / classes, trials, floor)) / trials


def _at_least_floor(measure: Measure, accepted: float) -> float | None:
    """The `accepted` rate, but never less than that of real images; None without a floor."""
    return None if measure.floor is None else max(measure.floor, accepted)


RULES: Mapping[str, Rule] = {
    "failed_expectations": Rule(
        direction="at_most",
        limit=_constant(0.0),
        complaint="{value:.0f} expectations of the manifest failed, each named below and in expectations.json; none may",
    ),
    "undecodable": Rule(
        direction="at_most", limit=_constant(0.0), complaint="{value:.0f} of {n} images cannot be decoded; none may be damaged"
    ),
    "class_ratio": Rule(
        direction="at_most",
        limit=lambda measure, config: config.max_class_ratio,
        complaint="the largest class has {value:.2f} times the images of the smallest; at most {limit:g} times is accepted ({n} images)",
    ),
    "duplicate_fraction": Rule(
        direction="at_most",
        limit=lambda measure, config: config.max_duplicate_fraction,
        complaint="{value:.1%} of the {n} images repeat another one exactly; at most {limit:.1%} is accepted",
    ),
    "exact_train": Rule(
        direction="at_most",
        limit=_constant(0.0),
        complaint="{value:.0f} of {n} images are pixel for pixel images of the train split; none may be",
    ),
    "exact_val": Rule(
        direction="at_most",
        limit=_constant(0.0),
        complaint="{value:.0f} of {n} images are pixel for pixel images of the val split; none may be",
    ),
    "exact_test": Rule(
        direction="at_most",
        limit=_constant(0.0),
        complaint="{value:.0f} of {n} images are pixel for pixel images of the test split; none may be",
    ),
    "near_duplicate_fraction": Rule(
        direction="at_most",
        end="favourable",
        limit=lambda measure, config: None if measure.floor is None else measure.floor + config.max_near_duplicate_fraction,
        complaint="{value:.1%} (at least {bound:.1%}) of the {n} images repeat another but for encoding, size, mirroring or light; at most "
        "{limit:.1%} is accepted, of real images {floor:.1%} do",
    ),
    "near_val": Rule(
        direction="at_most",
        end="favourable",
        limit=lambda measure, config: measure.floor,
        complaint="{value:.2%} (at least {bound:.2%}) of the {n} images are val images but for encoding, size, mirroring or light; "
        "of real ones up to {limit:.2%} are, and no more is accepted",
    ),
    "near_test": Rule(
        direction="at_most",
        end="favourable",
        limit=lambda measure, config: measure.floor,
        complaint="{value:.2%} (at least {bound:.2%}) of the {n} images are test images but for encoding, size, mirroring or light; "
        "of real ones up to {limit:.2%} are, and no more is accepted",
    ),
    "near_train": Rule(
        direction="at_most",
        end="favourable",
        limit=lambda measure, config: _at_least_floor(measure, config.max_copy_fraction),
        complaint="{value:.1%} (at least {bound:.1%}) of the {n} images are training images but for encoding, size, mirroring or light "
        "({floor:.1%} of held-out real images are); at most {limit:.1%} is accepted",
    ),
    "copy_fraction": Rule(
        direction="at_most",
        end="favourable",
        limit=lambda measure, config: config.max_copy_fraction,
        complaint="{value:.1%} (at least {bound:.1%}) of the {n} images are closer to a training image than held-out real images come "
        "({floor:.1%} of those do); at most {limit:.1%} is accepted",
    ),
    "label_agreement": Rule(
        direction="at_least",
        limit=_label_limit,
        complaint="classifiers trained on real images confirm {value:.1%} (as low as {bound:.1%}) of {n} labels; "
        "at least {limit:.1%} is needed, unseen real images reach {floor:.1%}",
    ),
    "label_agreement_worst_class": Rule(
        direction="at_least",
        limit=_class_limit,
        complaint="in {the_class} that is confirmed least for its limit, {value:.1%} of {n} labels are; at least {limit:.1%} is needed, "
        "unseen real images of it reach {floor:.1%}",
        end="value",
    ),
    "fid": Rule(
        direction="at_most",
        limit=_ratio_of_floor(lambda config: config.fid_max_ratio),
        complaint="FID is {value:.3g} (up to {bound:.3g}), above {limit:.3g}; "
        "real images against real ones score {floor:.3g} with {n} images on each side",
    ),
    "coverage": Rule(
        direction="at_least",
        limit=_ratio_of_floor(lambda config: config.min_coverage_ratio),
        complaint="only {value:.1%} (as low as {bound:.1%}) of the real images have a synthetic one near them; "
        "at least {limit:.1%} is needed, real images against real ones reach {floor:.1%} with {n} images on each side",
    ),
    "coverage_worst_class": Rule(
        direction="at_least",
        end="value",
        optional=True,
        limit=_class_share_limit(lambda config: config.min_class_coverage_ratio),
        complaint="in {the_class} that is covered least for its limit, only {value:.1%} of the real images have a synthetic one near them; "
        "at least {limit:.1%} is needed, its real images against one another reach {floor:.1%} with {n} images on each side",
    ),
    "recall_worst_class": Rule(
        direction="at_least",
        end="value",
        optional=True,
        limit=_class_share_limit(lambda config: config.min_class_recall_ratio),
        complaint="in {the_class} that shows least of its variety, only {value:.1%} of the real images lie among the synthetic ones; "
        "at least {limit:.1%} is needed, its real images among one another reach {floor:.1%} with {n} images on each side",
    ),
    "mean_distance_worst_class": Rule(
        direction="at_least",
        end="value",
        optional=True,
        limit=_ratio_of_floor(lambda config: config.min_class_diversity),
        complaint="in {the_class} whose images are most alike, two of them differ by {value:.3g} on average; at least {limit:.3g} is "
        "needed, its real images differ by {floor:.3g}",
    ),
}


def rule_of(given: MetricLimit) -> Rule:
    """The rule of a limit in `validate.limits`, which always applies to the unfavourable end."""
    direction: Direction = "at_most" if given.at_most is not None else "at_least"
    number = given.at_most if given.at_most is not None else given.at_least
    assert number is not None, "a limit has a number"
    word, reach = ("above", "up to") if direction == "at_most" else ("below", "as low as")
    of = " times what real images against real ones score" if given.of_floor else ""
    complaint = f"{given.metric} is {{value:.4g}} ({reach} {{bound:.4g}}, on {{n}} images), {word} the {{limit:.4g}} of validate.limits"
    return Rule(
        direction=direction,
        limit=_ratio_of_floor(lambda config: number) if given.of_floor else _constant(number),
        complaint=complaint + (f", which is {number:g}{of} ({{floor:.4g}})" if given.of_floor else ""),
    )
