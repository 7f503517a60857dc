"""What decisions are made from: summaries of an image set, a machine and a base model, without the things themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from gda.data.images.looks import Looks


@dataclass(frozen=True, kw_only=True)
class ImageSummary:
    """An image set: `classes` has the images of each class, `splits` those of each split that the source itself states.

    `side` is the shorter side in pixels: of the 10% smallest images, the median, of the 10% largest. `coloured` is whether images have
    colours. `columns` are columns of the source's table by use (label, group, split), as they were recognised by name.
    """

    source: str
    classes: Mapping[str, int]
    side: tuple[int, int, int]
    coloured: bool
    splits: Mapping[str, int] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    num_unreadable: int = 0
    num_near_duplicates: int = 0
    looked_at: int = 0

    @property
    def total(self) -> int:
        """All images."""
        return sum(self.classes.values())

    @property
    def median_class(self) -> int:
        """Images of the median class."""
        return int(np.median(list(self.classes.values()))) if self.classes else 0

    @property
    def photographs(self) -> bool:
        """Whether the images are too large or too colourful for a model of small characters."""
        return Looks(side=self.side[1], coloured=self.coloured).photographs

    @property
    def imbalance(self) -> float:
        """Images of the largest class per image of the smallest."""
        return max(self.classes.values()) / max(1, min(self.classes.values()))


@dataclass(frozen=True, kw_only=True)
class MachineSummary:
    """A machine: CPUs, memory and free disk in GiB, and its first GPU with its memory in GiB, if it has one."""

    cpus: int
    memory: float
    disk: float
    gpu: str = ""
    gpu_memory: float = 0.0
    bf16: bool = False


@dataclass(frozen=True, kw_only=True)
class BaseSummary:
    """A base model: `side` of its images in pixels, `parameters` of its denoiser in millions, and where its weights are."""

    name: str
    kind: Literal["glyphs", "pixel", "latent"]
    side: int
    parameters: float
    state: Literal["here", "to download"] = "here"
