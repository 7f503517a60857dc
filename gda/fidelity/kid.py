"""Kernel distance: squared maximum mean discrepancy with a cubic polynomial kernel, unbiased, in float64."""

import numpy as np

from gda.errors import DataError


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased MMD^2 of features [n, d] and [m, d], kernel (x . y / d + 1)^3; Binkowski et al. 2018. Can fall just below zero.

    Raises `DataError` with fewer than two rows on a side. Unlike the Frechet distance its expectation does not depend on n.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if len(x) < 2 or len(y) < 2:
        raise DataError(f"features: the kernel distance needs at least two rows a side, got {len(x)} and {len(y)}")
    return _off_diagonal_mean(_kernel(x, x)) + _off_diagonal_mean(_kernel(y, y)) - 2.0 * float(_kernel(x, y).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def _off_diagonal_mean(gram: np.ndarray) -> float:
    n = len(gram)
    return float((gram.sum() - np.trace(gram)) / (n * (n - 1)))
