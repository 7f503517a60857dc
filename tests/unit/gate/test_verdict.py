"""The gate alone: pure, by the unfavourable end of an interval, and closed to everything that is not a number."""

import math

import numpy as np
import pytest

from gda.artifacts.verdict import Measure
from gda.config.load import parse_config
from gda.config.sections import ValidateConfig
from gda.errors import ConfigError
from gda.gate.limits import RULES
from gda.gate.verdict import apply_limits, assess, limit_of

CONFIG = ValidateConfig(fid_max_ratio=6.0, min_label_agreement=0.8, min_class_agreement=0.5, min_coverage_ratio=0.3)


def sound() -> dict[str, Measure]:
    """Measures that pass every rule."""
    measures = {name: Measure(value=0.0, n=100) for name in RULES}
    return measures | {
        "class_ratio": Measure(value=1.0),
        "label_agreement": Measure(value=0.97, low=0.95, high=0.98, floor=0.96, chance=0.1),
        "label_agreement_worst_class": Measure(value=0.9, low=0.8, high=0.95, floor=0.95, chance=0.1, n=40),
        "near_duplicate_fraction": Measure(value=0.01, floor=0.01),
        "near_train": Measure(value=0.0, low=0.0, high=0.004, floor=0.0),
        "near_val": Measure(value=0.0, low=0.0, high=0.004, floor=0.0),
        "near_test": Measure(value=0.0, low=0.0, high=0.004, floor=0.0),
        "copy_fraction": Measure(value=0.01, low=0.0, high=0.02, floor=0.01),
        "fid": Measure(value=2.0, low=1.5, high=2.5, floor=1.0, n=350),
        "coverage": Measure(value=0.8, low=0.7, high=0.9, floor=0.9),
        "coverage_worst_class": Measure(value=0.7, low=0.1, high=0.9, floor=0.9, n=50, class_name="red", num_classes=10),
        "recall_worst_class": Measure(value=0.6, low=0.1, high=0.9, floor=0.9, n=50, class_name="red", num_classes=10),
        "mean_distance_worst_class": Measure(value=6.0, low=4.0, high=7.0, floor=9.0),
        "kid": Measure(value=0.1),
    }


def test_sound_measures_pass_without_reasons() -> None:
    """The base of every test below: what is refused there is refused for the change alone."""
    assert assess(sound(), CONFIG) == (True, ())


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("broken", [None, math.nan, math.inf, "absent"])
def test_every_metric_that_is_not_a_number_refuses(name: str, broken: object) -> None:
    """Missing, null, NaN or infinite: each fails closed, and the reason names the metric."""
    if broken == "absent" and RULES[name].optional:
        pytest.skip("sets with a handful of images per class do not have it; the next test covers that")
    measures = sound()
    if broken == "absent":
        del measures[name]
    else:
        measures[name] = measures[name].model_copy(update={"value": broken})
    passed, reasons = assess(measures, CONFIG)
    assert not passed
    assert any(name in reason and "counts as failed" in reason for reason in reasons)


def test_only_what_small_sets_cannot_have_may_be_absent() -> None:
    """What is measured within a class needs enough images for a floor; a few-shot set is assessed by the rest."""
    measures = sound()
    within = ["coverage_worst_class", "recall_worst_class", "mean_distance_worst_class"]
    for name in within:
        del measures[name]
    assert assess(measures, CONFIG) == (True, ())
    assert [name for name, rule in RULES.items() if rule.optional] == within


@pytest.mark.parametrize("name", ["fid", "coverage", "label_agreement", "copy_fraction"])
@pytest.mark.parametrize("end", ["low", "high"])
def test_a_nan_end_of_an_interval_refuses(name: str, end: str) -> None:
    """The limit applies to the end, so it must be a number too."""
    measures = sound()
    measures[name] = measures[name].model_copy(update={end: math.nan})
    assert not assess(measures, CONFIG)[0]
    assert apply_limits(measures, CONFIG)[name].passed is False


@pytest.mark.parametrize("floor", [None, math.nan])
@pytest.mark.parametrize(
    "name",
    ["fid", "coverage", "near_test", "near_val", "near_train", "near_duplicate_fraction", "coverage_worst_class", "recall_worst_class"],
)
def test_a_missing_floor_refuses(name: str, floor: float | None) -> None:
    """A limit that is a multiple of nothing is no limit."""
    measures = sound()
    measures[name] = measures[name].model_copy(update={"floor": floor})
    passed, reasons = assess(measures, CONFIG)
    assert not passed
    assert reasons == (f"{name} has no real-against-real floor to compare with",)


