"""Comparison at equal N: floors cancel the bias, intervals cover, nothing is drawn twice."""

import numpy as np
import pytest

from gda.errors import DataError
from gda.fidelity.compare import compare, equal_n, fid, fid_floor, fid_floor_to, fid_to
from gda.fidelity.frechet import statistics
from gda.fidelity.intervals import disjoint_halves, named_rng, over_repeats, share, subsets


def draws(seed: int, n: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (n, 12))


def test_a_perfect_generator_scores_the_floor_at_any_size() -> None:
    """FID falls with the number of images; measured at equal N, new real images must look real whatever N is."""
    real = draws(0, 400)
    for size in (40, 100, 1000):
        result = compare(draws(1, size), real, seed=0)["fid"]
        assert result.n == min(size, 200)
        assert result.estimate.value == pytest.approx(result.floor.value, rel=0.35)
    assert fid(draws(1, 40), real) > 1.5 * fid(draws(1, 1000), real)  # what would have happened without


def test_a_narrow_generator_is_told_apart() -> None:
    """Half the spread: FID above the floor's interval, recall and coverage below theirs."""
    found = compare(draws(1, 300, scale=0.5), draws(0, 400), seed=0)
    assert found["fid"].estimate.low > found["fid"].floor.high
    assert found["recall"].estimate.high < found["recall"].floor.low
    assert found["precision"].estimate.value > found["precision"].floor.value


def test_same_seed_same_numbers() -> None:
    """The verdict of one set must not change from run to run."""
    assert compare(draws(1, 50), draws(0, 90), seed=3) == compare(draws(1, 50), draws(0, 90), seed=3)


def test_floor_of_the_reference_is_the_floor_of_the_comparison() -> None:
    """The number that `reference` states and the one that `validate` judges by are the same."""
    real = draws(0, 120)
    floor, n = fid_floor(real, seed=5)
    found = compare(draws(1, 300), real, seed=5)["fid"]
    assert (floor, n) == (found.floor, found.n)


def test_too_few_images_are_refused() -> None:
    """Three a side have no third neighbour."""
    with pytest.raises(DataError, match="too few images"):
        equal_n(100, 7)


def test_halves_are_disjoint_and_subsets_without_repeats() -> None:
    """With replacement FID is biased upward and nearest-neighbour radii collapse."""
    for one, other in disjoint_halves(31, 15, 5, np.random.default_rng(0)):
        assert len(set(one) | set(other)) == 30
    assert all(len(set(rows)) == 20 for rows in subsets(40, 20, 5, np.random.default_rng(0)))


def test_wilson_interval_at_the_ends_and_in_the_middle() -> None:
    """None of 100 is not known to be none: the interval of 0 reaches to 3.7%; published values for 15 of 148."""
    nothing = share(0, 100)
    assert (nothing.value, nothing.low) == (0.0, 0.0)
    assert nothing.high == pytest.approx(0.0370, abs=1e-4)
    some = share(15, 148)  # Newcombe 1998, table I
    assert (some.low, some.high) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    with pytest.raises(DataError):
        share(0, 0)


def test_repeats_give_mean_and_percentiles() -> None:
    """The interval's ends are those of the middle 95% of repeats."""
    estimate = over_repeats(np.arange(101.0))
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((50.0, 2.5, 97.5))


def test_streams_differ_by_name_and_seed() -> None:
    """Two uses of randomness must not share draws."""
    first = {named_rng(seed, name).random() for seed in (0, 1) for name in ("a", "b")}
    assert len(first) == 4
    assert named_rng(0, "a").random() in first


def test_the_interval_of_a_point_covers_what_other_sets_score() -> None:
    """Around the FID of the whole set, and nine times in ten around the mean FID of sets of its size."""
    reference = statistics(draws(0, 2000))
    sets = [draws(100 + i, 80, scale=1.2) for i in range(60)]
    found = [fid_to(reference, each, seed=1) for each in sets]
    assert [estimate.value for estimate in found] == [fid(each, draws(0, 2000)) for each in sets]
    assert all(estimate.low < estimate.value < estimate.high for estimate in found)
    mean = np.mean([estimate.value for estimate in found])
    assert np.mean([estimate.low <= mean <= estimate.high for estimate in found]) >= 0.85
    width = np.mean([(estimate.high - estimate.low) / 2 for estimate in found])
    assert 0.7 < width / (1.96 * np.std([estimate.value for estimate in found])) < 1.4
    with pytest.raises(DataError, match="at least four images, got 3"):
        fid_to(reference, draws(1, 3), seed=0)


def test_the_floor_of_a_sweep_is_at_its_number_of_images() -> None:
    """What as many real images score: far above the same with all of them, and their own where there are fewer."""
    reference, real = statistics(draws(0, 2000)), draws(1, 1000)
    few, many = (fid_floor_to(reference, real, n=n, seed=0) for n in (50, 1000))
    assert few > 5 * many
    assert few == pytest.approx(np.mean([fid(draws(2 + i, 50), draws(0, 2000)) for i in range(20)]), rel=0.15)
    assert fid_floor_to(reference, real[:30], n=50, seed=0) == pytest.approx(fid(real[:30], draws(0, 2000)))
