"""Frechet distance between feature distributions, in float64 (float32 is off by percents)."""

from dataclasses import dataclass

import numpy as np

from gda.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean float64 [d], covariance float64 [d, d] (divisor n - 1) and count of a feature set."""

    mean: np.ndarray
    cov: np.ndarray
    n: int


def statistics(features: np.ndarray) -> Statistics:
    """Statistics of features [n, d]. Raises `DataError` with fewer than two rows or anything not finite."""
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or len(rows) < 2:
        raise DataError(f"features: a covariance needs at least two rows, got shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise DataError("features: not all values are finite")
    centred = rows - rows.mean(0)
    return Statistics(mean=rows.mean(0), cov=centred.T @ centred / (len(rows) - 1), n=len(rows))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)); Dowson and Landau 1982, Heusel et al. 2017 eq. 6.

    The trace of the root is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric: two `eigh` and no
    complex numbers. Zero (up to rounding, never below it) for equal statistics.
    """
    gap = a.mean - b.mean
    root = _square_root(a.cov)
    cross = root @ b.cov @ root
    shared = np.sqrt(np.clip(np.linalg.eigvalsh((cross + cross.T) / 2), 0.0, None)).sum()
    return max(0.0, float(gap @ gap + np.trace(a.cov) + np.trace(b.cov) - 2.0 * shared))


def _square_root(cov: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
