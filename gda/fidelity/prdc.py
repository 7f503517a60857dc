"""Precision, recall, density and coverage: is each image plausible, and is every kind of real image there?

Precision and recall follow torch-fidelity's definitions: the k-th *other* image (its `kthvalue(k + 1)` counts the image itself), and a
ball includes its border. Results can differ only for images within rounding of a border, such as exact copies of a neighbour.
"""

from dataclasses import dataclass

import numpy as np

from gda.errors import DataError
from gda.fidelity.neighbours import squared_distance_blocks, squared_radii

NEIGHBOURS = 3  # as in Kynkaanniemi et al. 2019; radii reach to the third other image


@dataclass(frozen=True, kw_only=True)
class Prdc:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020); all but density in [0, 1]."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(synthetic: np.ndarray, real: np.ndarray, *, k: int = NEIGHBOURS) -> Prdc:
    """The four measures of features [n, d] against [m, d], with balls that reach to the k-th other image of the same set.

    Never pass rows sampled with replacement: copies collapse the radii. Raises `DataError` with fewer than k + 1 rows on a side.
    """
    if min(len(synthetic), len(real)) <= k:
        raise DataError(f"features: precision and recall need more than {k} rows on each side, got {len(synthetic)} and {len(real)}")
    real_radius, synthetic_radius = squared_radii(real, k=k), squared_radii(synthetic, k=k)
    balls_hit = np.zeros(len(synthetic))
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for start, block in squared_distance_blocks(synthetic, real):
        inside_real = block <= real_radius
        balls_hit[start : start + len(block)] = inside_real.sum(1)
        covered |= inside_real.any(0)
        recalled |= (block <= synthetic_radius[start : start + len(block), None]).any(0)
    return Prdc(
        precision=float((balls_hit > 0).mean()),
        recall=float(recalled.mean()),
        density=float(balls_hit.mean() / k),
        coverage=float(covered.mean()),
    )
