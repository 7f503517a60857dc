"""The exchange rate: known answers whatever the curve, open ends beyond what was measured, and an interval that holds what it promises."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gda.stats.exchange import ExchangeRate, exchange_rate

SIZES = np.array([100, 200, 400, 800, 1600])
Curve = Callable[[Any], Any]
CURVES: dict[str, Curve] = {
    "power law": lambda n: 0.95 - 0.2 * (n / 400) ** -0.5,
    "logistic in log n": lambda n: 0.3 + 0.6 / (1 + (n / 400) ** -2.0),
    "broken power law": lambda n: np.where(n < 400, 0.95 - 0.45 * (n / 400) ** -0.1, 0.95 - 0.45 * (n / 400) ** -0.8),
    "saturating exponential": lambda n: 0.9 - 0.6 * np.exp(-n / 400),
    "step": lambda n: 0.5 + 0.4 / (1 + (n / 600) ** -16.0) + 0.01 * np.log(n / 100),
}
TRUE = CURVES["power law"]


def sampled(curve: Curve, worth: float, sd: float, rng: np.random.Generator, seeds: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies of real alone [seeds, sizes] and of an arm worth `worth` real images [seeds], with noise of the seed in each."""
    truth = np.asarray(curve(np.append(SIZES, worth).astype(np.float64)))
    noisy = truth + rng.normal(0, sd, (seeds, len(truth)))
    return noisy[:, :-1], noisy[:, -1]


def rate_of(real: np.ndarray, mixed: np.ndarray, sizes: np.ndarray = SIZES, **changes: Any) -> ExchangeRate:
    return exchange_rate(sizes, real, mixed, **({"num_real": 400, "num_synthetic": 1000} | changes))


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("name", CURVES)
def test_the_interval_holds_the_truth_whatever_the_curve(name: str, seeds: int) -> None:
    """Protects against an interval that is right for one family of curves alone: a power law held it never to seven times in a hundred."""
    rng, repeats = np.random.default_rng([seeds, *map(ord, name)]), 150
    for worth in (150, 400, 1400, 3000):
        found = [rate_of(*sampled(CURVES[name], worth, 0.005, rng, seeds)).ci95 for _ in range(repeats)]
        inside = sum(low <= (worth - 400) / 1000 <= high for low, high in found)
        assert inside >= stats.binom.ppf(0.001, repeats, 0.95), worth


def test_the_interval_is_no_wider_than_the_measured_sizes_make_it() -> None:
    """Protects against covering the truth by stating nothing: between two sizes that clearly differ, those two are the ends."""
    rng = np.random.default_rng(7)
    found = [rate_of(*sampled(CURVES["logistic in log n"], 1100, 0.005, rng)).ci95 for _ in range(100)]
    assert found.count((0.4, 1.2)) >= 95


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(CURVES)), worth=st.floats(100, 1600), seed=st.integers(0, 99))
def test_the_rate_lies_in_its_interval(name: str, worth: float, seed: int) -> None:
    """Protects against a number outside its own interval, or outside the two sizes between which the arm lies."""
    found = rate_of(*sampled(CURVES[name], worth, 0.004, np.random.default_rng(seed)))
    assert found.ci95[0] <= found.rate <= found.ci95[1]
    exact = rate_of(*sampled(CURVES[name], worth, 1e-9, np.random.default_rng(seed)))
    below, above = SIZES[worth + 1e-6 >= SIZES].max(), SIZES[worth - 1e-6 <= SIZES].min()
    inside = bool(below <= 1.001 * exact.equivalent and exact.equivalent <= 1.001 * above)
    assert inside or worth == pytest.approx(SIZES[[0, -1]][int(worth > 800)], rel=1e-3)


def test_images_worth_a_known_number_are_worth_that() -> None:
    """Protects the number itself: accuracies on a straight line in log n give it exactly, per synthetic image too."""
    line = 0.5 + 0.1 * np.log2(SIZES / 100)
    real = np.tile(line, (4, 1)) + np.array([[-0.01], [0.0], [0.0], [0.01]])
    for worth in (100, 282.84271, 400, 1600):
        found = rate_of(real, real[:, 0] + 0.1 * math.log2(worth / 100) - 1e-12 * (worth == 1600) + 1e-12 * (worth == 100))
        assert found.equivalent == pytest.approx(worth, rel=1e-6)
        assert found.rate == (found.equivalent - 400) / 1000


def test_a_flat_stretch_is_met_in_its_middle() -> None:
    """Protects against a number of images that hangs on which end of a plateau a search comes to first."""
    real = np.tile([0.5, 0.6, 0.7, 0.7, 0.8], (3, 1))
    assert rate_of(real, np.full(3, 0.7)).equivalent == pytest.approx(math.sqrt(400 * 800))


