"""Nearest neighbours by blocked matrix products: memory stays bounded whatever the set sizes."""

from collections.abc import Iterator

import numpy as np

from gda.fidelity.threads import one_thread

ROW_BLOCK = 2048  # rows at a time at most; a block of distances to 50,000 references is 800 MiB
_CACHED, _FEWEST = 2**19, 128  # numbers that stay in a processor's cache; fewer rows make matrix products slow
_FEW = 8  # up to this many neighbours, repeated search for the minimum is faster than a partition


def distance_blocks(queries: np.ndarray, references: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, euclidean distances float64 [<=2048, m]) of queries [n, d] to references [m, d]."""
    for start, block in squared_distance_blocks(queries, references):
        yield start, np.sqrt(block, out=block)


def squared_distance_blocks(queries: np.ndarray, references: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The same, squared, which is enough to rank neighbours. Blocks are small enough to stay in a processor's cache."""
    x, y = np.asarray(queries, np.float64), np.asarray(references, np.float64)
    rows = rows_at_a_time(len(y))
    norms = (y * y).sum(1)
    for start in range(0, len(x), rows):
        yield start, _squared(x[start : start + rows], y, norms)


def rows_at_a_time(columns: int) -> int:
    """Number of rows of a block with so many columns, such that it stays in the cache and products are still fast."""
    return min(ROW_BLOCK, max(_FEWEST, _CACHED // max(columns, 1)))


@one_thread
def _squared(x: np.ndarray, y: np.ndarray, norms: np.ndarray) -> np.ndarray:
    block = x @ y.T
    block *= -2.0
    block += (x * x).sum(1)[:, None]
    block += norms
    return np.maximum(block, 0.0, out=block)


def squared_radii(rows: np.ndarray, *, k: int) -> np.ndarray:
    """Squared distance float64 [n] of each row [n, d] to its k-th nearest other row."""
    assert 1 <= k < len(rows), f"k={k} of {len(rows) - 1} others"
    radii = np.empty(len(rows))
    for start, block in squared_distance_blocks(rows, rows):
        own = np.arange(len(block))
        block[own, start + own] = np.inf
        radii[start : start + len(block)] = _kth_least(block, own, k)
    return radii


def _kth_least(block: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    """The k-th smallest number of each row; overwrites `block`."""
    if k > _FEW:
        block.partition(k - 1, axis=1)
        return block[:, k - 1]
    for _ in range(k - 1):
        block[rows, block.argmin(1)] = np.inf
    return block.min(1)


def nearest(queries: np.ndarray, references: np.ndarray, *, k: int = 1, skip_self: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Distances float64 [n, k] and indices int64 [n, k] of the k nearest references, nearest first.

    `skip_self` leaves out the reference with the query's own row number (queries and references are then the same set).
    """
    assert 1 <= k <= len(references) - skip_self, f"k={k} of {len(references)} references"
    distances, indices = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
    for start, block in distance_blocks(queries, references):
        rows = np.arange(len(block))
        if skip_self:
            block[rows, start + rows] = np.inf
        columns = np.argpartition(block, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(block, columns, 1)
        order = np.lexsort((columns, values), axis=1)  # ties go to the lower index, so that results are reproducible
        distances[start : start + len(block)] = np.take_along_axis(values, order, 1)
        indices[start : start + len(block)] = np.take_along_axis(columns, order, 1)
    return distances, indices
