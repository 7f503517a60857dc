"""The class that decides: chosen by its own limit, not by its distance from its floor, and named."""

import numpy as np
import pytest

from gda.artifacts.verdict import Measure
from gda.config.sections import ValidateConfig
from gda.fidelity.compare import Comparison, compare_class
from gda.fidelity.intervals import Estimate
from gda.gate.measures import MeasuredWith
from gda.gate.verdict import apply_limits
from gda.gate.worst_class import worst_classes

ByMetric = dict[str, Comparison]


def compared(value: float, floor: float = 0.9, n: int = 50) -> Comparison:
    known = (Estimate(value=number, low=number, high=number) for number in (value, floor))
    return Comparison(estimate=next(known), floor=next(known), n=n)


def of_class(n: int = 50, **values: Comparison) -> ByMetric:
    """A sound class but for what is given."""
    usual = {
        "kid": compared(0.0, 0.0, n),
        "coverage": compared(0.9, n=n),
        "recall": compared(0.9, n=n),
        "mean_distance": compared(5.0, 5.0, n),
    }
    return usual | values


def worst(by_class: list[ByMetric | None], **config: float) -> dict[str, Measure]:
    given = ValidateConfig(**config)  # type: ignore[arg-type]
    return apply_limits(worst_classes(by_class, list("abcdef")[: len(by_class)], given, measured=MeasuredWith(extractor="x")), given)


def test_the_class_that_misses_its_limit_decides_though_another_is_further_below_its_floor() -> None:
    """Few images make a class vary, and lower its limit: it must not hide a class of many that has collapsed by a little less."""
    few, many = of_class(8, coverage=compared(0.15, n=8)), of_class(100, coverage=compared(0.2, n=100))
    found = worst([few, many, of_class()])["coverage_worst_class"]
    assert (found.class_name, found.value, found.passed, found.num_classes) == ("b", 0.2, False, 3)
    assert worst([few, of_class()])["coverage_worst_class"].passed is True


@pytest.mark.parametrize("metric", ["coverage", "recall"])
def test_a_class_with_a_lower_floor_does_not_hide_one_below_its_limit(metric: str) -> None:
    """The limit is a share of the floor, so the distance from the floor says nothing of it."""
    low, high = of_class(**{metric: compared(0.05, 0.3)}), of_class(**{metric: compared(0.1, 0.95)})
    config = {f"min_class_{metric}_ratio": 0.16}
    found = worst([of_class(), high, low], **config)[f"{metric}_worst_class"]
    assert (found.class_name, found.passed) == ("b", False)


def test_each_metric_has_a_worst_class_of_its_own() -> None:
    """Every one is named, with the number of classes that were measured; those with too few images are none of them."""
    classes = [
        of_class(kid=compared(2.0, 0.0)),
        of_class(recall=compared(0.1)),
        None,
        of_class(mean_distance=compared(2.0, 5.0)),
        of_class(),
    ]
    classes += [of_class(coverage=compared(0.1))]
    found = worst(classes)
    names = {name: (measure.class_name, measure.passed) for name, measure in found.items()}
    assert names == {
        "kid_worst_class": ("a", None),
        "recall_worst_class": ("b", False),
        "mean_distance_worst_class": ("d", False),
        "coverage_worst_class": ("f", False),
    }
    assert {measure.num_classes for measure in found.values()} == {5}
    assert worst([None, None]) == {}


@pytest.mark.parametrize("metric", ["kid", "coverage", "recall", "mean_distance"])
@pytest.mark.parametrize("which", ["value", "floor"])
def test_a_number_that_is_missing_is_no_pass(metric: str, which: str) -> None:
    """A class whose number is NaN is the worst, whatever the others are."""
    broken = compared(float("nan")) if which == "value" else compared(0.9, float("nan"))
    found = worst([of_class(), of_class(**{metric: broken}), of_class(**{metric: compared(0.0)})])[f"{metric}_worst_class"]
    assert found.class_name == "b"
    assert (found.value is None) is (which == "value")
    assert found.passed is (None if metric == "kid" else False)


def features(rng: np.random.Generator, n: int) -> np.ndarray:
    """Skewed features [n, 16] with a falling spectrum."""
    return (rng.gamma(2.0, size=(n, 16)) - 2.0) * np.arange(1, 17) ** -0.75


def failed_metrics(synthetic: list[np.ndarray], real: list[np.ndarray]) -> set[str]:
    """The metrics that refuse a set of these classes."""
    pairs = enumerate(zip(synthetic, real, strict=True))
    found = worst([compare_class(generated, reference, seed=number, repeats=5) for number, (generated, reference) in pairs])
    return {name for name, measure in found.items() if measure.passed is False}


def test_a_class_of_a_few_pictures_is_refused_and_sound_ones_are_not() -> None:
    """Three pictures with jitter lie as far apart as real images do, and near many of them: recall is low."""
    rng = np.random.default_rng(0)
    real, fresh = ([features(rng, n) for _ in range(6)] for n in (70, 100))
    assert failed_metrics(fresh, real) == set()
    three = np.repeat(fresh[0][:3], 33, axis=0) + rng.normal(0, 0.02, (99, 16))
    assert "recall_worst_class" in failed_metrics([three, *fresh[1:]], real)
    elsewhere = fresh[0] + 2.0
    assert "coverage_worst_class" in failed_metrics([elsewhere, *fresh[1:]], real)


@pytest.mark.parametrize("n", [5, 10])
def test_sound_classes_are_seldom_refused(n: int) -> None:
    """Simulated, 200 sound classes of few images, ten a set: none is refused for coverage or recall."""
    rng = np.random.default_rng(n)
    classes = [compare_class(features(rng, n), features(rng, 2 * n), seed=number, repeats=5) for number in range(200)]
    for start in range(0, 200, 10):
        found = worst_classes(classes[start : start + 10], list("abcdefghij"), ValidateConfig(), measured=MeasuredWith())
        assert all(apply_limits(found, ValidateConfig())[f"{name}_worst_class"].passed for name in ("coverage", "recall"))
