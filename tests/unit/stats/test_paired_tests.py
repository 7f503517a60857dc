"""Paired tests: exact values that can be computed by hand, validity under simulated nulls, and symmetry."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from gda.stats.paired import flip_tail, mcnemar_exact, paired_differences, sign_flip_test
from gda.stats.two_way import TwoWay, critical_values, two_way

SIMULATIONS = 1000


def most_rejections(alpha: float) -> int:
    """Rejections that a valid test stays below with probability 0.9999."""
    return int(stats.binom.ppf(0.9999, SIMULATIONS, alpha))


small_differences = arrays(np.float64, st.integers(1, 9), elements=st.integers(-5, 5).map(float))


@pytest.mark.parametrize(("n", "smallest"), [(5, 0.0625), (6, 0.03125), (10, 2.0**-9)])
def test_sign_flip_reaches_its_smallest_value(n: int, smallest: float) -> None:
    """Protects the reason for six seeds: with five the test cannot reach 0.05."""
    assert sign_flip_test(np.linspace(0.5, 1.0, n)) == smallest


@given(small_differences)
@settings(max_examples=60, deadline=None)
def test_sign_flip_equals_enumeration_and_ignores_direction(differences: np.ndarray) -> None:
    """Protects the fast enumeration against the definition, and exchange of the arms."""
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=differences.size)]
    expected = np.mean([s >= abs(differences.sum()) for s in sums])
    assert sign_flip_test(differences) == pytest.approx(expected)
    assert sign_flip_test(-differences) == sign_flip_test(differences)


def test_sign_flip_false_positive_rate_is_at_most_alpha() -> None:
    """Protects the level: over simulated nulls with skewless heavy tails, at most alpha are rejected."""
    rng = np.random.default_rng(1)
    rejected = sum(sign_flip_test(rng.standard_t(3, size=6)) <= 0.05 for _ in range(SIMULATIONS))
    assert rejected <= most_rejections(0.05)


def test_sign_flip_finds_a_declared_effect() -> None:
    """Protects power: an effect of 1.5 standard deviations over eight seeds is found at least 85% of the time."""
    rng = np.random.default_rng(2)
    found = sum(sign_flip_test(rng.normal(1.5, 1.0, size=8)) <= 0.05 for _ in range(SIMULATIONS))
    assert found >= 850


def test_random_sign_flips_agree_with_the_exact_test() -> None:
    """Protects the branch above sixteen differences, which is random but never below its exact counterpart's reach."""
    rng = np.random.default_rng(3)
    differences = rng.normal(0.3, 1.0, size=17)
    signed = np.array(list(itertools.product((-1, 1), repeat=17)), dtype=np.int8) @ differences
    exact = np.mean(np.abs(signed) >= abs(differences.sum()))
    assert sign_flip_test(differences, rng) == pytest.approx(exact, abs=0.01)
    with pytest.raises(ValueError, match="generator"):
        sign_flip_test(differences)


@pytest.mark.parametrize("bad", [np.array([]), np.array([0.1, np.nan]), np.array([np.inf])])
def test_sign_flip_refuses_what_it_cannot_test(bad: np.ndarray) -> None:
    """Protects against an empty or non-finite input passing as evidence."""
    with pytest.raises(ValueError):
        sign_flip_test(bad)


def test_mcnemar_matches_the_binomial_by_hand() -> None:
    """Protects the exact form: 1 win against 7 losses gives 2 * (1 + 8) / 2^8."""
    differences = np.array([[1.0] + [-1.0] * 7 + [0.0] * 20])
    assert mcnemar_exact(differences) == pytest.approx(18 / 256)
    assert mcnemar_exact(-differences) == mcnemar_exact(differences)
    assert mcnemar_exact(np.zeros((3, 10))) == 1.0


def test_mcnemar_does_not_count_seeds_as_images() -> None:
    """Protects against pseudo-replication: repeating the same seed six times adds no evidence."""
    once = np.array([[1.0] * 5 + [-1.0] * 1 + [0.0] * 10])
    assert mcnemar_exact(np.repeat(once, 6, axis=0)) == mcnemar_exact(once)


