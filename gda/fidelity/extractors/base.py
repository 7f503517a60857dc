"""A feature extractor: a network, the digest of all that determines its features, and how images are resized for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from gda.errors import DataError

# Outputs of a network change in the last bits with the batch size, so it is fixed: features depend on the images and their order alone.
BATCH = 250
LARGE_NETWORK_BATCH = 25  # for networks whose activations of 250 images at once would take gigabytes
Resize = Literal["bilinear", "bicubic", "none"]


@dataclass(frozen=True, kw_only=True)
class TextSide:
    """Maps texts to the space of an extractor's features: `embed` gives float32 [n, dim]; `digest` is of weights and tokenizer."""

    digest: str
    embed: Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A feature network: `name`, content `digest` of its weights and preprocessing, `dim` of its features.

    `forward` sees float32 [n, 3, input_px, input_px] in [0, 1], or images of any size where `resize` is `none`, and gives float32
    [n, dim], where each row depends only on its image. It gets `batch` images at once, a divisor of 250, so that batches start together
    with shards and with waiting images. `packages` are the libraries, besides torch and timm, whose versions affect its bits. `text` is
    set if prompts can be compared with images.
    """

    name: str
    digest: str
    dim: int
    input_px: int
    forward: Callable[[torch.Tensor], torch.Tensor]
    resize: Resize = "bilinear"
    batch: int = BATCH
    packages: tuple[str, ...] = ()
    text: TextSide | None = None

    @property
    def identity(self) -> str:
        """The extractor that must be stated with every number, e.g. `glyph@1f2e3d4c`."""
        return f"{self.name}@{self.digest[:8]}"

    @torch.inference_mode()
    def features(self, images: torch.Tensor) -> np.ndarray:
        """float32 [n, dim] of uint8 NCHW RGB images of any one size. Raises `DataError` when the network gives anything else."""
        assert images.dtype == torch.uint8, f"expected uint8, got {images.dtype}"
        assert images.ndim == 4, f"expected NCHW, got {tuple(images.shape)}"
        parts = [self._rows(chunk) for chunk in images.split(self.batch)] if len(images) else []
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def _rows(self, images: torch.Tensor) -> np.ndarray:
        found = self.forward(to_input(images, self.input_px, self.resize))
        if not isinstance(found, torch.Tensor) or tuple(found.shape) != (len(images), self.dim):
            kind = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise DataError(f"validate.extractor: {self.name} gives {kind} for {len(images)} images; expected rows of {self.dim} numbers")
        return found.float().numpy()


def to_input(images: torch.Tensor, px: int, resize: Resize) -> torch.Tensor:
    """float32 NCHW in [0, 1] of uint8 images, resized to `px` x `px` pixels, antialiased; `bicubic` rounds and clips as Pillow does."""
    images = images.contiguous()  # kernels round by the layout in memory, too
    if resize == "none" or images.shape[2:] == (px, px):
        return images.float() / 255.0
    if resize == "bilinear":
        return F.interpolate(images.float() / 255.0, (px, px), mode="bilinear", antialias=True)
    # Of bytes, torch rounds and clips after each direction, as Pillow does.
    return F.interpolate(images, (px, px), mode="bicubic", antialias=True).float() / 255.0


def normalised(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """Channels of NCHW images less their `mean`, in units of their `std`."""
    return (images - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)
