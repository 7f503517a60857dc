"""Has the generator copied? Whether synthetic images come nearer to single training images than held-out real images do.

Nearness is measured in several spaces: pictures up to cropping, turning, mirroring and light (`gda.gate.checks.alignment`), features of
the extractor, and, where its weights are configured, features of a network for copy detection (`gda.fidelity.extractors.sscd`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gda.errors import DataError
from gda.fidelity.neighbours import nearest
from gda.gate.checks.alignment import nearest_aligned

CROWD = 10  # further neighbours, which measure how dense the training set is around an image


@dataclass(frozen=True, kw_only=True)
class Space:
    """One way to measure nearness, with its distances [n, k] of synthetic and held-out images to their nearest training images.

    k is 2 to 11; `neighbour` int64 [n] is the training image nearest to each synthetic one.
    """

    name: str
    synthetic: np.ndarray
    holdout: np.ndarray
    neighbour: np.ndarray


@dataclass(frozen=True, kw_only=True)
class CopyCheck:
    """Per synthetic image: nearest training image, how near (below 1: nearer than the threshold) and whether that is too near."""

    neighbour: np.ndarray  # int64 [n]
    nearness: np.ndarray  # float64 [n], relative distance over its threshold; smaller is more suspicious
    flagged: np.ndarray  # bool [n]
    holdout_flagged: np.ndarray  # bool [m]: the same rule on held-out images, the floor


def feature_space(name: str, *, synthetic: np.ndarray, holdout: np.ndarray, train: np.ndarray) -> Space:
    """Euclidean nearness of features [n, d]. Raises `DataError` without a held-out image or with fewer than two training images."""
    k = _neighbours(len(holdout), len(train))
    distances, indices = nearest(synthetic, train, k=k)
    return Space(name=name, synthetic=distances, holdout=nearest(holdout, train, k=k)[0], neighbour=indices[:, 0])


def aligned_space(*, synthetic: torch.Tensor, holdout: torch.Tensor, train: torch.Tensor) -> Space:
    """Nearness of uint8 NCHW pictures up to crop, turn and light. Raises as `feature_space` does."""
    k = _neighbours(len(holdout), len(train))
    distances, indices = nearest_aligned(synthetic, train, k=k)
    return Space(name="aligned", synthetic=distances, holdout=nearest_aligned(holdout, train, k=k)[0], neighbour=indices[:, 0])


def check_copies(spaces: Sequence[Space], *, quantile: float) -> CopyCheck:
    """Flag synthetic images that are nearer to a training image than the `quantile` of held-out images, in any of the spaces.

    The quantile is shared out among the spaces, so that about that share of genuinely new images is flagged. Raises `DataError` where
    held-out images coincide with training images in so many cases that nothing can be nearer.
    """
    relative, flags, holdout_flags = [], [], []
    for space in spaces:
        floor, distance = relative_distance(space.holdout), relative_distance(space.synthetic)
        threshold = float(np.quantile(floor, quantile / len(spaces), method="lower"))
        if not threshold > 0:
            raise DataError(f"copies: by {space.name}, held-out images coincide with training images, so that no copy could stand out")
        relative.append(distance / threshold)
        flags.append(distance < threshold)
        holdout_flags.append(floor < threshold)
    nearness = np.stack(relative, axis=1)
    neighbours = np.stack([space.neighbour for space in spaces], axis=1)
    return CopyCheck(
        neighbour=neighbours[np.arange(len(nearness)), nearness.argmin(1)],
        nearness=nearness.min(1),
        flagged=np.logical_or.reduce(flags),
        holdout_flagged=np.logical_or.reduce(holdout_flags),
    )


def relative_distance(distances: np.ndarray) -> np.ndarray:
    """Distance to the nearest training image over the mean distance to the next ones, float64 [n], of distances [n, k], nearest first.

    Relative, as in Carlini et al. 2023: a plain stroke lies close to all plain strokes without being a copy of one.
    """
    crowd = distances[:, 1:].mean(1)
    # Where all neighbours coincide with the query there is no scale, and the query is certainly not new: distance 0.
    return np.divide(distances[:, 0], crowd, out=np.zeros(len(distances)), where=crowd > 0)


def _neighbours(num_holdout: int, num_train: int) -> int:
    if num_holdout == 0 or num_train < 2:
        raise DataError(f"copies: need a held-out image and two different training images, got {num_holdout} and {num_train}")
    return min(CROWD + 1, num_train)
