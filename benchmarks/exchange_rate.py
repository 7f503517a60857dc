"""How often the interval of the exchange rate holds the truth, over several learning curves: `python benchmarks/exchange_rate.py`.

Accuracies of real-only training at five sizes and of an arm that is worth a known number of real images are sampled with noise of the seed.
Four ways to an interval are compared: `bracket` is what `gda compare` states; `power law` fits accuracy = a - b n^-c and resamples seeds,
as `gda compare` did before; `interpolation` resamples seeds too, and reads straight lines in log n; `four curves` spans the intervals of
these two, of a stretched exponential and of a logistic curve in log n.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from gda.stats.exchange import exchange_rate
from gda.stats.paired import Floats

SIZES = np.array([100, 200, 400, 800, 1600])
NUM_SYNTHETIC = 1000
WORTHS = (150, 400, 600, 1100, 1400, 3000)  # real images that the arm is worth; the last is beyond the largest size
Ends = tuple[float, float]

CURVES: dict[str, Callable[[Floats], Floats]] = {
    "power law": lambda n: 0.95 - 0.2 * (n / 400) ** -0.5,
    "logistic in log n": lambda n: 0.3 + 0.6 / (1 + (n / 400) ** -2.0),
    "broken power law": lambda n: np.where(n < 400, 0.95 - 0.45 * (n / 400) ** -0.1, 0.95 - 0.45 * (n / 400) ** -0.8),
    "saturating exponential": lambda n: 0.9 - 0.6 * np.exp(-n / 400),
    "step at 600": lambda n: 0.5 + 0.4 / (1 + (n / 600) ** -16.0) + 0.01 * np.log(n / 100),
}


def stretched_weights(counts: NDArray[np.int64], rng: np.random.Generator, confidence: float, num_resamples: int) -> Floats:
    """Multinomial weights [num_resamples, len(counts)] of items that occur `counts` times, stretched about 1; a lone item has weight 1.

    With a handful of items a percentile interval is too short - by sqrt((n-1)/n) and by the normal against the t distribution - so the
    weights are stretched by sqrt(n/(n-1)) * t/z: the expanded percentile interval of Hesterberg (2015, section 5.2).
    """
    size = int(counts.sum())
    if size < 2:
        return counts[None].astype(np.float64)
    level = (1 + confidence) / 2
    stretch = np.sqrt(size / (size - 1)) * stats.t.ppf(level, size - 1) / stats.norm.ppf(level)
    resampled = rng.multinomial(size, counts / size, size=num_resamples)
    return counts + stretch * (resampled - counts)


def choice(curve: Callable[[Floats], Floats], worth: float, seeds: int, sd: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Accuracies of real-only training [seeds, sizes] and of the arm [seeds], with normal noise, half of its variance shared by a seed."""
    truth = curve(np.append(SIZES, worth).astype(np.float64))
    noise = rng.normal(0, sd, (seeds, len(truth))) + rng.normal(0, sd, (seeds, 1))
    resampled = truth + noise / math.sqrt(2)
    return resampled[:, :-1], resampled[:, -1]


def bracket(real: Floats, mixed: Floats, rng: np.random.Generator) -> Ends | None:
    """Ends of n* less 1 as `gda compare` states them; None where it states none."""
    try:
        return exchange_rate(SIZES, real, mixed, num_real=1, num_synthetic=1).ci95
    except ValueError:
        return None


def power_law(real: Floats, mixed: Floats, rng: np.random.Generator) -> Ends | None:
    """Ends of n* by a least-squares power law of each resample, open where four times the largest size is passed."""
    return _ends(_fitted(_resampled(real, mixed, rng), FAMILIES["power law"]))


def families(real: Floats, mixed: Floats, rng: np.random.Generator) -> Ends | None:
    """The least and the greatest end over all families and the interpolation, each by the same resamples."""
    means = _resampled(real, mixed, rng)
    ends = [_ends(_fitted(means, family)) for family in FAMILIES.values()] + [_ends(_interpolated(means))]
    return min(low for low, _ in ends), max(high for _, high in ends)


def interpolation(real: Floats, mixed: Floats, rng: np.random.Generator) -> Ends | None:
    """Ends of n* by straight lines in log n through each resample, open beyond the sizes."""
    return _ends(_interpolated(_resampled(real, mixed, rng)))


def _resampled(real: Floats, mixed: Floats, rng: np.random.Generator) -> Floats:
    """Mean accuracies of the sizes and the arm in 300 resamples of seeds, [resamples, sizes + 1]."""
    table = np.column_stack([real, mixed])
    return stretched_weights(np.ones(len(table), dtype=np.int64), rng, 0.95, 300) @ table / len(table)


@dataclass(frozen=True, kw_only=True)
class Family:
    """accuracy(n) = a - b g(n) with g falling; `shortfall` [parameters, sizes] is g, `images` its inverse by row of the parameters."""

    shortfall: Floats
    images: Callable[[Floats, NDArray[np.int64]], Floats]


def _power(exponents: Floats) -> Family:
    return Family(shortfall=(SIZES / 400) ** -exponents[:, None], images=lambda g, row: 400 * g ** (-1 / exponents[row]))


