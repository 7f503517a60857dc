"""Several p-values at once: adjusted so that false gains are seldom named among them."""

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjusted p-values, in the order of `p_values` (Holm 1979): those at most alpha name any true null with probability alpha at most.

    That holds however the p-values depend on each other. Of m, the smallest counts m times, the next m - 1 times and so on; none is
    below a smaller one's, and none above 1. NaN, which is no evidence, counts as 1. Raises `ValueError` for a number outside [0, 1].
    """
    given = np.asarray(p_values, dtype=np.float64)
    if ((given < 0) | (given > 1)).any():
        raise ValueError(f"p-values lie in [0, 1], got {list(p_values)}")
    known = np.where(np.isnan(given), 1.0, given)
    order = np.argsort(known)
    adjusted = np.empty_like(known)
    adjusted[order] = np.maximum.accumulate(known[order] * np.arange(known.size, 0, -1)).clip(max=1.0)
    return tuple(float(p) for p in adjusted)