@pytest.mark.parametrize(("worth", "end"), [(6000, math.inf), (25, -math.inf)])
def test_beyond_what_was_trained_nothing_is_extrapolated(worth: float, end: float) -> None:
    """Protects against a number of real images that no training has tried: only "more than" or "less than" the last size is stated."""
    found = rate_of(*sampled(TRUE, worth, 0.002, np.random.default_rng(1)))
    assert (found.equivalent, found.rate) == (end, end)
    assert found.ci95 == ((1.2, math.inf) if end > 0 else (-math.inf, -0.3))


def test_more_noise_widens_and_opens_the_interval() -> None:
    """Protects against an interval that does not come from the seeds."""
    narrow, wide, open_ = (rate_of(*sampled(TRUE, 600, sd, np.random.default_rng(8))).ci95 for sd in (0.002, 0.03, 0.4))
    assert narrow == (0.0, 0.4)
    assert wide[0] <= 0.0 < 0.4 <= wide[1] != wide[0] + 0.4
    assert math.inf in (-open_[0], open_[1])


def test_seeds_are_compared_with_themselves() -> None:
    """Protects the pairing: luck that lifts a seed at every size and in the arm alike says nothing about images, and must not widen."""
    luck = np.random.default_rng(9).normal(0, 0.05, (6, 1))
    real, mixed = sampled(TRUE, 600, 0.002, np.random.default_rng(10), seeds=6)
    assert rate_of(real + luck, mixed + luck[:, 0]).ci95 == (0.0, 0.4)
    assert rate_of(real + luck, mixed - luck[:, 0]).ci95[1] == math.inf


def test_seeds_that_agree_by_chance_prove_nothing() -> None:
    """Protects few seeds: accuracies are multiples of one test image, so two that agree to the last digit have no spread to go by."""
    real = np.tile([0.5, 0.6, 0.7, 0.8, 0.9], (2, 1))
    assert rate_of(real, np.full(2, 0.75)).ci95 == (-math.inf, math.inf)


def test_a_curve_that_rises_too_little_to_tell_opens_both_ends() -> None:
    """Protects against certainty from a curve on which every size is as good as any other."""
    rng = np.random.default_rng(10)
    real = 0.7 + 0.0001 * np.arange(5) + rng.normal(0, 0.01, (6, 5))
    assert rate_of(real, real[:, 2] + rng.normal(0, 0.01, 6)).ci95 == (-math.inf, math.inf)


def test_a_curve_that_falls_is_refused_and_chance_falls_are_not() -> None:
    """Protects the one assumption: where more images clearly lower accuracy nothing is stated; a flat curve is refused one time in 20."""
    rng = np.random.default_rng(11)
    fallen = sampled(lambda n: np.where(n == 800, 0.7, TRUE(n)), 600, 0.004, rng)
    with pytest.raises(ValueError, match="falls from 400 to 800 images"):
        rate_of(*fallen)
    refused = 0
    for _ in range(300):
        try:
            rate_of(*sampled(lambda n: 0.0 * n + 0.7, 600, 0.004, rng))
        except ValueError:
            refused += 1
    assert refused <= stats.binom.ppf(0.999, 300, 0.05)


def test_the_order_of_sizes_does_not_matter() -> None:
    """Protects against a curve that depends on how its points are listed."""
    real, mixed = sampled(TRUE, 600, 0.004, np.random.default_rng(11))
    assert rate_of(real[:, ::-1], mixed, SIZES[::-1]) == rate_of(real, mixed)


TABLE = np.tile(TRUE(SIZES.astype(np.float64)), (6, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"real": TABLE[:, :4]}, "at 5 sizes, got 6 x 4"),
        ({"real": TABLE[:1], "mixed": np.full(1, 0.8)}, "two seeds or more"),
        ({"mixed": np.full(5, 0.8)}, "got 6 x 5 and 5"),
        ({"mixed": np.full(6, math.nan)}, "finite"),
        ({"num_synthetic": 0}, "at least one real and one synthetic"),
        ({"sizes": np.array([100, 200])}, "three different sizes"),
        ({"sizes": np.array([100, 100, 200, 400, 800])}, "three different sizes"),
        ({"sizes": np.array([0, 100, 200, 400, 800])}, "three different sizes"),
    ],
)
def test_what_cannot_be_answered_is_refused(changes: dict[str, Any], message: str) -> None:
    """Protects against a rate from data that hold none."""
    with pytest.raises(ValueError, match=message):
        rate_of(**({"real": TABLE, "mixed": np.full(6, 0.8)} | changes))
