"""Tests of paired differences: sign flips over seeds, McNemar over images, Holm's correction.

Arrays called `differences` are [seeds, images] of `correct_a - correct_b`, so each entry is -1, 0 or 1 and positive favours arm a.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
EXACT_LIMIT = 16
_ROUNDING = 1e-12  # sums of the same numbers in another order may differ by this


def paired_differences(correct_a: NDArray[np.bool_], correct_b: NDArray[np.bool_]) -> Floats:
    """`correct_a - correct_b` as floats [seeds, images]; row s of both was trained with the same seed.

    Raises `ValueError` on unequal or empty shapes.
    """
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    if a.shape != b.shape or a.ndim != 2 or a.size == 0:
        raise ValueError(f"expected two equal, non-empty [seeds, images] arrays, got {a.shape} and {b.shape}")
    return a.astype(np.float64) - b.astype(np.float64)


def sign_flip_test(differences: Floats, rng: np.random.Generator | None = None, *, num_flips: int = 65536) -> float:
    """Two-sided p-value of "the mean is zero" for independent differences that are symmetric about zero (Fisher 1935, section 21).

    Exact over all 2^n sign patterns up to n = 16; above, `num_flips` random ones from `rng`, counting the observed pattern among
    them, (1 + hits) / (1 + flips), so that the p-value stays valid (Phipson and Smyth 2010). The smallest reachable value is
    2^(1-n): 0.0625 with five differences, 0.03125 with six. Raises `ValueError` on an empty or non-finite input.
    """
    values = np.asarray(differences, dtype=np.float64).ravel()
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError("the sign-flip test needs at least one difference, all finite")
    observed = abs(values.sum()) - _ROUNDING * max(1.0, np.abs(values).sum())
    if values.size <= EXACT_LIMIT:
        return float(np.mean(np.abs(_all_signed_sums(values)) >= observed))
    if rng is None:
        raise ValueError(f"more than {EXACT_LIMIT} differences need a random generator")
    signs = rng.integers(0, 2, size=(num_flips, values.size), dtype=np.int8) * 2 - 1
    return float((1 + np.count_nonzero(np.abs(signs @ values) >= observed)) / (1 + num_flips))


def _all_signed_sums(values: Floats) -> Floats:
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate((sums + value, sums - value))
    return sums


def mcnemar_exact(differences: Floats) -> float:
    """Two-sided exact McNemar p-value over images; an image counts for the arm that gets it right with more seeds.

    With one seed this is McNemar's test with the binomial distribution (Fagerland et al. 2013, eq. 2). Images are the
    independent units, so pooling seeds inside an image keeps it valid for the seeds that were run. No discordant image gives 1.
    """
    net = np.asarray(differences).sum(axis=0)
    wins, losses = int((net > 0).sum()), int((net < 0).sum())
    if wins + losses == 0:
        return 1.0
    return float(stats.binomtest(wins, wins + losses).pvalue)


def holm(p_values: Floats) -> Floats:
    """Holm's (1979) step-down adjusted p-values, in the order given; reject where one is at most alpha."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = p[order] * np.arange(p.size, 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return adjusted
