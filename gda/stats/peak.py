"""Where a curve of gains over synthetic images per real one is highest, and how precisely a handful of noisy points determine that."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from gda.stats.paired import Floats
from gda.stats.two_way import Interval, two_way

_FEWEST = 4  # points of a fit with three coefficients
_CHUNK = 4_000_000  # random numbers at a time


@dataclass(frozen=True, kw_only=True)
class Peak:
    """`ratio` is where the curve is highest, between `low` and `high`; `best` is the highest measured one, `enough` the cheapest as good.

    `at_edge` is "largest" for a curve that still rises at the largest measured ratio, "smallest" for one that falls from the start.
    """

    ratio: float
    low: float
    high: float
    best: float
    enough: float
    at_edge: str


def find_peak(scores: Mapping[float, Floats], rng: np.random.Generator, *, confidence: float = 0.95, num_resamples: int = 2000) -> Peak:
    """The peak of `scores`: by ratio > 0, values [seeds, images] in [-1, 1], of the first seeds of one list and on the same images.

    Where ratios have different seeds, their means are those of an additive model of ratio and seed, and more seeds weigh more. With at
    least four ratios the peak is that of a parabola over the logarithm of the ratio, clipped to what was measured; where it has none, or
    with fewer ratios, the best measured one. The interval repeats this on means that vary with images, reweighted exponentially (Bayesian
    bootstrap, Rubin 1981), and with seeds, normally by the model's residual variance. `best` is of those with the most seeds.
    Raises `ValueError` for no ratios, ratios that are not positive, unequal images or values that are not finite.
    """
    ratios, tables = _checked(scores)
    if ratios[0] <= 0:
        raise ValueError("the peak needs positive ratios")
    seeds = np.array([len(table) for table in tables])
    effects, residual, freedom = _additive(tables)
    peak = _highest(ratios, effects.mean(axis=1)[None], seeds)[0]
    errors = _seed_errors(residual, freedom, seeds, confidence)
    resampled = _highest(ratios, _resampled(effects, errors, rng, num_resamples), seeds)
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    final = np.flatnonzero(seeds == seeds.max())
    best = int(final[np.argmax([tables[place].mean() for place in final])])
    edge = {ratios[0]: "smallest", ratios[-1]: "largest"} if len(ratios) > 1 else {}
    return Peak(
        ratio=float(peak),
        low=float(min(low, peak)),
        high=float(max(high, peak)),
        best=float(ratios[best]),
        enough=float(ratios[_cheapest(tables, best)]),
        at_edge=edge.get(peak, ""),
    )


def pooled_intervals(
    gains: Mapping[float, Floats], rng: np.random.Generator, *, confidence: float = 0.95, num_resamples: int = 2000
) -> dict[float, Interval]:
    """Intervals of mean `gains`, by ratio [seeds, images] in [-1, 1], over seeds and images; the variance of seeds is pooled over ratios.

    Two seeds of one ratio hardly determine their variance; that of all ratios together has the degrees of freedom of an analysis
    of variance. Images are reweighted as in `find_peak`. Raises `ValueError` as `find_peak` does.
    """
    ratios, tables = _checked(gains)
    by_seed = [table.mean(axis=1) for table in tables]
    freedom = sum(len(means) - 1 for means in by_seed)
    residual = sum(float(((means - means.mean()) ** 2).sum()) for means in by_seed)
    errors = _seed_errors(residual, freedom, np.array([len(means) for means in by_seed]), confidence)
    resampled = _resampled(np.stack([table.mean(axis=0) for table in tables]), errors, rng, num_resamples)
    tail = (1 - confidence) / 2
    ends = np.clip(np.quantile(resampled, (tail, 1 - tail), axis=0), -1.0, 1.0)
    return {float(ratio): (float(low), float(high)) for ratio, low, high in zip(ratios, *ends, strict=True)}


def _checked(scores: Mapping[float, Floats]) -> tuple[Floats, list[Floats]]:
    ratios = np.array(sorted(scores), dtype=np.float64)
    tables = [np.asarray(scores[ratio], dtype=np.float64) for ratio in ratios]
    if not tables or any(table.ndim != 2 or table.size == 0 or not np.isfinite(table).all() for table in tables):
        raise ValueError("expected finite, non-empty [seeds, images] scores of one ratio at least")
    if len({table.shape[1] for table in tables}) != 1:
        raise ValueError("expected scores on the same images at every ratio")
    return ratios, tables


def _additive(tables: list[Floats]) -> tuple[Floats, float, int]:
    """Effects of an additive model of table and seed on every image, [tables, images]; squared residuals by seed and their freedom.

    Least squares; where all tables have the same seeds, an effect is the plain mean.
    """
    place = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    seed = np.concatenate([np.arange(len(table)) for table in tables])
    by_table, by_other_seed = np.eye(len(tables))[place], np.eye(seed.max() + 1)[seed]
    # Deviations of seeds add up to 0 over the seeds of the longest list.
    design = np.hstack([by_table, by_other_seed[:, 1:] - by_other_seed[:, :1]])
    values = np.concatenate(tables)
    operator = np.linalg.pinv(design)
    effects: Floats = operator[: len(tables)] @ values
    means = values.mean(axis=1)
    residual = float(((means - design @ (operator @ means)) ** 2).sum())
    return effects, residual, len(values) - design.shape[1]


def _highest(ratios: Floats, means: Floats, seeds: NDArray[np.int64]) -> Floats:
    """Where each row of `means` [curves, ratios] is highest."""
    measured = ratios[means.argmax(axis=1)]
    if len(ratios) < _FEWEST:
        return measured
    logs = np.log(ratios)
    # A mean over n seeds has a variance in proportion to 1/n; polyfit's weights multiply residuals before they are squared.
    curvature, slope, _ = np.polyfit(logs, means.T, 2, w=np.sqrt(seeds))
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = np.clip(-slope / (2 * curvature), logs[0], logs[-1])
    # An end is exactly the ratio that was measured, rather than the exponential of its logarithm.
    ends = [vertex == logs[0], vertex == logs[-1]]
    return np.where(curvature < 0, np.select(ends, [ratios[0], ratios[-1]], np.exp(vertex)), measured)


def _resampled(by_image: Floats, errors: Floats, rng: np.random.Generator, num_resamples: int) -> Floats:
    """Means that other images and other seeds could have given, [num_resamples, tables], of `by_image` [tables, images].

    An image has the same weight in all tables; each mean also moves by its own standard error.
    """
    means = np.empty((num_resamples, len(by_image)))
    step = max(1, _CHUNK // by_image.shape[1])
    for start in range(0, num_resamples, step):
        weights = rng.standard_exponential((min(step, num_resamples - start), by_image.shape[1]))
        means[start : start + step] = weights @ by_image.T / weights.sum(axis=1, keepdims=True)
    return means + rng.standard_normal(means.shape) * errors


def _seed_errors(residual: float, freedom: int, seeds: NDArray[np.int64], confidence: float) -> Floats:
    """Standard errors of means over so many seeds, stretched so that normal quantiles of them are those of Student's t."""
    if freedom < 1:
        return np.zeros(len(seeds))
    level = (1 + confidence) / 2
    stretch = stats.t.ppf(level, freedom) / stats.norm.ppf(level)
    return np.asarray(stretch * np.sqrt(residual / freedom / seeds))


def _cheapest(tables: list[Floats], best: int) -> int:
    """The first place that is within one standard error of the best one, over the seeds that both have (Breiman et al. 1984, 1-SE rule)."""
    for place, table in enumerate(tables[:best]):
        both = min(len(table), len(tables[best]))
        lead = two_way(tables[best][:both] - table[:both])
        if lead.mean <= lead.error:
            return place
    return best
