"""Diversity of a single set: the Vendi score of its features, and the Inception Score of a classifier's probabilities."""

import numpy as np
from scipy.spatial.distance import pdist
from scipy.special import log_softmax, xlogy

from gda.errors import DataError
from gda.fidelity.threads import one_thread


@one_thread
def vendi_score(features: np.ndarray) -> float:
    """Effective number of different images among features [n, d], from 1 (all alike) to min(n, d); Friedman and Dieng 2023, eq. 2.

    exp of the entropy of the eigenvalues of K / n, K the cosines of all pairs; computed from the d x d matrix where d < n, which has the
    same eigenvalues (section 3). It grows with n: compare at equal n. Rows of zeros, which have no direction, count as equal to each other
    and different from all others. Raises `DataError` without rows or for anything not finite.
    """
    rows = np.asarray(features, np.float64)
    if rows.ndim != 2 or len(rows) == 0 or not np.isfinite(rows).all():
        raise DataError(f"features: the Vendi score needs finite rows, got shape {rows.shape}")
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    zeros = length[:, 0] == 0.0
    unit = rows / np.where(length == 0.0, 1.0, length)
    values = np.linalg.eigvalsh(unit.T @ unit if unit.shape[1] < len(unit) else unit @ unit.T) / len(unit)
    spectrum = np.append(np.clip(values, 0.0, None), zeros.mean())  # all zero rows together are one more direction
    return float(np.exp(-xlogy(spectrum, spectrum).sum()))


def mean_distance(features: np.ndarray) -> float:
    """Mean euclidean distance of all pairs of features [n, d]: how far the images of one class lie apart. It does not grow with n.

    Raises `DataError` for fewer than two rows or anything not finite.
    """
    rows = np.asarray(features, np.float64)
    if rows.ndim != 2 or len(rows) < 2 or not np.isfinite(rows).all():
        raise DataError(f"features: distances need two finite rows or more, got shape {rows.shape}")
    return float(pdist(rows).mean())


def inception_score(probabilities: np.ndarray) -> float:
    """exp of the mean divergence of each image's class probabilities [n, classes] from their mean, 1 to classes; Salimans et al. 2016.

    Over all images at once; torch-fidelity's version is `inception_score_over_splits`. It grows slightly with n. Raises `DataError` without
    images or for anything but probabilities.
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or len(p) == 0 or not np.isfinite(p).all() or (p < 0).any():
        raise DataError(f"probabilities: the Inception Score needs finite ones of at least one image, got shape {p.shape}")
    mean = p.mean(0)
    # The mean divergence is the entropy of the mean less the mean entropy.
    return float(np.exp(xlogy(p, p).sum(1).mean() - xlogy(mean, mean).sum()))


def inception_score_over_splits(logits: np.ndarray, *, splits: int = 10, seed: int = 2020) -> tuple[float, float]:
    """Mean and standard deviation over `splits` parts of the shuffled logits [n, classes]: torch-fidelity's ISC, with its random numbers.

    Raises `DataError` with fewer images than splits.
    """
    if len(logits) < splits:
        raise DataError(f"logits: {len(logits)} images do not fill {splits} splits")
    order = np.random.RandomState(seed).permutation(len(logits))
    p = np.exp(log_softmax(np.asarray(logits, np.float64)[order], axis=1))
    n = len(p)
    scores = [inception_score(p[i * n // splits : (i + 1) * n // splits]) for i in range(splits)]
    return float(np.mean(scores)), float(np.std(scores))
