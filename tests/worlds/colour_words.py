"""An extractor with text features: pictures by their mean colour, prompts by the colour they name."""

from collections.abc import Sequence

import numpy as np
import torch
from validation_sets import COLOURS

from gda.fidelity.extractors import Extractor
from gda.fidelity.extractors.base import TextSide

DARK = 60.0


def colour_words(weights: str | None) -> Extractor:
    """Features are mean red, green and blue less a dark grey, of the whole and of four corners."""

    def forward(images: torch.Tensor) -> torch.Tensor:
        whole = images.mean((2, 3))
        quarters = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
        return torch.cat([whole, quarters], 1) * 255 - DARK

    def embed(texts: Sequence[str]) -> np.ndarray:
        named = [next(name for name in COLOURS if name in text) for text in texts]
        colour = np.array([COLOURS[name] for name in named], np.float32) - DARK
        return np.concatenate([colour, np.repeat(colour, 4, axis=1)], 1)

    return Extractor(
        name="colour-words", digest="c0" * 32, dim=15, input_px=16, forward=forward, text=TextSide(digest="7e" * 32, embed=embed)
    )