def limited(**limit: object) -> ValidateConfig:
    return ValidateConfig.model_validate(CONFIG.model_dump() | {"limits": [{"metric": "recall", **limit}]}, strict=False)


RECALL = Measure(value=0.5, low=0.4, high=0.6, floor=0.8, n=350)


@pytest.mark.parametrize(
    ("limit", "passed", "reason"),
    [
        ({"at_least": 0.4}, True, ""),
        ({"at_least": 0.41}, False, "recall is 0.5 (as low as 0.4, on 350 images), below the 0.41 of validate.limits"),
        ({"at_most": 0.6}, True, ""),
        ({"at_most": 0.59}, False, "recall is 0.5 (up to 0.6, on 350 images), above the 0.59 of validate.limits"),
        ({"at_least": 0.5, "of_floor": True}, True, ""),
        (
            {"at_least": 0.75, "of_floor": True},
            False,
            "recall is 0.5 (as low as 0.4, on 350 images), below the 0.6 of validate.limits, "
            "which is 0.75 times what real images against real ones score (0.8)",
        ),
    ],
)
def test_a_limit_on_any_metric_is_absolute_or_relative_to_the_floor(limit: dict[str, object], passed: bool, reason: str) -> None:
    """A limit of the configuration is applied and shown like the rules."""
    measures, config = sound() | {"recall": RECALL}, limited(**limit)
    assert assess(measures, config) == (passed, (reason,) if reason else ())
    assert apply_limits(measures, config)["recall"].passed is passed


def test_a_limit_without_a_floor_refuses() -> None:
    """On a metric that was not measured, or a multiple of a floor that is not known: never a pass."""
    assert assess(sound(), limited(at_most=1.0)) == (False, ("could not be measured, which counts as failed: recall",))
    unfloored = {"recall": RECALL.model_copy(update={"floor": None})}
    passed, reasons = assess(sound() | unfloored, limited(at_most=9.0, of_floor=True))
    assert (passed, reasons) == (False, ("recall has no real-against-real floor to compare with",))


def test_a_limit_of_a_metric_with_a_rule_adds_to_it() -> None:
    """A limit never loosens a rule, whichever of the two is kept."""
    lax = ValidateConfig.model_validate(CONFIG.model_dump() | {"limits": [{"metric": "fid", "at_most": 99.0}]}, strict=False)
    measures = sound() | {"fid": Measure(value=9.0, low=8.0, high=10.0, floor=1.0, n=350)}
    assert not assess(measures, lax)[0]
    assert apply_limits(measures, lax)["fid"].limit == 6.0
    assert apply_limits(sound(), lax)["fid"].limit == 6.0
    strict = ValidateConfig.model_validate(CONFIG.model_dump() | {"limits": [{"metric": "fid", "at_most": 1.0}]}, strict=False)
    assert not assess(sound(), strict)[0]
    assert apply_limits(sound(), strict)["fid"].limit == 1.0


@pytest.mark.parametrize("limit", [{}, {"at_most": 1.0, "at_least": 0.5}])
def test_a_limit_has_exactly_one_number(limit: dict[str, float]) -> None:
    """Neither none nor two, which would leave one of them unheard."""
    with pytest.raises(ConfigError, match="limit of 'kid': give either at_most or at_least"):
        parse_config({"validate": {"limits": [{"metric": "kid", **limit}]}}, where="test")


def test_nothing_at_all_refuses() -> None:
    """An empty verdict is not a pass."""
    assert not assess({}, CONFIG)[0]


