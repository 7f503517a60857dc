"""How many real images one synthetic image is worth, from what real-only training reaches at several numbers of images.

No family of curves is assumed. A power law is the usual one (Hestness et al. 2017), but where accuracy follows another curve, points that
it fits closely still give wrong numbers of images with narrow intervals (`benchmarks/exchange_rate.py`). All that is used here is that more
real images do not lower accuracy. Then an arm that is better than real-only training at one measured size and worse than at another is
worth a number of real images between the two, whatever the curve does there; beyond the largest size only a lower bound is known.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from gda.stats.paired import Floats


@dataclass(frozen=True, kw_only=True)
class ExchangeRate:
    """What synthetic images are worth in real ones.

    `equivalent` is the number of real images that would have given the same accuracy, read off by straight lines in log n between measured
    sizes; `rate` the real images that one synthetic image replaces (negative where they do harm), `ci95` its interval at level
    `confidence`. A number is infinite where it lies above or below all measured sizes.
    """

    equivalent: float
    rate: float
    ci95: tuple[float, float]


def exchange_rate(
    sizes: NDArray[np.int64], real: Floats, mixed: Floats, *, num_real: int, num_synthetic: int, confidence: float = 0.95
) -> ExchangeRate:
    """The exchange rate (n* - `num_real`) / `num_synthetic`, where real-only training on n* images is as accurate as real+synthetic.

    `real` [seeds, sizes] are test accuracies of real-only training at `sizes` images; `mixed` [seeds] those of `num_real` real and
    `num_synthetic` synthetic images, paired by seed. The interval of n* runs from one measured size to another: its lower end is found by
    paired t tests from the smallest size up, until the first at which the arm is not significantly better, its upper end likewise from the
    largest down. Tests in an order fixed beforehand need no correction for their number (Maurer, Hothorn and Lehmacher 1995). Raises
    `ValueError` on shapes that do not pair, fewer than two seeds or three sizes, and where accuracy falls significantly with more images.
    """
    given = np.asarray(sizes)
    _check_sizes(given)
    order = np.argsort(given)
    curve, reached = np.asarray(real, dtype=np.float64), np.asarray(mixed, dtype=np.float64)
    _check_tables(curve, reached, len(given), num_real=num_real, num_synthetic=num_synthetic)
    measured, curve = given[order].astype(np.float64), curve[:, order]
    _require_rising(measured, curve, 1 - confidence)
    tail = (1 - confidence) / 2
    better = _significantly_positive(reached[:, None] - curve, tail)
    worse = _significantly_positive(curve - reached[:, None], tail)
    # The first size that is not passed, from below and from above.
    low = int(np.argmin([*better, False]))
    high = int(np.argmin([*worse[::-1], False]))
    ends = np.concatenate([[-math.inf], measured])[low], np.concatenate([[math.inf], measured[::-1]])[high]
    equivalent = _equivalent(measured, curve.mean(axis=0), float(reached.mean()))
    rate, bottom, top = ((float(number) - num_real) / num_synthetic for number in (equivalent, *ends))
    return ExchangeRate(equivalent=equivalent, rate=rate, ci95=(bottom, top))


def _significantly_positive(differences: Floats, level: float) -> NDArray[np.bool_]:
    """Whether the mean of each column of `differences` [seeds, columns] is above zero by a one-sided t test at `level`.

    Seeds that agree to the last digit do not: accuracies are multiples of one image, so they may agree by chance.
    """
    error = differences.std(axis=0, ddof=1) / math.sqrt(len(differences))
    critical = float(stats.t.ppf(1 - level, len(differences) - 1))
    return (differences.mean(axis=0) > critical * error) & (error > 1e-12)


def _require_rising(sizes: Floats, real: Floats, level: float) -> None:
    """Raise `ValueError` where real-only accuracy falls from one size to a larger one, at `level` over all pairs (Bonferroni)."""
    pairs = list(itertools.combinations(range(len(sizes)), 2))
    falls = _significantly_positive(np.column_stack([real[:, few] - real[:, many] for few, many in pairs]), level / len(pairs))
    if falls.any():
        few, many = pairs[int(falls.argmax())]
        raise ValueError(
            f"real-only accuracy falls from {sizes[few]:,.0f} to {sizes[many]:,.0f} images, so it cannot be turned into a number of images"
        )


def _equivalent(sizes: Floats, means: Floats, reached: float) -> float:
    """n* by straight lines in log n through the nondecreasing accuracies nearest to `means`; infinite beyond the sizes."""
    rising = optimize.isotonic_regression(means).x
    if not rising[0] <= reached <= rising[-1]:
        return math.inf if reached > rising[-1] else -math.inf
    # In the middle of a flat stretch, where every number of images on it would do.
    below, above = (np.searchsorted(rising, reached, side=side) for side in ("left", "right"))
    if below < above:
        return float(np.exp(np.log(sizes[[below, above - 1]]).mean()))
    return float(np.exp(np.interp(reached, rising[below - 1 : below + 1], np.log(sizes[below - 1 : below + 1]))))


def _check_sizes(sizes: NDArray[np.int64]) -> None:
    if sizes.ndim != 1 or np.unique(sizes).size != sizes.size or sizes.size < 3 or sizes.min() < 1:
        raise ValueError(f"a learning curve needs at least three different sizes of at least one image, got {sizes.tolist()}")


def _check_tables(real: Floats, mixed: Floats, num_sizes: int, *, num_real: int, num_synthetic: int) -> None:
    pairs = real.ndim == 2 and real.shape[1] == num_sizes and mixed.shape == (len(real),)
    if not pairs or len(real) < 2 or not (np.isfinite(real).all() and np.isfinite(mixed).all()):
        raise ValueError(
            f"expected finite accuracies of two seeds or more at {num_sizes} sizes, got {' x '.join(map(str, real.shape))} and "
            f"{' x '.join(map(str, mixed.shape))}"
        )
    if num_real < 1 or num_synthetic < 1:
        raise ValueError(f"expected at least one real and one synthetic image: {num_real}, {num_synthetic}")
