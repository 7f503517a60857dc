"""Batched augmentation of resident images: a whole uint8 batch goes in, a normalised float batch comes out.

Nothing is mirrored unless a recipe asks for it: a mirrored digit or letter is another sign.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Strength = Literal["standard", "strong"]

MEAN = STD = 0.5  # of every channel, on the scale where white is 1

_PADDING = 1 / 14  # of the side: 2 pixels of 28, 16 of 224
_MAX_ROTATION = 15.0  # degrees, either way
_MAX_SHEAR = 10.0  # degrees, either way
_SCALE = (0.85, 1.15)
_MAX_SHIFT = 0.1  # of the side, either way
_ERASE_PROBABILITY = 0.25
_ERASE_AREA = (0.02, 0.15)  # of the image
_ERASE_ASPECT = (0.3, 1 / 0.3)


def normalise(images: Tensor) -> Tensor:
    """uint8 NCHW -> float32 NCHW in [-1, 1]."""
    return images.to(torch.float32).div_(255 * STD).sub_(MEAN / STD)


def augment(images: Tensor, strength: Strength, generator: torch.Generator, *, horizontal_flip: bool = False) -> Tensor:
    """Augment and normalise a batch: uint8 NCHW -> float32 NCHW in [-1, 1].

    `standard` is the pad-and-random-crop recipe (He et al. 2016, section 4.2); `strong` is a random affine map followed by random
    erasing (Zhong et al. 2020). `generator` lives on the CPU wherever the images are, so that draws do not depend on the device.
    """
    if horizontal_flip:
        images = _flip_some(images, generator)
    return _TRANSFORMS[strength](images, generator)


def _standard(images: Tensor, generator: torch.Generator) -> Tensor:
    return normalise(_random_crop(images, generator))


def _strong(images: Tensor, generator: torch.Generator) -> Tensor:
    return _erase_some(_random_affine(normalise(images), generator), generator)


_TRANSFORMS: dict[Strength, Callable[[Tensor, torch.Generator], Tensor]] = {"standard": _standard, "strong": _strong}


def _flip_some(images: Tensor, generator: torch.Generator) -> Tensor:
    flip = _uniform(len(images), 0.0, 1.0, generator) < 0.5
    return torch.where(flip[:, None, None, None].to(images.device), images.flip(3), images)


def _random_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to the padding in both directions; what comes into view repeats the border."""
    count, _, height, width = images.shape
    pad = max(1, round(_PADDING * min(height, width)))
    shift = torch.randint(-pad, pad + 1, (2, count, 1), generator=generator)
    rows = (torch.arange(height) + shift[0]).clamp_(0, height - 1).to(images.device)  # [n, height]
    columns = (torch.arange(width) + shift[1]).clamp_(0, width - 1).to(images.device)  # [n, width]
    batch = torch.arange(count, device=images.device)[:, None, None]
    # Indexing around a slice puts the channels last: [n, height, width, c].
    return images[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _random_affine(images: Tensor, generator: torch.Generator) -> Tensor:
    count = len(images)
    angle = _uniform(count, -_MAX_ROTATION, _MAX_ROTATION, generator) * math.pi / 180
    shear = torch.tan(_uniform(count, -_MAX_SHEAR, _MAX_SHEAR, generator) * math.pi / 180)
    scale = 1 / _uniform(count, *_SCALE, generator)
    # affine_grid's unit is half a side.
    shift = 2 * _uniform(2 * count, -_MAX_SHIFT, _MAX_SHIFT, generator).view(count, 2, 1)
    cos, sin = torch.cos(angle), torch.sin(angle)
    matrix = torch.stack([cos, shear * cos - sin, sin, shear * sin + cos], dim=1).view(count, 2, 2) * scale.view(count, 1, 1)
    theta = torch.cat([matrix, shift], dim=2).to(images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _erase_some(images: Tensor, generator: torch.Generator) -> Tensor:
    """Cover a rectangle of some images with mid grey."""
    count, _, height, width = images.shape
    chosen = _uniform(count, 0.0, 1.0, generator) < _ERASE_PROBABILITY
    area = _uniform(count, *_ERASE_AREA, generator) * height * width
    aspect = torch.exp(_uniform(count, math.log(_ERASE_ASPECT[0]), math.log(_ERASE_ASPECT[1]), generator))
    rows = _inside(height, torch.sqrt(area * aspect) * chosen, generator)
    columns = _inside(width, torch.sqrt(area / aspect) * chosen, generator)
    mask = (rows[:, None, :, None] & columns[:, None, None, :]).to(images.device)  # [n, 1, height, width]
    return images.masked_fill(mask, 0.0)


def _inside(side: int, length: Tensor, generator: torch.Generator) -> Tensor:
    """[n, side] booleans: an interval of `length` pixels at a random place in each row."""
    start = _uniform(len(length), 0.0, 1.0, generator) * (side - length).clamp(min=0)
    position = torch.arange(side)
    return (position >= start[:, None]) & (position < (start + length)[:, None])


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)
