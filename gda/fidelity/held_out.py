"""Distance of sampled images from held-out real ones: the score by which fine-tuning chooses among its checkpoints."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from gda.fidelity.compare import fid
from gda.fidelity.extractors import get_extractor
from gda.fidelity.kid import kernel_distance


@dataclass(frozen=True, kw_only=True)
class HeldOutScore:
    """Distance of images to the `real` features, float32 [n, d] of `extractor`; lower is better. Can be sent to another process.

    Distances of so few images are biased upwards: they only rank weights that are sampled with equal settings.
    """

    extractor: str
    weights: str | None = None
    metric: Literal["fid", "kid"]
    real: np.ndarray

    def __call__(self, images: torch.Tensor) -> float:
        """Score uint8 NCHW images."""
        features = get_extractor(self.extractor, self.weights).features(images)
        return fid(features, self.real) if self.metric == "fid" else kernel_distance(features, self.real)


def held_out_score(images: torch.Tensor, *, extractor: str, metric: Literal["fid", "kid"], weights: str | None = None) -> HeldOutScore:
    """The score against these real images, uint8 NCHW."""
    real = get_extractor(extractor, weights).features(images)
    return HeldOutScore(extractor=extractor, weights=weights, metric=metric, real=real)
