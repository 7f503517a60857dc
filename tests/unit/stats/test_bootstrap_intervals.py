"""Bootstrap intervals: coverage under known truths, symmetry, invariance and speed."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gda.stats import bootstrap
from gda.stats.bootstrap import accuracy_interval, column_patterns, crossed_interval, image_interval, seed_interval

tables = arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 30)), elements=st.sampled_from([-1.0, 0.0, 1.0]))


@pytest.mark.parametrize(("seed_effect", "image_effect"), [(0.4, 0.2), (0.1, 0.6), (0.0, 0.0)])
def test_crossed_interval_covers_the_truth(seed_effect: float, image_effect: float) -> None:
    """Protects the gating interval's level where seeds, images or neither dominate: true zero lies inside at least 92% of the time."""
    rng = np.random.default_rng(10)
    covered = 0
    for _ in range(300):
        ease, twist = rng.normal(1, 1.5, 200), rng.normal(0, image_effect, 200)
        a = ease + twist + rng.normal(0, seed_effect, (6, 1)) + rng.normal(0, 1, (6, 200)) > 0
        b = ease - twist + rng.normal(0, seed_effect, (6, 1)) + rng.normal(0, 1, (6, 200)) > 0
        low, high = crossed_interval(a.astype(float) - b, rng, num_resamples=300)
        covered += low <= 0 <= high
    assert covered >= 276


def test_seed_interval_matches_the_t_interval() -> None:
    """Protects the small-sample stretch: over six seeds the interval is about the t interval, not a third shorter."""
    by_seed = np.array([0.1, 0.3, 0.2, 0.5, 0.4, 0.35])
    interval = seed_interval(by_seed[:, None], np.random.default_rng(0), num_resamples=20000)
    assert interval is not None
    half = 2.5706 * by_seed.std(ddof=1) / np.sqrt(6)
    assert interval[1] - interval[0] == pytest.approx(2 * half, rel=0.05)


def test_image_interval_matches_the_binomial() -> None:
    """Protects the image side against the known standard error of a share."""
    correct = np.arange(1000)[None] % 10 != 0
    low, high = image_interval(correct, np.random.default_rng(0), num_resamples=20000)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.09 / 1000), rel=0.05)


def test_crossed_is_wider_than_either_factor_alone() -> None:
    """Protects that both sources of chance are in the gating interval."""
    rng = np.random.default_rng(1)
    values = (rng.random((6, 300)) < 0.6).astype(float) - (rng.random((6, 300)) < 0.5)
    widths = []
    for interval in (crossed_interval, seed_interval, image_interval):
        ends = interval(values, np.random.default_rng(2))
        assert ends is not None
        widths.append(ends[1] - ends[0])
    assert widths[0] > max(widths[1:])


@given(tables, st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_exchanging_the_arms_mirrors_the_interval(values: np.ndarray, seed: int) -> None:
    """Protects antisymmetry: nothing favours whichever arm is named first."""
    low, high = crossed_interval(values, np.random.default_rng(seed), num_resamples=200)
    mirrored = crossed_interval(-values, np.random.default_rng(seed), num_resamples=200)
    if values.sum() != 0:  # at exactly zero both signs are canonical
        assert mirrored == pytest.approx((-high, -low), abs=1e-12)
    assert -1 <= low <= high <= 1


@given(tables, st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_the_order_of_images_does_not_matter(values: np.ndarray, random: object) -> None:
    """Protects against an interval that depends on how the manifest is sorted."""
    shuffled = values[:, np.random.default_rng(5).permutation(values.shape[1])]
    intervals = [crossed_interval(table, np.random.default_rng(3), num_resamples=200) for table in (values, shuffled)]
    assert intervals[0] == intervals[1]


def test_one_seed_gives_no_seed_interval() -> None:
    """Protects against an interval over seeds that a single seed cannot have."""
    values = np.array([[1.0, 0.0, -1.0, 1.0]])
    assert seed_interval(values, np.random.default_rng(0)) is None
    low, high = crossed_interval(values, np.random.default_rng(0))
    assert low < high


def test_accuracy_stays_inside_its_range() -> None:
    """Protects against an accuracy above one when nearly everything is right."""
    correct = np.ones((3, 40), bool)
    correct[0, :10] = False
    low, high = accuracy_interval(correct, np.random.default_rng(0))
    assert 0 <= low < high == 1.0


@pytest.mark.parametrize("bad", [np.zeros((0, 5)), np.zeros((2, 0)), np.zeros(4), np.array([[np.nan]])])
def test_empty_or_non_finite_values_are_refused(bad: np.ndarray) -> None:
    """Protects against an interval from nothing."""
    with pytest.raises(ValueError, match="non-empty"):
        crossed_interval(bad, np.random.default_rng(0))


def test_a_full_size_comparison_takes_less_than_two_seconds() -> None:
    """Protects the cost of evaluate: six seeds, 4,300 images, 4,000 resamples, every column pattern present."""
    values = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], size=(6, 4300))
    start = time.process_time()
    crossed_interval(values, np.random.default_rng(1), num_resamples=4000)
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize(("seeds", "values"), [(1, (-1, 0, 1)), (6, (-1, 0, 1)), (39, (0, 1)), (40, (-1, 0, 1)), (5, (0.5, 0.25, -1))])
def test_column_patterns_are_numpys(seeds: int, values: tuple[float, ...]) -> None:
    """Telling columns apart as numbers must give what comparing them does, in the same order, or intervals would change."""
    table = np.random.default_rng(seeds).choice(values, size=(seeds, 400)).astype(np.float64)
    table[:, 200:] = table[:, :200]
    patterns, counts = column_patterns(table)
    expected, times = np.unique(table, axis=1, return_counts=True)
    assert np.array_equal(patterns, expected)
    assert np.array_equal(counts, times)


def test_resampling_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by drawing resamples in blocks: the same draws, whatever the size of a block."""
    table = np.random.default_rng(0).choice((-1.0, 0.0, 1.0), size=(6, 300))
    whole = crossed_interval(table, np.random.default_rng(1), num_resamples=501)
    monkeypatch.setattr(bootstrap, "_MOST_WEIGHTS", 1000)
    assert crossed_interval(table, np.random.default_rng(1), num_resamples=501) == pytest.approx(whole, abs=1e-15)
