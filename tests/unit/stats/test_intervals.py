"""Intervals over seeds and images: coverage under known truths, symmetry and invariance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from gda.stats.intervals import accuracy_interval, crossed_interval, image_interval, seed_interval
from gda.stats.two_way import two_way

tables = arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 30)), elements=st.sampled_from([-1.0, 0.0, 1.0]))


def by_probit(rng: np.random.Generator, *, seeds: int, images: int, seed_effect: float, image_effect: float) -> np.ndarray:
    """Differences of two arms that are equally good: they differ by chance of the seed and by chance of the image."""
    ease, twist = rng.normal(1, 1.5, images), rng.normal(0, image_effect, images)
    arms = [
        ease + shift + rng.normal(0, seed_effect, (seeds, 1)) + rng.normal(0, 1, (seeds, images)) > 0 for shift in (twist / 2, -twist / 2)
    ]
    return arms[0].astype(float) - arms[1]


@pytest.mark.parametrize("seeds", [3, 6, 10])
@pytest.mark.parametrize(("seed_effect", "image_effect"), [(0.4, 0.2), (0.1, 0.6), (0.0, 0.0)])
def test_crossed_interval_covers_the_truth(seeds: int, seed_effect: float, image_effect: float) -> None:
    """Protects the interval's level from both sides, where seeds, images or neither dominate: it holds the true zero, and is not idle."""
    rng = np.random.default_rng(10)
    values = [by_probit(rng, seeds=seeds, images=200, seed_effect=seed_effect, image_effect=image_effect) for _ in range(400)]
    intervals = np.array([crossed_interval(table) for table in values])
    covered = ((intervals[:, 0] <= 0) & (intervals[:, 1] >= 0)).sum()
    assert covered >= stats.binom.ppf(0.001, 400, 0.935)
    spread = np.std([table.mean() for table in values])
    assert np.median(intervals[:, 1] - intervals[:, 0]) < 2 * spread * (1.15 * stats.t.ppf(0.975, seeds - 1))


def test_two_seeds_that_agree_are_not_stretched_tenfold() -> None:
    """Protects small runs: where images are all that varies, two seeds do not widen the interval by the t quantile of one degree."""
    rng = np.random.default_rng(11)
    tables = [by_probit(rng, seeds=2, images=1000, seed_effect=0.0, image_effect=0.5) for _ in range(200)]
    halves = [high - table.mean() for table in tables if (high := crossed_interval(table)[1])]
    assert np.median(halves) < 4 * np.std([table.mean() for table in tables])


@pytest.mark.parametrize(("sets", "seeds"), [(2, 10), (5, 10), (10, 10), (20, 20)])
def test_sets_that_differ_are_in_the_interval(sets: int, seeds: int) -> None:
    """Protects what is reported about other synthetic sets: seeds that share one share its luck, which seeds alone do not show."""
    rng, of_set = np.random.default_rng(12), np.arange(seeds) % sets
    covered = alone = 0
    for _ in range(400):
        table = 0.01 * rng.normal(size=sets)[of_set][:, None] + 0.01 * rng.normal(size=(seeds, 1)) + 0.3 * rng.normal(size=(seeds, 400))
        covered += np.prod(crossed_interval(table, sets=of_set)) <= 0
        alone += np.prod(crossed_interval(table)) <= 0
    assert covered >= stats.binom.ppf(0.001, 400, 0.935)
    assert sets == seeds or alone < covered


def test_groups_count_as_one() -> None:
    """Protects tests with several images of one patient or video: as independent images they would cover far less than stated."""
    rng, group = np.random.default_rng(13), np.repeat(np.arange(40), 10)
    covered = alone = 0
    for _ in range(400):
        of_group = 0.2 * rng.normal(size=40) + 0.1 * rng.normal(size=(8, 40))
        table = of_group[:, group] + 0.1 * rng.normal(size=400) + 0.3 * rng.normal(size=(8, 400))
        covered += np.prod(crossed_interval(table, groups=group)) <= 0
        alone += np.prod(crossed_interval(table)) <= 0
    assert covered >= stats.binom.ppf(0.001, 400, 0.935)
    assert alone < 0.75 * 400