def test_a_reported_metric_that_broke_refuses() -> None:
    """KID has no limit, but a KID that could not be computed says that something is wrong."""
    passed, reasons = assess(sound() | {"kid": Measure(value=None)}, CONFIG)
    assert not passed
    assert "kid" in reasons[0]


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("fid", {"high": 6.0}, {"high": 6.001}),  # 6 x the floor of 1
        ("copy_fraction", {"low": 0.05}, {"low": 0.0501}),
        ("near_train", {"low": 0.05}, {"low": 0.0501}),
        ("near_train", {"low": 0.07, "floor": 0.07}, {"low": 0.0701, "floor": 0.07}),
        ("label_agreement_worst_class", {"value": 0.5, "low": 0.3}, {"value": 0.499, "high": 0.7}),
        ("label_agreement", {"low": 0.8}, {"low": 0.799}),
        ("coverage", {"low": 0.27}, {"low": 0.2699}),
        ("coverage_worst_class", {"value": 0.225, "low": 0.0}, {"value": 0.2249, "high": 0.9}),  # a quarter of the floor
        ("recall_worst_class", {"value": 0.135, "low": 0.0}, {"value": 0.1349, "high": 0.9}),  # 15% of the floor
        ("mean_distance_worst_class", {"value": 4.5, "low": 1.0}, {"value": 4.499, "high": 9.0}),  # half of the floor of 9
        ("near_duplicate_fraction", {"value": 0.05, "low": 0.03}, {"value": 0.05, "low": 0.0301}),  # 2% above the floor of 1%
        ("near_test", {"low": 0.0, "value": 0.001}, {"low": 0.0001, "value": 0.001}),
        ("class_ratio", {"value": 1.5}, {"value": 1.51}),
        ("exact_test", {"value": 0.0}, {"value": 1.0}),
    ],
)
def test_the_limit_is_compared_with_the_right_end(name: str, good: dict[str, float], bad: dict[str, float]) -> None:
    """A set must be shown to be sound: the bad end decides; near matches refuse only when they are clearly above the real rate."""
    measures = sound()
    assert assess(measures | {name: measures[name].model_copy(update=good)}, CONFIG)[0]
    passed, reasons = assess(measures | {name: measures[name].model_copy(update=bad)}, CONFIG)
    assert not passed
    assert len(reasons) == 1


def test_limits_and_outcomes_are_written_into_the_measures() -> None:
    """The report shows what each metric was held against."""
    limited = apply_limits(sound(), CONFIG)
    assert (limited["fid"].limit, limited["fid"].passed) == (6.0, True)
    assert (limited["kid"].limit, limited["kid"].passed) == (None, None)
    assert all(limited[name].passed for name in RULES)


def test_reasons_are_sentences_with_the_numbers() -> None:
    """A person must see what was found, what is accepted and what real images score."""
    measures = sound()
    _, reasons = assess(measures | {"fid": Measure(value=9.0, low=8.0, high=10.0, floor=1.0, n=350)}, CONFIG)
    assert reasons == ("FID is 9 (up to 10), above 6; real images against real ones score 1 with 350 images on each side",)


RELATIVE = ValidateConfig(fid_max_ratio=6.0, min_coverage_ratio=0.3)


@pytest.mark.parametrize(
    ("value", "floor", "chance", "passed"),
    [
        (0.764, 0.764, 0.001, True),  # as good as real images of ImageNet
        (0.84, 0.764, 0.001, True),
        (0.66, 0.764, 0.001, False),
        (0.86, 0.96, 0.1, True),  # about where the limit was, at the floor of easy sets
        (0.84, 0.96, 0.1, False),
        (0.99, 0.99, 0.5, True),
        (0.5, 0.51, 0.5, False),  # labels at random, of classes that are hardly recognised
        (0.1, 0.104, 0.1, False),
        (0.99, 0.1, 0.1, False),  # classifiers that know nothing confirm nothing
    ],
)
def test_agreement_of_labels_is_held_against_that_of_real_images(value: float, floor: float, chance: float, passed: bool) -> None:
    """A set as good as real images is accepted however hard these are to tell, and labels at random are refused however hard."""
    measured = Measure(value=value, low=value - 0.002, high=value + 0.002, floor=floor, chance=chance, n=100_000)
    assert assess(sound() | {"label_agreement": measured}, RELATIVE)[0] is passed


