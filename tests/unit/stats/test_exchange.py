"""The exchange rate: known answers on curves that are known, open ends beyond them, and an interval that holds what it promises."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gda.stats.exchange import ExchangeRate, LearningCurve, exchange_rate, fit_learning_curve

SIZES = np.array([100, 200, 400, 800, 1600])
TRUE = LearningCurve(ceiling=0.95, scale=0.2, exponent=0.5, unit=400.0)
CURVES = st.builds(
    LearningCurve,
    ceiling=st.floats(0.5, 1.0),
    scale=st.floats(0.05, 0.3),
    exponent=st.floats(0.1, 1.5),
    unit=st.just(400.0),  # the geometric mean of SIZES
)


def table(curve: LearningCurve, seeds: int = 6) -> np.ndarray:
    """Accuracies [seeds, sizes] without any noise."""
    return np.tile([curve.accuracy(size) for size in SIZES], (seeds, 1))


def rate_of(real: np.ndarray, mixed: np.ndarray, **changes: Any) -> ExchangeRate:
    given: dict[str, Any] = {"num_real": 400, "num_synthetic": 1000, "num_resamples": 300} | changes
    return exchange_rate(SIZES, real, mixed, np.random.default_rng(0), **given)


@settings(max_examples=60, deadline=None)
@given(curve=CURVES)
def test_a_curve_without_noise_is_found_again(curve: LearningCurve) -> None:
    """Protects the fit: the power law that made the points is the one that is returned."""
    found = fit_learning_curve(SIZES, table(curve)[0])
    assert [found.accuracy(size) for size in SIZES] == pytest.approx(table(curve)[0].tolist(), abs=1e-5)
    assert found.exponent == pytest.approx(curve.exponent, rel=0.01)
    assert (found.ceiling, found.scale) == pytest.approx((curve.ceiling, curve.scale), abs=0.01)


@settings(max_examples=60, deadline=None)
@given(curve=CURVES, worth=st.floats(40, 4000))
def test_images_worth_a_known_number_are_worth_that(curve: LearningCurve, worth: float) -> None:
    """Protects the inversion: an accuracy that `worth` real images would give is reported as that many, per synthetic image too."""
    found = rate_of(table(curve), np.full(6, curve.accuracy(worth)), num_resamples=20)
    assert found.equivalent == pytest.approx(worth, rel=0.02)
    assert found.rate == (found.equivalent - 400) / 1000
    assert found.ci95 == pytest.approx((found.rate, found.rate), abs=1e-6)


def test_images_without_effect_are_worth_nothing() -> None:
    """Protects the zero of the scale: the accuracy of the real images alone is a rate of 0, less is negative."""
    assert rate_of(table(TRUE), np.full(6, TRUE.accuracy(400))).rate == pytest.approx(0.0, abs=1e-3)
    assert rate_of(table(TRUE), np.full(6, TRUE.accuracy(200))).rate == pytest.approx(-0.2, abs=1e-3)


@pytest.mark.parametrize(
    ("accuracy", "end"),
    [(TRUE.accuracy(1600 * 4.1), math.inf), (0.95, math.inf), (0.99, math.inf), (TRUE.accuracy(100 / 4.1), -math.inf), (0.0, -math.inf)],
)
def test_ends_beyond_what_was_trained_are_open(accuracy: float, end: float) -> None:
    """Protects against a number of real images that was read off a curve far from any size that was tried, or above its ceiling."""
    found = rate_of(table(TRUE), np.full(6, accuracy))
    assert (found.equivalent, found.rate, *found.ci95) == (end,) * 4
    assert found.searched == (25.0, 6400.0)


def test_a_wider_trust_closes_an_end() -> None:
    """Protects the stated factor: it is the caller's, and what lies inside it is a number."""
    mixed = np.full(6, TRUE.accuracy(1600 * 4.1))
    assert rate_of(table(TRUE), mixed, farthest=8.0).equivalent == pytest.approx(1600 * 4.1, rel=0.01)