def test_a_group_of_many_is_worth_fewer_degrees_of_freedom() -> None:
    """Protects unequal groups: one that holds most images leaves hardly any freedom, equal ones their number less one."""
    values = np.random.default_rng(14).normal(size=(2, 100))
    assert two_way(values, groups=np.arange(100) // 10).image_freedom == pytest.approx(9)
    assert two_way(values, groups=np.maximum(np.arange(100) - 89, 0)).image_freedom == pytest.approx(1)


def test_ids_that_do_not_fit_are_refused() -> None:
    """Protects against groups of another test split."""
    with pytest.raises(ValueError, match="3 ids, one each"):
        crossed_interval(np.zeros((2, 3)), groups=np.arange(4))


@pytest.mark.parametrize("values", [np.random.default_rng(15).normal(size=(6, 50)), np.random.default_rng(16).normal(0.2, 1, (3, 9))])
def test_the_interval_is_what_the_test_does_not_reject(values: np.ndarray) -> None:
    """Protects the gate's two readings of one estimate: the interval at level 1 - p ends exactly at zero."""
    estimate = two_way(values)
    low, high = estimate.interval(1 - estimate.p_value())
    assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-9)


def test_seed_interval_matches_the_t_interval() -> None:
    """Protects small samples: over six seeds the interval is the t interval, and not a third shorter."""
    by_seed = np.array([0.1, 0.3, 0.2, 0.5, 0.4, 0.35])
    interval = seed_interval(by_seed[:, None])
    assert interval is not None
    assert interval[1] - interval[0] == pytest.approx(2 * 2.5706 * by_seed.std(ddof=1) / np.sqrt(6), rel=1e-4)


def test_image_interval_matches_the_binomial() -> None:
    """Protects the image side against the known standard error of a share."""
    correct = np.arange(1000)[None] % 10 != 0
    low, high = image_interval(correct)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.09 / 1000), rel=0.01)


def test_crossed_is_wider_than_either_factor_alone() -> None:
    """Protects that both sources of chance are in the gating interval, where both are there."""
    values = by_probit(np.random.default_rng(1), seeds=6, images=300, seed_effect=0.2, image_effect=0.6)
    parts = [seed_interval(values), image_interval(values)]
    low, high = crossed_interval(values)
    assert all(ends is not None and high - low > ends[1] - ends[0] for ends in parts)


@given(tables)
@settings(max_examples=50, deadline=None)
def test_exchanging_the_arms_mirrors_the_interval(values: np.ndarray) -> None:
    """Protects antisymmetry: nothing favours whichever arm is named first."""
    low, high = crossed_interval(values)
    assert crossed_interval(-values) == pytest.approx((-high, -low), abs=1e-12)
    assert -1 <= low <= high <= 1


@given(tables)
@settings(max_examples=30, deadline=None)
def test_the_order_of_images_does_not_matter(values: np.ndarray) -> None:
    """Protects against an interval that depends on how the manifest is sorted."""
    shuffled = values[:, np.random.default_rng(5).permutation(values.shape[1])]
    assert crossed_interval(shuffled) == pytest.approx(crossed_interval(values), abs=1e-12)


def test_one_seed_gives_no_seed_interval() -> None:
    """Protects against an interval over seeds that a single seed cannot have."""
    values = np.array([[1.0, 0.0, -1.0, 1.0]])
    assert seed_interval(values) is None
    low, high = crossed_interval(values)
    assert low < high


def test_accuracy_stays_inside_its_range() -> None:
    """Protects against an accuracy above one when nearly everything is right."""
    correct = np.ones((3, 40), bool)
    correct[0, :10] = False
    low, high = accuracy_interval(correct)
    assert 0 <= low < high <= 1.0


def test_an_accuracy_of_one_is_not_certain() -> None:
    """Protects small test sets: 40 right answers of 40 leave room for what Wilson's interval says, whatever the seeds."""
    expected = stats.binomtest(40, 40).proportion_ci(method="wilson")
    low, high = accuracy_interval(np.ones((3, 40), bool))
    assert (low, high) == (pytest.approx(expected.low, abs=0.01), 1.0)


@pytest.mark.parametrize("bad", [np.zeros((0, 5)), np.zeros((2, 0)), np.zeros(4), np.array([[np.nan]])])
def test_empty_or_non_finite_values_are_refused(bad: np.ndarray) -> None:
    """Protects against an interval from nothing."""
    with pytest.raises(ValueError, match="non-empty"):
        crossed_interval(bad)
