"""The standard error of a mean over [seeds, images] when both were sampled, and the interval and the test that follow from it.

Seeds may come in sets - those that trained on the same synthetic images - and images in groups, such as those of one patient. Sets and
groups are then what was sampled: whatever lies inside one counts as one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats
from scipy.optimize import elementwise

from gda.stats.paired import Floats

Interval = tuple[float, float]
Ids = NDArray[np.integer]
FEWEST_FLIPPED = 6  # with fewer, no sign-flip test reaches 0.05
_SLACK = 1e-9  # of a critical value: what rounding may put its bracket's ends on the wrong side of it


@dataclass(frozen=True, kw_only=True)
class TwoWay:
    """A mean with its standard error, the share of its variance that is due to seeds, in [0, 1], and both degrees of freedom."""

    mean: float
    error: float
    seed_share: float
    seed_freedom: float
    image_freedom: float

    def p_value(self) -> float:
        """Two-sided test of "the mean is zero"; without any variation, 1 for a zero mean and 0 otherwise.

        With few seeds the error of their part is itself uncertain. So the statistic is referred to a mixture of two t distributions,
        those of seeds and of images, in the shares of their variances; Cochran and Cox (1957, section 4.14) mix the critical values so.
        """
        if self.error == 0.0:
            return 1.0 if self.mean == 0.0 else 0.0
        return self._tail(abs(self.mean) / self.error)

    def p_value_below(self) -> float:
        """One-sided test of "the mean is not below zero", by the same distribution."""
        both = self.p_value()
        return both / 2 if self.mean < 0 else 1 - both / 2

    def interval(self, confidence: float) -> Interval:
        """Every mean that the test of level 1 - `confidence` would not reject; callers clip differences to [-1, 1]."""
        half = self.critical(1 - confidence) * self.error
        return self.mean - half, self.mean + half

    def critical(self, level: float) -> float:
        """The standard errors that a mean must differ by, to be significant at `level`, two-sided."""
        ends = [float(stats.t.isf(level / 2, freedom)) for freedom in (self.seed_freedom, self.image_freedom)]
        if not 0.0 < self.seed_share < 1.0:
            return ends[0] if self.seed_share else ends[1]
        return float(optimize.brentq(lambda statistic: self._tail(statistic) - level, min(ends) * (1 - _SLACK), max(ends) * (1 + _SLACK)))

    def _tail(self, statistic: float) -> float:
        tails = [2 * float(stats.t.sf(statistic, freedom)) for freedom in (self.seed_freedom, self.image_freedom)]
        return self.seed_share * tails[0] + (1 - self.seed_share) * tails[1]


def critical_values(estimates: Sequence[TwoWay], level: float) -> Floats:
    """`TwoWay.critical` of many estimates at once [n]."""
    share = np.array([estimate.seed_share for estimate in estimates])
    freedoms = [np.array([getattr(estimate, name) for estimate in estimates]) for name in ("seed_freedom", "image_freedom")]
    ends = [stats.t.isf(level / 2, freedom) for freedom in freedoms]

    def above(statistic: Floats, share: Floats, seed_freedom: Floats, image_freedom: Floats) -> Floats:
        tails = 2 * share * stats.t.sf(statistic, seed_freedom) + 2 * (1 - share) * stats.t.sf(statistic, image_freedom)
        return np.asarray(tails - level)

    bracket = np.minimum(*ends) * (1 - _SLACK), np.maximum(*ends) * (1 + _SLACK)
    return np.asarray(elementwise.find_root(above, bracket, args=(share, *freedoms)).x)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A mean, the variance that seeds and that images give it, their interaction, which both of these contain, and degrees of freedom."""

    mean: float
    over_seeds: float
    over_images: float
    interaction: float
    seed_freedom: float
    image_freedom: float

    def estimate(self) -> TwoWay:
        """Both parts less their interaction (Cameron, Gelbach and Miller 2011, eq. 2.8), never below either part alone."""
        both = self.over_seeds + self.over_images
        return TwoWay(
            mean=self.mean,
            error=float(np.sqrt(max(self.over_seeds, self.over_images, both - self.interaction))),
            seed_share=self.over_seeds / both if both > 0 else 0.0,
            seed_freedom=self.seed_freedom,
            image_freedom=self.image_freedom,
        )


