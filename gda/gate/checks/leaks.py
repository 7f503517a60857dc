"""Synthetic images that are images of a real split, pixel for pixel or but for re-encoding, resizing, mirroring and light."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gda.data.checks.perceptual import Sketches, near_matches, sketch, stack_sketches
from gda.fidelity.intervals import share
from gda.gate.checks.duplicates import exact_matches


@dataclass(frozen=True, kw_only=True)
class Leak:
    """Synthetic image `query` is image `reference` of a real split: `exact` pixel for pixel, else a near match."""

    split: str
    query: int
    reference: int
    exact: bool


def sketches_of(images: torch.Tensor) -> Sketches:
    """Sketches of uint8 NCHW images."""
    return stack_sketches(sketch(image) for image in images.permute(0, 2, 3, 1).numpy())


def find_leaks(split: str, *, hashes: Sequence[str], sketches: Sketches, real_hashes: Sequence[str], real_sketches: Sketches) -> list[Leak]:
    """One leak at most for every synthetic image, exact ones first; `hashes` are of the pixels as decoded."""
    exact = dict(exact_matches(hashes, real_hashes))
    near = near_matches(sketches, real_sketches)
    leaks = [Leak(split=split, query=query, reference=reference, exact=True) for query, reference in exact.items()]
    others = [query for query in near.queries.tolist() if query not in exact]
    return leaks + [Leak(split=split, query=query, reference=int(near.reference[query]), exact=False) for query in others]


def real_rate(probes: Sketches, references: Sketches) -> float:
    """Highest share of near matches that real `probes` make plausible: 0 where none matches, else the upper end of Wilson's 95% interval.

    Where no real image matches another, chance explains no match. Where some do, their share is uncertain, and a synthetic set may reach
    its upper end. Raises `DataError` without probes.
    """
    found = share(len(near_matches(probes, references).queries), len(probes))
    return found.high if found.value > 0 else 0.0
