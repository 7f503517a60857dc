"""What kind of images a set has: small characters, or photographs, which a model of characters cannot know."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gda.data.images.codecs import Rgb

LARGE = 48  # pixels: larger images are no characters of 28 pixels
LARGE_IN_COLOUR = 32  # pixels: from here on, colour images are photographs
_COLOURED = 0.04  # mean difference of an image's channels, in [0, 1]: below it is grey but for compression


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Of a set: the median of the shorter sides in pixels, and whether most images have colours."""

    side: int
    coloured: bool

    @property
    def photographs(self) -> bool:
        """Whether the images are too large or too colourful for a model of small characters."""
        return self.side >= LARGE or (self.coloured and self.side >= LARGE_IN_COLOUR)

    @property
    def text(self) -> str:
        """Such as `64 px in colour`."""
        return f"{self.side} px{' in colour' if self.coloured else ''}"


def looks_of(images: Iterable[Rgb]) -> Looks:
    """The looks of uint8 [height, width, 3] images of any sizes, at least one."""
    measured = [(min(rgb.shape[:2]), colourfulness(rgb)) for rgb in images]
    sides, colours = zip(*measured, strict=True)
    return Looks(side=int(np.median(sides)), coloured=bool(np.median(colours) > _COLOURED))


def colourfulness(rgb: Rgb) -> float:
    """Mean difference between the largest and the smallest channel of a pixel, in [0, 1]; 0 is grey."""
    return float((rgb.max(axis=2).astype(np.float64) - rgb.min(axis=2)).mean() / 255)
