"""Has the generator copied? Near matches with held-out images, and nearness to training images against a holdout's.

Two questions, two tools. *Near match*: the same picture but for re-encoding, resizing or mirroring, by a small average of its
pixels. *Copy*: nearer to one training image than images that were never trained on ever come, in pixels or in features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from gda.errors import DataError
from gda.fidelity.neighbours import nearest

FINGERPRINT_PX = 16
# Root mean square difference of fingerprints, in [0, 1]. On handwritten digits JPEG at quality 50 moves one by at most 0.018, resizing by
# a seventh and back by 0.016, while no two of 3,500 different digits were nearer than 0.022.
NEAR_RMS = 0.02
CROWD = 10  # further neighbours that say how dense the training set is around an image


def fingerprints(images: torch.Tensor) -> np.ndarray:
    """float32 [n, 4, 768]: 16 x 16 averages of uint8 NCHW images as they are, mirrored, flipped and both.

    Scaled so that the euclidean distance between two is the root mean square difference of their pixels, in [0, 1].
    """
    small = F.interpolate(images.float() / 255.0, (FINGERPRINT_PX, FINGERPRINT_PX), mode="bilinear", antialias=True)
    views = [small, small.flip(3), small.flip(2), small.flip(2, 3)]
    flat = torch.stack([view.flatten(1) for view in views], dim=1)
    return (flat / flat.shape[2] ** 0.5).numpy()


@dataclass(frozen=True, kw_only=True)
class Match:
    """Query `query` is the same picture as reference `reference`; `distance` is RMS over pixels, in [0, 1]."""

    query: int
    reference: int
    distance: float


def near_matches(queries: np.ndarray, references: np.ndarray, *, same_set: bool = False) -> list[Match]:
    """The queries whose nearest reference, in any of four mirrorings, is within `NEAR_RMS`; both are `fingerprints`.

    `same_set` looks for near matches inside one set (an image is not its own match).
    """
    if len(queries) == 0 or len(references) <= int(same_set):
        return []
    best = [nearest(queries[:, 0], references[:, view], skip_self=same_set) for view in range(references.shape[1])]
    distances = np.stack([found[0][:, 0] for found in best], axis=1)
    view = distances.argmin(1)
    return [
        Match(query=int(i), reference=int(best[view[i]][1][i, 0]), distance=float(distances[i, view[i]]))
        for i in np.flatnonzero(distances.min(1) <= NEAR_RMS)
    ]


@dataclass(frozen=True, kw_only=True)
class Space:
    """One way to measure nearness: features or pixels [n, d] of the synthetic, held-out and training images."""

    name: str
    synthetic: np.ndarray
    holdout: np.ndarray
    train: np.ndarray


@dataclass(frozen=True, kw_only=True)
class CopyCheck:
    """Per synthetic image: nearest training image, how near (below 1: nearer than the threshold) and whether that is too near."""

    neighbour: np.ndarray  # int64 [n]
    nearness: np.ndarray  # float64 [n], relative distance over its threshold; smaller is more suspicious
    flagged: np.ndarray  # bool [n]
    holdout_flagged: np.ndarray  # bool [m]: the same rule on held-out images, the floor


def check_copies(spaces: Sequence[Space], *, quantile: float) -> CopyCheck:
    """Flag synthetic images that are nearer to a training image than the `quantile` of held-out images, in any of the spaces.

    The quantile is shared out among the spaces, so that about that share of genuinely new images is flagged. Raises `DataError`
    when there is no held-out image or fewer than two training images.
    """
    ours, theirs, flags, neighbours = [], [], [], []
    for space in spaces:
        floor, _ = relative_distance(space.holdout, space.train)
        distance, neighbour = relative_distance(space.synthetic, space.train)
        threshold = float(np.quantile(floor, quantile / len(spaces), method="lower"))
        ours.append(np.divide(distance, threshold, out=np.ones(len(distance)), where=threshold > 0))
        flags.append(distance < threshold)
        theirs.append(floor < threshold)
        neighbours.append(neighbour)
    nearness = np.stack(ours, axis=1)
    closest = nearness.argmin(1)
    return CopyCheck(
        neighbour=np.stack(neighbours, axis=1)[np.arange(len(closest)), closest],
        nearness=nearness.min(1),
        flagged=np.logical_or.reduce(flags),
        holdout_flagged=np.logical_or.reduce(theirs),
    )


def relative_distance(queries: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the nearest training image over the mean distance to the next ten (float64 [n]), and its index.

    Relative, as in Carlini et al. 2023: a plain stroke lies close to all plain strokes without being a copy of one.
    """
    if len(queries) == 0 or len(train) < 2:
        raise DataError(f"copies: need a held-out image and two training images, got {len(queries)} and {len(train)}")
    distances, indices = nearest(queries, train, k=min(CROWD + 1, len(train)))
    crowd = distances[:, 1:].mean(1)
    # Where all neighbours coincide with the query there is no scale to judge by, and it is certainly not new: distance 0.
    return np.divide(distances[:, 0], crowd, out=np.zeros(len(queries)), where=crowd > 0), indices[:, 0]
