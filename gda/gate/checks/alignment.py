"""Nearest training images up to cropping, turning, shifting, mirroring and light: the changes that a copy may have undergone.

Pictures are compared as 8 x 8 averages of brightness, brought to mean 0 and root mean square 1. Training images are compared as they
are and in a fixed grid of crops, turns and shifts, each mirrored too; between the points of the grid a difference that a small affine
motion of the query explains is not counted (the tangent distance of Simard et al. 1993).
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from gda.fidelity.neighbours import nearest

SIDE = 8  # averages per side that pictures are compared by
_WARPED = 32  # pixels per side of the pictures that are cropped and turned
_CONTRAST = 0.02  # below this root mean square contrast there is no shape to bring to 1
_STEP = 0.03  # of the motions whose effect is treated as linear, in half sides
_LUMA = (0.299, 0.587, 0.114)
_ROWS = 2048  # queries at a time

Motion = tuple[tuple[float, float, float], tuple[float, float, float]]  # affine, output to input, in half sides from the centre


def _grid() -> tuple[Motion, ...]:
    """The identity; crops of 92%, 85% and 79% of the side in nine places; turns by 8 degrees; shifts by 5% of the side."""
    places = list(itertools.product((-1.0, 0.0, 1.0), repeat=2))
    motions: list[Motion] = [((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))]
    for kept in (0.92, 0.85, 0.79):
        motions += [((kept, 0.0, x * (1 - kept)), (0.0, kept, y * (1 - kept))) for x, y in places]
    for degrees in (-8.0, 8.0):
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        motions.append(((cos, -sin, 0.0), (sin, cos, 0.0)))
    return (*motions, *(((1.0, 0.0, 0.1 * x), (0.0, 1.0, 0.1 * y)) for x, y in places if x or y))


GRID = _grid()
VIEWS = 2 * len(GRID)


def nearest_aligned(queries: torch.Tensor, references: torch.Tensor, *, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances float64 [n, k] and indices int64 [n, k] of the k nearest references in any view, nearest first; uint8 NCHW images.

    A query and a reference cost 76 views x 128 floating-point operations; memory is bounded by a block of queries and one view of all
    references, 5 KiB each with what it is made from. 1.2 million against 1.3 million images are 1.5e16 operations, which takes days on
    two cores: give the queries shard by shard, to as many processes as there are.
    """
    found = [_nearest_of_block(block, references, k) for block in queries.split(_ROWS)]
    if not found:
        return np.zeros((0, k)), np.zeros((0, k), np.int64)
    return np.concatenate([part[0] for part in found]), np.concatenate([part[1] for part in found])


def _nearest_of_block(queries: torch.Tensor, references: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    grey = _grey(queries)
    ours, moving = _vectors(grey), _tangents(grey)
    distances, indices = np.full((len(ours), k), np.inf), np.full((len(ours), k), -1)
    for view in _views(references):
        candidates = nearest(ours, view, k=k)[1]
        left = ours[:, None] - view[candidates]  # [n, k, 64]
        explained = left @ moving
        squared = (left * left).sum(2) - (explained * explained).sum(2)
        distances, indices = _nearest_of_both(distances, indices, np.sqrt(np.clip(squared, 0.0, None)), candidates)
    return distances, indices


def _nearest_of_both(
    distances: np.ndarray, indices: np.ndarray, others: np.ndarray, candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of two lists of k, a reference that is in both counting once, by its smaller distance."""
    k = distances.shape[1]
    values, names = np.concatenate([distances, others], 1), np.concatenate([indices, candidates], 1)
    order = np.lexsort((values, names), axis=1)
    values, names = np.take_along_axis(values, order, 1), np.take_along_axis(names, order, 1)
    values[:, 1:][names[:, 1:] == names[:, :-1]] = np.inf
    order = np.lexsort((names, values), axis=1)[:, :k]
    return np.take_along_axis(values, order, 1), np.take_along_axis(names, order, 1)


def _views(images: torch.Tensor) -> Iterator[np.ndarray]:
    """float64 [m, 64] of the images in every view, one view at a time."""
    grey = _grey(images)
    for motion in GRID:
        moved = _move(grey, motion)
        yield _vectors(moved)
        yield _vectors(moved.flip(3))


def _tangents(grey: torch.Tensor) -> np.ndarray:
    """float64 [n, 64, 6]: orthonormal directions in which small affine motions change each picture; zero where there are fewer."""
    columns = []
    for row, column in itertools.product(range(2), range(3)):
        there, back = (_vectors(_move(grey, _nudged(row, column, step))) for step in (_STEP, -_STEP))
        columns.append(there - back)
    basis, size, _ = np.linalg.svd(np.stack(columns, axis=2), full_matrices=False)
    return basis * (size > 1e-3 * np.maximum(size[:, :1], 1e-9))[:, None, :]


def _nudged(row: int, column: int, step: float) -> Motion:
    matrix = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    matrix[row][column] += step
    return (tuple(matrix[0]), tuple(matrix[1]))  # type: ignore[return-value]


def _grey(images: torch.Tensor) -> torch.Tensor:
    """float32 [n, 1, 32, 32] in [0, 1]."""
    weights = torch.tensor(_LUMA).view(1, 3, 1, 1)
    parts = [(part.float() / 255.0 * weights).sum(1, keepdim=True) for part in images.split(_ROWS)]
    small = [F.interpolate(part, (_WARPED, _WARPED), mode="bilinear", antialias=True) for part in parts]
    return torch.cat(small) if small else torch.zeros((0, 1, _WARPED, _WARPED))


def _move(grey: torch.Tensor, motion: Motion) -> torch.Tensor:
    grid = F.affine_grid(torch.tensor(motion)[None], [1, 1, _WARPED, _WARPED], align_corners=False)
    return F.grid_sample(grey, grid.expand(len(grey), -1, -1, -1), mode="bilinear", padding_mode="border", align_corners=False)


def _vectors(grey: torch.Tensor) -> np.ndarray:
    """float64 [n, 64], scaled so that the euclidean distance of two is the root mean square difference of their shapes."""
    flat = F.interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True).flatten(1).double().numpy()
    centred = flat - flat.mean(1, keepdims=True)
    contrast = np.sqrt((centred * centred).mean(1, keepdims=True))
    return centred / np.maximum(contrast, _CONTRAST) / SIDE
