"""Holds out a share of the training images, class by class, for choices that must not use val or test."""

from collections.abc import Sequence

import torch

from gda.runtime.rng import shuffled


def hold_out(keys: Sequence[str], labels: torch.Tensor, fraction: float) -> torch.Tensor:
    """bool [n]: which images are held out, by a hash of the key, so that it does not depend on order or on other images' classes.

    Of each class with two images or more, at least one is held out and one is kept; a single image is never held out.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels).tolist():
        members = torch.nonzero(labels == label).flatten().tolist()
        if len(members) > 1:
            count = min(max(1, round(fraction * len(members))), len(members) - 1)
            chosen[shuffled(members, "holdout", key=lambda i: keys[i])[:count]] = True
    return chosen
