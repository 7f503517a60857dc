"""Kernel distance: squared maximum mean discrepancy with the kernel (x . y / d + 1)^3, unbiased, in float64; Binkowski et al. 2018.

Two definitions are in use. `kernel_distance` uses every image once; the gate states it. `kernel_distance_over_subsets` is the mean over
random subsets that torch-fidelity and clean-fid print as KID; it uses torch-fidelity's random numbers, so that it is the same number as
there. Both have the same expectation.
"""

from collections.abc import Iterator

import numpy as np

from gda.errors import DataError
from gda.fidelity.neighbours import rows_at_a_time
from gda.fidelity.threads import one_thread


@one_thread
def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased MMD^2 of features [n, d] and [m, d]. Can fall just below zero.

    Raises `DataError` with fewer than two rows on a side. Unlike the Frechet distance its expectation does not depend on n.
    """
    x, y = _rows(a), _rows(b)
    _require_pairs(len(x), len(y))
    within = sum((_kernel_sum(rows, rows) - _diagonal(rows).sum()) / (len(rows) * (len(rows) - 1)) for rows in (x, y))
    return float(within - 2.0 * _kernel_sum(x, y) / (len(x) * len(y)))


@one_thread
def kernel_distance_over_subsets(
    a: np.ndarray, b: np.ndarray, *, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Mean and standard deviation over `subsets` pairs of `size` rows, chosen without replacement by torch-fidelity's random numbers.

    Raises `DataError` with fewer than `size` rows on a side, or a size below two.
    """
    x, y = _rows(a), _rows(b)
    _require_pairs(size, size)
    if min(len(x), len(y)) < size:
        raise DataError(f"features: subsets of {size} rows do not fit in {len(x)} and {len(y)}")
    rng = np.random.RandomState(seed)
    chosen = [(rng.choice(len(x), size, replace=False), rng.choice(len(y), size, replace=False)) for _ in range(subsets)]
    if len(x) * len(y) > subsets * size * size:  # few rows of many: every subset has a kernel matrix of its own
        values = np.array([kernel_distance(x[one], y[other]) for one, other in chosen])
    else:
        values = _of_shared_kernel(x, y, _indicators(len(x), [one for one, _ in chosen]), _indicators(len(y), [two for _, two in chosen]))
    return float(values.mean()), float(values.std())


def _of_shared_kernel(x: np.ndarray, y: np.ndarray, in_x: np.ndarray, in_y: np.ndarray) -> np.ndarray:
    """MMD^2 of each subset, float64 [subsets]; `in_x` [n, subsets] and `in_y` [m, subsets] are 1 for rows that are in it, else 0."""
    size = in_x[:, 0].sum()
    within = sum(
        (_sums(rows, rows, chosen, chosen) - _diagonal(rows) @ chosen) / (size * (size - 1)) for rows, chosen in ((x, in_x), (y, in_y))
    )
    return np.asarray(within - 2.0 * _sums(x, y, in_x, in_y) / size**2)


def _sums(x: np.ndarray, y: np.ndarray, in_x: np.ndarray, in_y: np.ndarray) -> np.ndarray:
    """Sum of the kernel over the pairs of each subset, float64 [subsets]."""
    total = np.zeros(in_x.shape[1])
    for rows, columns, weight, block in _kernel_blocks(x, y):
        total += weight * (in_x[rows] * (block @ in_y[columns])).sum(0)
    return total


def _indicators(total: int, chosen: list[np.ndarray]) -> np.ndarray:
    members = np.zeros((total, len(chosen)))
    for column, rows in enumerate(chosen):
        members[rows, column] = 1.0
    return members


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    return float(sum(weight * block.sum() for _, _, weight, block in _kernel_blocks(x, y)))


def _kernel_blocks(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, slice, float, np.ndarray]]:
    """Yield (rows, columns, how often it counts, kernel float64) for all pairs; of one set with itself only half of them are made."""
    step = rows_at_a_time(len(y))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        parts = [(rows, 1.0), (slice(start + step, None), 2.0)] if x is y else [(slice(None), 1.0)]
        for columns, weight in parts:
            if len(y[columns]):
                yield rows, columns, weight, _kernel(x[rows], y[columns])


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    block = x @ y.T
    block /= x.shape[1]
    block += 1.0
    return block * block * block  # a power by multiplication: numpy's takes thirty times as long


def _diagonal(x: np.ndarray) -> np.ndarray:
    return (np.square(x).sum(1) / x.shape[1] + 1.0) ** 3


def _rows(features: np.ndarray) -> np.ndarray:
    return np.asarray(features, np.float64)


def _require_pairs(n: int, m: int) -> None:
    if n < 2 or m < 2:
        raise DataError(f"features: the kernel distance needs at least two rows on each side, got {n} and {m}")
