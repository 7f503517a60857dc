"""Frechet distance between feature distributions, in float64 (float32 is off by percents).

|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)); Dowson and Landau 1982, Heusel et al. 2017 eq. 6. The trace of the root is the sum of the
singular values of F G^T for any factors A = F^T F and B = G^T G. Three methods give the same number:

- a Cholesky factor L of A, and the roots of the eigenvalues of L^T B L, which is symmetric: the fastest, if A and B have full rank;
- eigenvectors as factors, cut at the rank: if the roots of eigenvalues that should be zero would add up to a visible error;
- the centred features themselves as factors, n x m instead of d x d: if there are fewer images than dimensions.
"""

from dataclasses import dataclass

import numpy as np
from scipy import linalg

from gda.errors import DataError
from gda.fidelity.threads import one_thread

_NOISE = 4 * np.finfo(np.float64).eps  # of an eigenvalue, relative to the largest
_TOLERANCE = 1e-10  # of the shared trace, relative to both traces


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean float64 [d], covariance float64 [d, d] (divisor n - 1) and count of a feature set; `n` is None if unknown."""

    mean: np.ndarray
    cov: np.ndarray
    n: int | None


@one_thread
def statistics(features: np.ndarray) -> Statistics:
    """Statistics of features [n, d]. Raises `DataError` with fewer than two rows or anything not finite."""
    mean, factor = _mean_and_factor(features)
    return Statistics(mean=mean, cov=factor.T @ factor, n=len(factor))


@one_thread
def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Distance of two sets by their statistics: zero (up to rounding, never below it) for equal ones."""
    shared = _by_cholesky(a.cov, b.cov)
    if shared is None:
        shared = _nuclear_norm(_root(a.cov), _root(b.cov))
    return _distance(a.mean - b.mean, float(np.trace(a.cov) + np.trace(b.cov)), shared)


@one_thread
def frechet_of_features(a: np.ndarray, b: np.ndarray) -> float:
    """The same of features [n, d] and [m, d], without a matrix of d x d where n or m is at most d. Raises as `statistics` does."""
    (mean_a, rows_a), (mean_b, rows_b) = _mean_and_factor(a), _mean_and_factor(b)
    if min(len(rows_a), len(rows_b)) > rows_a.shape[1]:
        return frechet_distance(_stated(mean_a, rows_a), _stated(mean_b, rows_b))
    traces = float(np.square(rows_a).sum() + np.square(rows_b).sum())
    return _distance(mean_a - mean_b, traces, _nuclear_norm(_short(rows_a), _short(rows_b)))


@one_thread
def frechet_to(reference: Statistics, features: np.ndarray) -> float:
    """The same of features [n, d] to fixed statistics. Raises as `statistics` does."""
    mean, rows = _mean_and_factor(features)
    if len(rows) > rows.shape[1]:
        return frechet_distance(_stated(mean, rows), reference)
    traces = float(np.square(rows).sum() + np.trace(reference.cov))
    return _distance(mean - reference.mean, traces, _nuclear_norm(rows, _root(reference.cov)))


def _mean_and_factor(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d], and rows [n, d] whose Gram matrix over the dimensions is the covariance."""
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or len(rows) < 2:
        raise DataError(f"features: a covariance needs at least two rows, got shape {rows.shape}")
    if not np.isfinite(rows).all():
        raise DataError("features: not all values are finite")
    mean = rows.mean(0)
    return mean, (rows - mean) / np.sqrt(len(rows) - 1)


def _stated(mean: np.ndarray, rows: np.ndarray) -> Statistics:
    return Statistics(mean=mean, cov=rows.T @ rows, n=len(rows))


def _short(rows: np.ndarray) -> np.ndarray:
    """A factor of the same covariance with at most d rows."""
    return _root(rows.T @ rows) if len(rows) > rows.shape[1] else rows


def _distance(gap: np.ndarray, traces: float, shared: float) -> float:
    return max(0.0, float(gap @ gap) + traces - 2.0 * shared)


def _nuclear_norm(a: np.ndarray, b: np.ndarray) -> float:
    """Sum of the singular values of a b^T, of factors [r, d] and [s, d]."""
    return float(np.linalg.svd(a @ b.T, compute_uv=False).sum()) if len(a) and len(b) else 0.0


def _by_cholesky(a: np.ndarray, b: np.ndarray) -> float | None:
    """Trace of (A B)^(1/2) from the eigenvalues of L^T B L; None where they are too small for their roots to be exact enough."""
    factor, info = linalg.lapack.dpotrf(a, lower=1, clean=0)
    if info != 0:
        return None
    product, info = linalg.lapack.dsygst(b, factor, itype=2, lower=1)
    assert info == 0, f"dsygst: argument {-info}"
    values = np.clip(linalg.eigh(product, lower=True, eigvals_only=True, driver="evd", overwrite_a=True, check_finite=False), 0.0, None)
    roots, noise = np.sqrt(values), _NOISE * values.max(initial=0.0)
    vanishing = values <= 10 * noise
    # An error e of an eigenvalue v is e / 2 sqrt(v) of its root, of either sign; eigenvalues that should be zero only ever add.
    error = np.sqrt(np.square(noise / (2 * roots[~vanishing])).sum()) + vanishing.sum() * np.sqrt(noise)
    return None if error > _TOLERANCE * (np.trace(a) + np.trace(b)) else float(roots.sum())


def _root(cov: np.ndarray) -> np.ndarray:
    """F [r, d] with F^T F = cov, r its numerical rank."""
    values, vectors = np.linalg.eigh(cov)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    return (vectors[:, kept] * np.sqrt(values[kept])).T