def noisy(rng: np.random.Generator, worth: float, sd: float, seeds: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies of curve and arm with noise of the seed in each."""
    truth = np.append(table(TRUE)[0], TRUE.accuracy(worth))
    drawn = truth + rng.normal(0, sd, (seeds, len(truth)))
    return drawn[:, :-1], drawn[:, -1]


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Protects the interval from being too short with six seeds; 95% of 200, less what chance allows."""
    rng = np.random.default_rng(7)
    inside = 0
    for _ in range(200):
        real, mixed = noisy(rng, 800, 0.004)
        low, high = exchange_rate(SIZES, real, mixed, rng, num_real=400, num_synthetic=1000, num_resamples=400).ci95
        inside += low <= 0.4 <= high
    assert inside >= stats.binom.ppf(0.001, 200, 0.95)


def test_more_noise_widens_and_opens_the_interval() -> None:
    """Protects against an interval that does not come from the seeds: from a point, to a range, to one without an upper end."""
    widths = []
    for sd in (0.0, 0.002, 0.01):
        low, high = rate_of(*noisy(np.random.default_rng(8), 3000, sd)).ci95
        widths.append(high - low)
    assert widths[0] < 1e-6 < widths[1] < widths[2] == math.inf


def test_seeds_are_resampled_as_one_for_curve_and_arm() -> None:
    """Protects the pairing: luck that lifts a seed at every size and in the arm alike says nothing about images, and must not widen."""
    luck = np.random.default_rng(9).normal(0, 0.01, (6, 1))
    alike = rate_of(table(TRUE) + luck, np.full(6, TRUE.accuracy(800)) + luck[:, 0])
    apart = rate_of(table(TRUE) + luck, np.full(6, TRUE.accuracy(800)) - luck[:, 0])
    assert alike.ci95 == pytest.approx((0.4, 0.4), abs=0.01)
    assert apart.ci95[1] - apart.ci95[0] > 0.1


def test_a_curve_that_may_be_flat_opens_both_ends() -> None:
    """Protects against certainty from resamples in which real images are worth nothing: they could be above as well as below."""
    rng = np.random.default_rng(10)
    real = 0.7 + 0.001 * np.arange(5) + rng.normal(0, 0.01, (6, 5))
    found = rate_of(real, real[:, 2] + rng.normal(0, 0.01, 6))
    assert found.ci95 == (-math.inf, math.inf)


def test_the_order_of_sizes_does_not_matter() -> None:
    """Protects against a curve that depends on how its points are listed."""
    real, mixed = noisy(np.random.default_rng(11), 800, 0.004)
    backwards = exchange_rate(
        SIZES[::-1], real[:, ::-1], mixed, np.random.default_rng(0), num_real=400, num_synthetic=1000, num_resamples=300
    )
    assert backwards.ci95 == pytest.approx(rate_of(real, mixed).ci95)


def test_no_curve_with_an_accuracy_for_its_ceiling_is_nearer() -> None:
    """Protects against following points that rise as a straight line in log n above accuracy 1, or stopping there with a poorer fit."""
    rising = np.array([0.6, 0.7, 0.8, 0.9, 0.99])
    found = fit_learning_curve(SIZES, rising)
    assert found.ceiling == 1.0
    exponents, scales = np.meshgrid(np.linspace(0.05, 2, 400), np.linspace(0.01, 0.6, 400))
    powers = (SIZES / found.unit) ** -exponents[..., None]
    others = [((ceiling - scales[..., None] * powers - rising) ** 2).sum(-1).min() for ceiling in (0.9, 0.95, 0.99, 1.0)]
    assert sum((found.accuracy(size) - reached) ** 2 for size, reached in zip(SIZES, rising, strict=True)) <= min(others)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"real": np.full((6, 5), 0.7)}, "does not rise"),
        ({"real": table(TRUE)[:, ::-1]}, "does not rise"),
        ({"real": table(TRUE)[:, :4]}, "at 5 sizes, got 6 x 4"),
        ({"real": table(TRUE)[:1], "mixed": np.full(1, 0.8)}, "two seeds or more"),
        ({"mixed": np.full(6, math.nan)}, "finite"),
        ({"num_synthetic": 0}, "at least one real and one synthetic"),
        ({"farthest": 0.5}, "a factor of 1 or more"),
        ({"farthest": math.nan}, "a factor of 1 or more"),
    ],
)
def test_what_cannot_be_answered_is_refused(changes: dict[str, Any], message: str) -> None:
    """Protects against a rate from data that hold none."""
    with pytest.raises(ValueError, match=message):
        rate_of(**({"real": table(TRUE), "mixed": np.full(6, 0.8)} | changes))


@pytest.mark.parametrize("sizes", [[100, 200], [100, 100, 200], [0, 100, 200]])
def test_three_sizes_are_needed(sizes: list[int]) -> None:
    """Protects against three parameters from two points."""
    with pytest.raises(ValueError, match="three different sizes"):
        fit_learning_curve(np.array(sizes), np.linspace(0.5, 0.8, len(sizes)))
