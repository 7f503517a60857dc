"""Bootstrap weights for a handful of items."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from gda.stats.paired import Floats


def stretched_weights(counts: NDArray[np.int64], rng: np.random.Generator, confidence: float, num_resamples: int) -> Floats:
    """Multinomial weights [num_resamples, len(counts)] of items that occur `counts` times, stretched about 1; a lone item has weight 1.

    With a handful of items a percentile interval is too short - by sqrt((n-1)/n) and by the normal against the t distribution - so the
    weights are stretched by sqrt(n/(n-1)) * t/z: the expanded percentile interval of Hesterberg (2015, section 5.2).
    """
    size = int(counts.sum())
    if size < 2:
        return counts[None].astype(np.float64)
    level = (1 + confidence) / 2
    stretch = np.sqrt(size / (size - 1)) * stats.t.ppf(level, size - 1) / stats.norm.ppf(level)
    drawn = rng.multinomial(size, counts / size, size=num_resamples)
    return counts + stretch * (drawn - counts)