def _exponential(scales: Floats, exponents: Floats) -> Family:
    tau, c = (part.ravel() for part in np.meshgrid(scales, exponents))
    return Family(shortfall=np.exp(-((SIZES / tau[:, None]) ** c[:, None])), images=lambda g, row: tau[row] * (-np.log(g)) ** (1 / c[row]))


def _logistic(scales: Floats, exponents: Floats) -> Family:
    tau, k = (part.ravel() for part in np.meshgrid(scales, exponents))
    return Family(shortfall=1 / (1 + (SIZES / tau[:, None]) ** k[:, None]), images=lambda g, row: tau[row] * (1 / g - 1) ** (1 / k[row]))


FAMILIES = {
    "power law": _power(np.geomspace(0.05, 2.0, 120)),
    "exponential": _exponential(np.geomspace(50, 3200, 40), np.array([0.5, 0.7, 1.0, 1.5, 2.0])),
    "logistic in log n": _logistic(np.geomspace(50, 3200, 40), np.array([0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 16.0])),
}


def _fitted(means: Floats, family: Family) -> Floats:
    """n* of each resample by the least-squares member of a family."""
    g = family.shortfall
    spread = g - g.mean(axis=1, keepdims=True)
    squares = (spread**2).sum(axis=1)
    centred = means[:, :-1] - means[:, :-1].mean(axis=1, keepdims=True)
    scale = np.maximum(0.0, -(centred @ spread.T) / np.maximum(squares, 1e-12))  # [resamples, parameters]
    loss = 2 * scale * (centred @ spread.T) + scale**2 * squares  # minus the part that no parameter changes
    rows, best = np.arange(len(means)), loss.argmin(axis=1)
    ceiling = means[:, :-1].mean(axis=1) + scale[rows, best] * g[best].mean(axis=1)
    with np.errstate(all="ignore"):
        found = family.images((ceiling - means[:, -1]) / scale[rows, best], best)
    above = (ceiling <= means[:, -1]) | (found > 4 * SIZES[-1])
    return np.where(above, math.inf, np.where(np.isnan(found) | (found < SIZES[0] / 4), 0.0, found))


def _interpolated(means: Floats) -> Floats:
    logs, tilt = np.log(SIZES), 1e-12 * np.arange(len(SIZES))
    rising = [optimize.isotonic_regression(row[:-1]).x + tilt for row in means]
    return np.exp([np.interp(row[-1], up, logs, left=-math.inf, right=math.inf) for row, up in zip(means, rising, strict=True)])


def _ends(found: Floats) -> Ends:
    low, high = np.quantile(found, 0.025, method="lower"), np.quantile(found, 0.975, method="higher")
    return float(low) - 1, float(high) - 1


METHODS = {"bracket": bracket, "power law": power_law, "interpolation": interpolation, "four curves": families}


def measure(method: str, curve: str, seeds: int, *, repeats: int, sd: float, worths: tuple[int, ...] = WORTHS) -> dict[str, float]:
    """Shares over `worths` and `repeats`: `stated` an interval at all, `covered` of those, `worst` covered of a worth, `closed` both ends.

    `factor` is the median of the upper over the lower number of real images of those that are closed.
    """
    rng = np.random.default_rng([seeds, *map(ord, curve)])
    inside, stated, factors = [], 0, []
    for worth in worths:
        found = [ends for _ in range(repeats) if (ends := METHODS[method](*choice(CURVES[curve], worth, seeds, sd, rng), rng)) is not None]
        stated += len(found)
        inside.append([low <= worth - 1 <= high for low, high in found])
        factors += [(high + 1) / (low + 1) for low, high in found if low > -1 and high < math.inf]
    return {
        "stated": stated / (repeats * len(worths)),
        "covered": float(np.mean(np.concatenate(inside))),
        "worst": min(float(np.mean(each)) for each in inside),
        "closed": len(factors) / max(stated, 1),
        "factor": float(np.median(factors)) if factors else math.nan,
    }


def main() -> None:
    """Print the table of docs/arms.md: shares of intervals that hold the truth, in brackets of the worst worth; then the bracket's size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=60, help="data sets for each curve, number of seeds and worth")
    parser.add_argument("--noise", type=float, default=0.005, help="standard deviation of an accuracy over seeds")
    chosen = parser.parse_args()
    names = [name for name in METHODS if name != "bracket"] + ["bracket"]
    print("|".join(["", " curve ", " seeds ", *(f" {name} " for name in names), " stated ", " both ends ", " upper / lower ", ""]))
    print("|" + "---|" * (len(names) + 5))
    for curve in CURVES:
        for seeds in (3, 5, 10):
            found = {name: measure(name, curve, seeds, repeats=chosen.repeats, sd=chosen.noise) for name in names}
            held = [f"{100 * each['covered']:.0f}% ({100 * each['worst']:.0f}%)" for each in found.values()]
            own = found["bracket"]
            cells = [f"{100 * own['stated']:.0f}%", f"{100 * own['closed']:.0f}%", f"{own['factor']:.1f}"]
            print("| " + " | ".join([curve, str(seeds), *held, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