def two_way(values: Floats, *, sets: Ids | None = None, groups: Ids | None = None) -> TwoWay:
    """The grand mean of `values` [seeds, images] with its standard error over sets [seeds] and groups [images], by default each its own.

    Raises as `parts_of` does.
    """
    return parts_of(values, sets=sets, groups=groups).estimate()


def parts_of(values: Floats, *, sets: Ids | None = None, groups: Ids | None = None) -> Parts:
    """The grand mean of `values` [seeds, images] and the parts of its variance over sets [seeds] and groups [images].

    A single set (or group) contributes no part: the answer then holds for that set (group) only. Raises `ValueError` where `values` is
    empty or not finite, or ids do not fit.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise ValueError(f"expected a finite, non-empty [seeds, images] array, got shape {table.shape}")
    mean = float(table.mean())
    by_seed, by_image = table.mean(axis=1) - mean, table.mean(axis=0) - mean
    rows, columns = _codes(sets, table.shape[0]), _codes(groups, table.shape[1])
    over_seeds, seed_freedom, seed_factor = _part(by_seed, rows)
    over_images, image_freedom, image_factor = _part(by_image, columns)
    residual = _summed(_summed(table - mean - by_seed[:, None] - by_image, rows).T, columns)
    return Parts(
        mean=mean,
        over_seeds=over_seeds,
        over_images=over_images,
        interaction=seed_factor * image_factor * float((residual**2).sum()) / table.size**2,
        seed_freedom=seed_freedom,
        image_freedom=image_freedom,
    )


def sets_of(parts: int, seeds: Sequence[int]) -> Ids | None:
    """Which of so many synthetic sets each of `seeds` trained on; None for one set."""
    return None if parts == 1 else np.array(seeds, dtype=np.int64) % parts


def flipped(by_seed: Floats, sets: Ids | None) -> Floats:
    """The differences whose signs are flipped: by set if there are enough sets, because seeds of one set share its effect."""
    if sets is None or np.unique(sets).size < FEWEST_FLIPPED:
        return by_seed
    _, codes, counts = np.unique(sets, return_inverse=True, return_counts=True)
    return np.asarray(np.bincount(codes, weights=by_seed) / len(by_seed) * counts.size)


def _codes(ids: Ids | None, size: int) -> NDArray[np.int64]:
    if ids is None:
        return np.arange(size)
    given = np.asarray(ids)
    if given.shape != (size,):
        raise ValueError(f"expected {size} ids, one each, got shape {given.shape}")
    return np.unique(given, return_inverse=True)[1]


def _part(deviations: Floats, codes: NDArray[np.int64]) -> tuple[float, float, float]:
    """Variance of a mean over clusters `codes`, its degrees of freedom, and the correction n/(n-1) that it contains; 0, 1, 0 for one.

    A cluster of many weighs more: the freedom is that of a sum of squares so weighted (Satterthwaite 1946), and the number of clusters
    less 1 where all are equally large.
    """
    sizes = np.bincount(codes).astype(np.float64)
    if sizes.size < 2:
        return 0.0, 1.0, 0.0
    factor = sizes.size / (sizes.size - 1)
    variance = factor * float((np.bincount(codes, weights=deviations) ** 2).sum()) / deviations.size**2
    freedom = float((sizes**2).sum() ** 2 / (sizes**4).sum() - 1)
    return variance, max(freedom, 1.0), factor


def _summed(table: Floats, codes: NDArray[np.int64]) -> Floats:
    """Sums of the rows of each cluster."""
    if codes.size == int(codes.max()) + 1:  # each its own
        return table
    sums = np.zeros((int(codes.max()) + 1, table.shape[1]))
    np.add.at(sums, codes, table)
    return sums
