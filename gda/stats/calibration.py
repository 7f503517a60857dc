"""Do a classifier's probabilities mean what they say? Reliability over bins, expected calibration error and negative log-likelihood."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15  # as in the papers that compare by it

_Floats = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Images by the probability of the class that was predicted, in equal bins of (0, 1].

    `counts` int64 [bins]; `confidence` and `accuracy` float64 [bins] are their means over each bin's images, NaN in an empty one.
    """

    counts: NDArray[np.int64]
    confidence: _Floats
    accuracy: _Floats

    @property
    def error(self) -> float:
        """Expected calibration error in [0, 1]: mean distance of accuracy and confidence, bins weighted by images (Guo et al. 2017)."""
        filled = self.counts > 0
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float(np.average(gaps, weights=self.counts[filled]))


def reliability(confidence: _Floats, correct: NDArray[np.bool_], *, bins: int = BINS) -> Reliability:
    """Bin images by `confidence` [n], the probability in [0, 1] of the class predicted, and compare with whether it is `correct` [n].

    A probability on the edge of two bins counts for the lower. Raises `ValueError` for none, other shapes or other numbers.
    """
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise ValueError(f"expected as many confidences as answers, and at least one; got {confidence.shape} and {correct.shape}")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("a confidence is not a probability")
    values = np.asarray(confidence, np.float64)
    place = np.clip(np.ceil(values * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, weights=part, minlength=bins) / counts for part in (values, correct.astype(np.float64))]
    return Reliability(counts=counts, confidence=means[0], accuracy=means[1])


def negative_log_likelihood(probability_of_label: _Floats) -> float:
    """Mean of -log p over images, p in [0, 1] being the probability of the true class; a zero counts as the least positive float32."""
    least = float(np.finfo(np.float32).tiny)
    return float(-np.log(np.maximum(np.asarray(probability_of_label, np.float64), least)).mean())
