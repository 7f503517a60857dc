"""Tests of paired differences: sign flips over seeds or images, McNemar over images.

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


def flip_tail(net: NDArray[np.integer]) -> float:
    """One-sided exact sign-flip p-value of whole numbers `net` [n] against a loss: the share of sign patterns that lose as much.

    Valid where each is as likely to have either sign (Fisher 1935, section 21). With one value of +-1 a thing it is McNemar's exact test.
    The distribution of the sum comes from its characteristic function, so that any number of patterns takes as long as their sum is
    large; rounding limits it to 1e-13. Nothing but zeros gives 1.
    """
    sizes, counts = np.unique(np.abs(net[net != 0]), return_counts=True)
    total = int((sizes * counts).sum())
    if total == 0:
        return 1.0
    angles = -2j * np.pi * np.arange((total + 1) // 2 + 1) / (total + 1)
    transform = np.ones(angles.size, dtype=np.complex128)
    for size, count in zip(sizes, counts, strict=True):
        transform *= ((1 + np.exp(angles * size)) / 2) ** count
    masses = np.fft.irfft(transform, total + 1)
    lost = int(-net[net < 0].sum())
    return float(np.clip(masses[lost:].sum(), max(0.5 ** int(counts.sum()), 1e-13), 1.0))