def test_two_way_test_is_valid_when_seeds_and_images_vary() -> None:
    """Protects the per-class test's level when a seed moves all images together, which an image-only test calls significant."""
    rng = np.random.default_rng(4)
    two_way_rejections = mcnemar_rejections = 0
    for _ in range(SIMULATIONS):
        differences = _null_differences(rng, seeds=6, images=120, seed_effect=0.25)
        two_way_rejections += two_way(differences).p_value() <= 0.05
        mcnemar_rejections += mcnemar_exact(differences) <= 0.05
    assert two_way_rejections <= 100  # the t approximation may overshoot 5%, never double it
    assert mcnemar_rejections > 150


def test_two_way_without_variation_is_certain_either_way() -> None:
    """Protects the degenerate ends: identical arms give 1, arms that differ on every image give 0."""
    assert two_way(np.zeros((4, 5))).p_value() == 1.0
    assert two_way(-np.ones((4, 5))).p_value() == 0.0


def _null_differences(rng: np.random.Generator, *, seeds: int, images: int, seed_effect: float) -> np.ndarray:
    ease, twist = rng.normal(1.2, 1.5, images), rng.normal(0, 0.2, images)
    a = ease + twist + rng.normal(0, seed_effect, (seeds, 1)) + rng.normal(0, 1, (seeds, images)) > 0
    b = ease - twist + rng.normal(0, seed_effect, (seeds, 1)) + rng.normal(0, 1, (seeds, images)) > 0
    return paired_differences(a, b)


def test_sign_flips_over_images_are_mcnemar_with_one_seed() -> None:
    """Protects the exact tail: with one value each it is the binomial one, and it is antisymmetric with ties counted on both sides."""
    for wins, losses in ((0, 0), (0, 7), (5, 0), (3, 9), (40, 60), (900, 1000)):
        net = np.repeat([1, 0, -1], (wins, 11, losses))
        expected = stats.binom.sf(losses - 1, wins + losses, 0.5) if wins + losses else 1.0
        assert flip_tail(net) == pytest.approx(expected, rel=1e-6)


@given(arrays(np.int64, st.integers(1, 10), elements=st.integers(-6, 6)))
@settings(max_examples=60, deadline=None)
def test_sign_flips_over_images_count_patterns(net: np.ndarray) -> None:
    """Protects the transform against counting every pattern, for values of any size."""
    patterns = np.array(list(itertools.product((1, -1), repeat=net.size)))
    assert flip_tail(net) == pytest.approx((patterns @ np.abs(net) <= net.sum()).mean(), abs=1e-12)


def test_sign_flips_of_many_images_stay_above_zero_and_quick() -> None:
    """Protects the far tail, where rounding is all that is left, and classes of thousands of images."""
    assert flip_tail(np.full(5000, -10)) == 1e-13
    assert flip_tail(np.full(20, -3)) == pytest.approx(2.0**-20, rel=1e-6)


def test_unpaired_shapes_are_refused() -> None:
    """Protects against comparing arms on different seeds or images."""
    with pytest.raises(ValueError, match="equal"):
        paired_differences(np.ones((3, 4), bool), np.ones((2, 4), bool))


@pytest.mark.parametrize("level", [0.1, 1e-4, 5.3e-9, 5.3e-11, 1e-12])
def test_critical_values_are_found_at_any_level(level: float) -> None:
    """Protects the smallest visible harm of many classes: far out, where rounding moves the ends of a search, the value is still found."""
    estimates = [
        TwoWay(mean=0.0, error=1.0, seed_share=share, seed_freedom=1.0, image_freedom=freedom)
        for share in (0.0, 1e-12, 0.4, 1.0)
        for freedom in (1.0, 7.3, 500.0)
    ]
    found = critical_values(estimates, level)
    assert found == pytest.approx([estimate.critical(level) for estimate in estimates], rel=1e-6)
    for estimate, value in zip(estimates, found, strict=True):
        tails = 2 * stats.t.sf(value, [estimate.seed_freedom, estimate.image_freedom])
        assert estimate.seed_share * tails[0] + (1 - estimate.seed_share) * tails[1] == pytest.approx(level, rel=1e-5)
