"""The peak of a curve of gains: found where it is known to be, with an interval that holds it, and honest at the ends."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from gda.stats.peak import find_peak, pooled_intervals

RATIOS = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)


def table(
    curve: Callable[[float], float], seeds: Mapping[float, int], rng: np.random.Generator, *, noise: float = 0.01, images: int = 400
) -> dict[float, np.ndarray]:
    """Differences in {-1, 0, 1} whose mean is the gain, moved by chance of the seed; against one rival, right half the time."""
    most = max(seeds.values())
    chance, rival = rng.random((most, images)), rng.random((most, images)) < 0.5
    found = {}
    for ratio, count in seeds.items():
        shift = rng.normal(0, noise, (count, 1))
        own = chance[:count] < 0.5 + curve(ratio) + shift
        found[ratio] = own.astype(float) - rival[:count]
    return found


def hill(ratio: float, *, top: float = 0.7, height: float = 0.1, width: float = 0.05) -> float:
    return height - width * np.log(ratio / top) ** 2


def test_a_known_peak_is_inside_its_interval() -> None:
    """Protects the level of the interval: over repeated experiments the true peak lies inside at least 88 % of the time."""
    rng = np.random.default_rng(3)
    seeds = {0.1: 2, 0.25: 4, 0.5: 8, 1.0: 8, 2.0: 4, 5.0: 2}
    found = [find_peak(table(hill, seeds, rng), rng, num_resamples=300) for _ in range(150)]
    assert sum(peak.low <= 0.7 <= peak.high for peak in found) >= 132
    assert np.median([peak.ratio for peak in found]) == pytest.approx(0.7, rel=0.15)
    assert np.median([peak.high / peak.low for peak in found]) < 4  # narrower than the 50 that was measured
    assert all(RATIOS[0] <= peak.low <= peak.ratio <= peak.high <= RATIOS[-1] for peak in found)


def test_a_parabola_without_noise_is_found_exactly() -> None:
    """Protects the fit: over the logarithm of the ratio, at any number of seeds."""
    gains = {ratio: np.full((2 + (ratio < 1), 5), hill(ratio, top=0.4, width=0.02)) for ratio in RATIOS}
    peak = find_peak(gains, np.random.default_rng(0))
    assert (peak.ratio, peak.low, peak.high) == pytest.approx((0.4, 0.4, 0.4))
    assert peak.best == 0.5
    assert peak.at_edge == ""


def test_more_seeds_weigh_more() -> None:
    """Protects the weights: one wild seed at the far end does not move a peak that many seeds place elsewhere."""
    gains = {ratio: np.full((64, 3), hill(ratio, top=0.4)) for ratio in RATIOS}
    few = find_peak(gains | {5.0: np.full((1, 3), 0.3)}, np.random.default_rng(0))
    many = find_peak(gains | {5.0: np.full((64, 3), 0.3)}, np.random.default_rng(0))
    assert abs(np.log(few.ratio / 0.4)) < abs(np.log(many.ratio / 0.4)) / 2
    assert (few.best, many.best) == (0.5, 5.0)  # a lucky seed wins nothing


def test_easy_seeds_are_no_merit_of_a_ratio() -> None:
    """Protects ratios that have fewer seeds: the first seeds happen to be better for all, which must not move the peak."""
    luck = np.array([0.2, 0.1, 0.0, -0.1, -0.1, -0.1])[:, None]
    gains = {ratio: (hill(ratio) + luck + np.zeros((6, 4)))[: 2 if ratio > 1 else 6] for ratio in RATIOS}
    assert find_peak(gains, np.random.default_rng(0)).ratio == pytest.approx(0.7)


def test_pooled_intervals_cover_the_truth() -> None:
    """Protects the level where a ratio has two seeds: the true gain is inside at least 92 % of the time, without the t quantile of two."""
    rng, inside, widths = np.random.default_rng(7), [], []
    seeds = {0.1: 2, 0.25: 2, 0.5: 6, 1.0: 6}
    for _ in range(150):
        found = pooled_intervals(table(lambda _: 0.05, seeds, rng, noise=0.03), rng, num_resamples=300)
        inside += [low <= 0.05 <= high for low, high in found.values()]
        widths.append((found[0.1][1] - found[0.1][0]) / (found[1.0][1] - found[1.0][0]))
    assert np.mean(inside) >= 0.92
    assert 1.0 < np.median(widths) < 2.0


def test_images_alone_make_an_interval() -> None:
    """Protects a search with one seed per ratio: another validation set could have given another peak."""
    rng = np.random.default_rng(2)
    peak = find_peak({ratio: (rng.random((1, 50)) < 0.5 + hill(ratio)).astype(float) for ratio in RATIOS}, rng)
    assert peak.low < peak.high


@pytest.mark.parametrize(("slope", "edge", "at"), [(0.05, "largest", 5.0), (-0.05, "smallest", 0.1)])
@pytest.mark.parametrize("ratios", [RATIOS, (0.1, 5.0)])
def test_a_curve_that_only_rises_or_falls_says_so(slope: float, edge: str, at: float, ratios: tuple[float, ...]) -> None:
    """Protects against a peak being claimed where the curve has not turned yet, by the fit and by the best point alike."""
    gains = {ratio: np.full((3, 4), slope * np.log(ratio) - 0.001 * np.log(ratio) ** 2) for ratio in ratios}
    peak = find_peak(gains, np.random.default_rng(0))
    assert (peak.ratio, peak.at_edge, peak.best) == (at, edge, at)


def test_a_valley_is_no_peak() -> None:
    """Protects against the vertex of a parabola that is open above."""
    gains = {ratio: np.full((3, 4), -hill(ratio, top=1.0)) for ratio in RATIOS}
    peak = find_peak(gains, np.random.default_rng(0))
    assert (peak.ratio, peak.best) == (0.1, 0.1)


def test_the_cheapest_as_good_is_named() -> None:
    """Protects the answer to "how many must I generate": of ratios that noise cannot separate the smallest, and of clear ones the best."""
    rng = np.random.default_rng(5)
    seeds = dict.fromkeys(RATIOS, 8)
    flat = [find_peak(table(lambda _: 0.1, seeds, rng), rng, num_resamples=50).enough for _ in range(40)]
    assert np.mean(np.array(flat) <= 0.5) > 0.7
    steep = find_peak(table(lambda ratio: 0.4 * (ratio >= 1), seeds, rng), rng, num_resamples=50)
    assert steep.enough == 1.0


def test_one_seed_and_one_ratio_have_an_answer() -> None:
    """Protects the smallest search: the peak is what was measured, and no end of anything."""
    peak = find_peak({0.5: np.ones((1, 6))}, np.random.default_rng(0))
    assert (peak.ratio, peak.low, peak.high, peak.best, peak.enough, peak.at_edge) == (0.5, 0.5, 0.5, 0.5, 0.5, "")


@pytest.mark.parametrize(
    "gains",
    [{}, {0.0: np.ones((2, 3))}, {1.0: np.ones((2, 3)), 2.0: np.ones((2, 4))}, {1.0: np.full((2, 3), np.nan)}, {1.0: np.ones(3)}],
)
def test_what_cannot_be_a_curve_is_refused(gains: dict[float, np.ndarray]) -> None:
    """Rather than a peak of nothing."""
    with pytest.raises(ValueError, match=r"positive ratios|same images|finite, non-empty"):
        find_peak(gains, np.random.default_rng(0))
