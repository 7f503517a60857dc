"""How many real images one synthetic image is worth, from a learning curve of real-only training.

The curve is a power law with an offset, accuracy(n) = a - b n^-c: the form that test error was found to follow over orders of magnitude
of training images (Hestness et al. 2017, section 3; Rosenfeld et al. 2020, eq. 1). Monotone interpolation in log n assumes less, but
it ends at the largest real set - where real+synthetic, if it helps at all, begins. What is read off beyond the sizes that were trained
is an extrapolation, so it is given up to a stated factor only, and reported as open from there.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gda.stats.bootstrap import stretched_weights
from gda.stats.paired import Floats

_EXPONENTS = (0.05, 2.0)  # Hestness et al. (2017) found 0.07 to 0.5
_GRID = 25  # exponents tried at a time
_ZOOMS = 5  # each divides their spacing by 12


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """accuracy(n) = `ceiling` - `scale` * (n / `unit`)^-`exponent`, with n real training images and accuracies in [0, 1]."""

    ceiling: float
    scale: float
    exponent: float
    unit: float

    def accuracy(self, num_images: float) -> float:
        """The accuracy of training on so many real images."""
        return self.ceiling - self.scale * (num_images / self.unit) ** -self.exponent


@dataclass(frozen=True, kw_only=True)
class ExchangeRate:
    """What synthetic images are worth in real ones.

    `equivalent` is the number of real images that would have given the same accuracy, `rate` the real images that one synthetic image
    replaces (negative where they do harm), `ci95` the interval of the rate at the level asked for. An end is infinite where it lies outside
    `searched`, the numbers of real images over which the curve was trusted: it is then above or below every rate that can be stated.
    """

    curve: LearningCurve
    equivalent: float
    rate: float
    ci95: tuple[float, float]
    searched: tuple[float, float]


def fit_learning_curve(sizes: NDArray[np.int64], accuracies: Floats) -> LearningCurve:
    """The power law nearest to `accuracies` [sizes], in [0, 1], in squares; its ceiling is at most 1 and it never falls.

    Raises `ValueError` with fewer than three different sizes, which do not fix three parameters, or anything that is not finite.
    """
    _check_sizes(sizes)
    ceiling, scale, exponent = (float(part[0]) for part in _fit(sizes, np.asarray(accuracies, dtype=np.float64)[None]))
    return LearningCurve(ceiling=ceiling, scale=scale, exponent=exponent, unit=_unit(sizes))


def exchange_rate(
    sizes: NDArray[np.int64],
    real: Floats,
    mixed: Floats,
    rng: np.random.Generator,
    *,
    num_real: int,
    num_synthetic: int,
    farthest: float = 4.0,
    confidence: float = 0.95,
    num_resamples: int = 2000,
) -> ExchangeRate:
    """The exchange rate (n* - `num_real`) / `num_synthetic`, where real-only training on n* images is as accurate as real+synthetic.

    `real` [seeds, sizes] are test accuracies of real-only training at `sizes` images; `mixed` [seeds] those of `num_real` real and
    `num_synthetic` synthetic images, paired by seed. n* is trusted from the smallest size over `farthest` to the largest times it. The
    interval resamples seeds, of curve and arm alike, stretched for their small number; a resample whose curve does not rise widens it at
    both ends. Raises `ValueError` on shapes that do not pair, fewer than two seeds or three sizes, or a curve that does not rise.
    """
    _check_sizes(sizes)
    table = np.column_stack([np.asarray(real, dtype=np.float64), np.asarray(mixed, dtype=np.float64)])
    _check_table(table, sizes, num_real=num_real, num_synthetic=num_synthetic, farthest=farthest)
    searched = (float(np.min(sizes)) / farthest, float(np.max(sizes)) * farthest)
    mean = table.mean(axis=0)
    curve = fit_learning_curve(sizes, mean[:-1])
    if curve.scale == 0.0:
        raise ValueError("real-only accuracy does not rise with the number of images, so nothing can be said in real images")
    weights = stretched_weights(np.ones(len(table), dtype=np.int64), rng, confidence, num_resamples)
    drawn = weights @ table / len(table)
    below, above = _equivalents(sizes, drawn[:, :-1], drawn[:, -1], searched)
    equivalent = float(_equivalents(sizes, mean[None, :-1], mean[-1:], searched)[0][0])
    tail = (1 - confidence) / 2
    ends = np.quantile(below, tail, method="lower"), np.quantile(above, 1 - tail, method="higher")
    low, high = ((float(end) - num_real) / num_synthetic for end in ends)
    return ExchangeRate(
        curve=curve, equivalent=equivalent, rate=(equivalent - num_real) / num_synthetic, ci95=(low, high), searched=searched
    )


def _equivalents(sizes: NDArray[np.int64], accuracies: Floats, reached: Floats, searched: tuple[float, float]) -> tuple[Floats, Floats]:
    """The least and the greatest n* of each row [rows]: equal, but for a curve that does not rise, which says nothing."""
    ceiling, scale, exponent = _fit(sizes, accuracies)
    with np.errstate(divide="ignore", over="ignore"):
        missing = np.maximum(ceiling - reached, 0.0)
        found = _unit(sizes) * np.exp((np.log(scale) - np.log(missing)) / exponent)
    found = np.where(scale == 0.0, math.nan, found)
    found = np.where(found > searched[1], math.inf, np.where(found < searched[0], -math.inf, found))
    return np.where(np.isnan(found), -math.inf, found), np.where(np.isnan(found), math.inf, found)


def _fit(sizes: NDArray[np.int64], accuracies: Floats) -> tuple[Floats, Floats, Floats]:
    """Ceiling, scale and exponent of every row of `accuracies` [rows, sizes], each [rows].

    Ceiling and scale are linear for a given exponent, so that only the exponent is searched, on a grid that zooms in.
    """
    low, high = (np.full(len(accuracies), math.log(end)) for end in _EXPONENTS)
    for _ in range(_ZOOMS):
        grid = np.linspace(low, high, _GRID, axis=1)  # [rows, exponents]
        ceiling, scale, loss = _linear_parts(np.exp(grid), np.asarray(sizes) / _unit(sizes), accuracies)
        rows, best = np.arange(len(accuracies)), loss.argmin(axis=1)
        low, high = grid[rows, np.maximum(best - 1, 0)], grid[rows, np.minimum(best + 1, _GRID - 1)]
    return ceiling[rows, best], scale[rows, best], np.exp(grid[rows, best])


def _linear_parts(exponents: Floats, sizes: Floats, accuracies: Floats) -> tuple[Floats, Floats, Floats]:
    """Least squares of ceiling <= 1 and scale >= 0 for each exponent [rows, exponents], and the squares that are left."""
    powers = np.exp(-exponents[..., None] * np.log(sizes))  # [rows, exponents, sizes]
    reached = accuracies[:, None, :]
    spread = powers - powers.mean(axis=-1, keepdims=True)
    scale = np.maximum(0.0, -(spread * reached).mean(axis=-1) / (spread**2).mean(axis=-1))
    ceiling = reached.mean(axis=-1) + scale * powers.mean(axis=-1)
    # The problem is convex: where the free optimum has a ceiling above 1, the constrained one has it at 1.
    at_one = np.maximum(0.0, (powers * (1 - reached)).mean(axis=-1) / (powers**2).mean(axis=-1))
    scale, ceiling = np.where(ceiling > 1, at_one, scale), np.minimum(ceiling, 1.0)
    loss = ((ceiling[..., None] - scale[..., None] * powers - reached) ** 2).sum(axis=-1)
    return ceiling, scale, loss


def _unit(sizes: NDArray[np.int64]) -> float:
    return float(np.exp(np.log(sizes).mean()))


def _check_sizes(sizes: NDArray[np.int64]) -> None:
    given = np.asarray(sizes)
    if given.ndim != 1 or np.unique(given).size != given.size or given.size < 3 or given.min() < 1:
        raise ValueError(f"a learning curve needs at least three different sizes of at least one image, got {given.tolist()}")


def _check_table(table: Floats, sizes: NDArray[np.int64], *, num_real: int, num_synthetic: int, farthest: float) -> None:
    if table.shape[0] < 2 or table.shape[1] != len(sizes) + 1 or not np.isfinite(table).all():
        raise ValueError(
            f"expected finite accuracies of two seeds or more at {len(sizes)} sizes, got {table.shape[0]} x {table.shape[1] - 1}"
        )
    if num_real < 1 or num_synthetic < 1 or not farthest >= 1:
        raise ValueError(
            f"expected at least one real and one synthetic image and a factor of 1 or more: {num_real}, {num_synthetic}, {farthest}"
        )