@pytest.mark.parametrize(
    ("value", "floor", "n", "passed"),
    [
        (0.55, 0.5, 500, True),  # hard to recognise, and recognised as often as its real images
        (0.4, 0.5, 500, True),
        (0.3, 0.5, 500, False),
        (0.55, 0.97, 500, False),
        (0.2, 0.5, 10, True),  # two of ten: one sound class of ten has as few often enough
        (0.0, 0.5, 10, False),
        (0.5, 0.97, 10, False),  # of ten that are easily recognised, half are not missed by chance
        (0.1, 0.1, 500, False),
    ],
)
def test_a_class_is_held_against_its_own_real_images(value: float, floor: float, n: int, passed: bool) -> None:
    """A class that real images show to be hard is not refused for it, nor a small one for what chance makes of the worst of many."""
    measured = Measure(value=value, low=0.0, high=1.0, floor=floor, chance=0.1, n=n)
    assert assess(sound() | {"label_agreement_worst_class": measured}, RELATIVE)[0] is passed


def test_sound_sets_are_seldom_refused_for_the_worst_of_many_small_classes() -> None:
    """Simulated: of sets with ten images per class, each confirmed as often as real ones are, one in a hundred may be refused."""
    floors = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.95, 0.95, 0.99, 0.99]
    limits = [limit_of("label_agreement_worst_class", Measure(value=1.0, floor=f, chance=0.1, n=10), RELATIVE) for f in floors]
    shares = np.random.default_rng(0).binomial(10, floors, size=(3000, 10)) / 10
    refused = float((shares < np.array(limits)).any(axis=1).mean())
    assert refused <= 0.016  # one in a hundred, and three standard errors of 3,000 sets
    assert float((shares * 0.5 < np.array(limits)).any(axis=1).mean()) > 0.9  # half as often confirmed is found


def test_an_absolute_limit_of_labels_takes_the_place_of_the_ratio() -> None:
    """Files that state one mean what they meant, at any floor."""
    low = Measure(value=0.764, low=0.763, high=0.765, floor=0.764, chance=0.001, n=100_000)
    passed, reasons = assess(sound() | {"label_agreement": low}, CONFIG)
    assert (passed, "at least 80.0% is needed" in reasons[0]) == (False, True)
    assert assess(sound() | {"label_agreement": low.model_copy(update={"value": 0.81, "low": 0.8})}, CONFIG)[0]


def test_classifiers_that_know_nothing_are_named() -> None:
    """The complaint is of the floor, not of the set."""
    blind = Measure(value=0.9, low=0.89, high=0.91, floor=0.1, chance=0.1, n=1000)
    assert assess(sound() | {"label_agreement": blind}, RELATIVE)[1] == (
        "label_agreement: unseen real images reach 10.0%, no more than labels given at random, so labels cannot be checked",
    )


@pytest.mark.parametrize(
    ("n", "classes", "limit"),
    [
        (100, 10, 0.225),
        (100, 1000, 0.225),
        (25, 1000, 0.225),
        (18, 10, 0.225),
        (18, 1000, 1 / 6),
        (10, 1000, 0.0),
        (5, 10, 0.0),
        (5, None, 0.0),
        (None, 10, None),
    ],
)
def test_the_coverage_of_a_class_is_held_against_what_a_sound_one_reaches(n: int | None, classes: int | None, limit: float | None) -> None:
    """The fewer the images and the more the classes, the lower the limit, down to none; a measure that does not say its n has none."""
    found = limit_of("coverage_worst_class", Measure(value=0.5, floor=0.9, n=n, num_classes=classes), RELATIVE)
    assert found == (None if limit is None else pytest.approx(limit))


def test_a_floor_of_one_does_not_make_chance_impossible() -> None:
    """With five images on each side, real ones may all cover one another, which a sound set need not repeat."""
    assert limit_of("recall_worst_class", Measure(value=0.1, floor=1.0, n=5, num_classes=10), RELATIVE) == 0.0
    assert limit_of("recall_worst_class", Measure(value=0.1, floor=1.0, n=100, num_classes=10), RELATIVE) == pytest.approx(0.15)


@pytest.mark.parametrize("name", ["coverage_worst_class", "recall_worst_class", "label_agreement_worst_class", "mean_distance_worst_class"])
def test_a_reason_names_the_class(name: str) -> None:
    """The message names the worst class; a verdict of an earlier version has no name for it."""
    collapsed = sound()[name].model_copy(update={"value": 0.04, "class_name": "seven"})
    assert assess(sound() | {name: collapsed}, RELATIVE)[1][0].startswith("in seven, the class ")
    unnamed = collapsed.model_copy(update={"class_name": None})
    assert assess(sound() | {name: unnamed}, RELATIVE)[1][0].startswith("in the class ")
