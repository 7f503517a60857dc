"""Which classes are taken for which."""

import numpy as np
from numpy.typing import NDArray

_Ints = NDArray[np.integer]


def confusion_counts(predicted: _Ints, labels: _Ints, num_classes: int) -> NDArray[np.int64]:
    """Images by class and by class predicted, int64 [classes, classes], summed over seeds: `predicted` [seeds, images], `labels` [images].

    Raises `ValueError` for shapes that do not pair or a class beyond `num_classes`.
    """
    if predicted.ndim != 2 or predicted.shape[1:] != labels.shape:
        raise ValueError(f"expected predictions [seeds, images] of {labels.shape[0]} images, got {predicted.shape}")
    both = np.broadcast_to(labels, predicted.shape).astype(np.int64) * num_classes + predicted
    if both.size and (predicted.min() < 0 or predicted.max() >= num_classes or labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(f"a class is not one of {num_classes}")
    return np.bincount(both.ravel(), minlength=num_classes**2).reshape(num_classes, num_classes)


def most_confused(counts: NDArray[np.int64], most: int) -> list[tuple[int, int, float]]:
    """(class, class predicted, share of the class's images) of the largest errors, at most so many, none of them 0.

    By the share of the class, so that a class with few images is not hidden by one with many; equal ones in order of the classes.
    """
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.where(np.eye(len(counts), dtype=bool), 0.0, counts / np.maximum(totals, 1))
    order = np.argsort(-shares, axis=None, kind="stable")[:most]
    pairs = [divmod(int(flat), len(counts)) for flat in order]
    return [(label, predicted, float(shares[label, predicted])) for label, predicted in pairs if shares[label, predicted] > 0]
