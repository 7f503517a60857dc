"""Batched augmentation of images in memory: a whole uint8 batch goes in, a normalised float batch comes out.

Images are mirrored only if a recipe enables it: a mirrored digit or letter is another sign.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gda.training.networks.pretrained import Channels

Strength = Literal["standard", "strong"]

Policy = Callable[[Tensor, torch.Generator], Tensor]

_HALF: Channels = (0.5, 0.5, 0.5)

_PADDING = 1 / 14  # of the side: 2 pixels of 28, 16 of 224
_MAX_ROTATION = 15.0  # degrees, either way
_MAX_SHEAR = 10.0  # degrees, either way
_SCALE = (0.85, 1.15)
_MAX_SHIFT = 0.1  # of the side, either way
_ERASE_PROBABILITY = 0.25
_ERASE_AREA = (0.02, 0.15)  # of the image
_ERASE_ASPECT = (0.3, 1 / 0.3)
_CROP_ASPECT = (3 / 4, 4 / 3)


def normalise_pixels(images: Tensor, mean: Channels = _HALF, std: Channels = _HALF) -> Tensor:
    """uint8 NCHW -> float32 NCHW, each channel minus its mean, divided by its deviation; in [-1, 1] by default."""
    scale, shift = (_per_channel(v, images.device) for v in ([255 * s for s in std], [m / s for m, s in zip(mean, std, strict=True)]))
    return images.to(torch.float32).div_(scale).sub_(shift)


def _per_channel(values: list[float], device: torch.device) -> float | Tensor:
    # One number if the channels agree: on a GPU it may round differently from a tensor of three.
    return values[0] if len(set(values)) == 1 else torch.tensor(values, device=device).view(1, 3, 1, 1)


def augment(
    images: Tensor,
    strength: Strength,
    generator: torch.Generator,
    *,
    horizontal_flip: bool = False,
    crop_area: float = 0.0,
    policy: Policy | None = None,
    mean: Channels = _HALF,
    std: Channels = _HALF,
) -> Tensor:
    """Augment and normalise a batch: uint8 NCHW -> float32 NCHW, as `normalise_pixels` returns it.

    `standard` is the pad-and-random-crop recipe (He et al. 2016, section 4.2), or with `crop_area` above 0 a random resized crop of at
    least that share of the area (Szegedy et al. 2015, section 6). `strong` adds a random affine map, whose shifts replace the
    smaller ones of the padded crop, and random erasing (Zhong et al. 2020); a resized crop stays. `policy` changes the uint8 images,
    before the affine map and after a crop. `generator` lives on the CPU, so that random numbers do not depend on the device of the images.
    """
    if horizontal_flip:
        images = _flip_some(images, generator)
    if crop_area:
        images = _resized_crop(images, crop_area, generator)
    elif strength == "standard":
        images = _random_crop(images, generator)
    if policy is not None:
        images = policy(images, generator)
    inputs = normalise_pixels(images, mean, std)
    return inputs if strength == "standard" else _erase_some(_random_affine(inputs, generator), generator)


def _flip_some(images: Tensor, generator: torch.Generator) -> Tensor:
    flip = _uniform(len(images), 0.0, 1.0, generator) < 0.5
    return torch.where(flip[:, None, None, None].to(images.device), images.flip(3), images)


def _random_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to the padding in both directions; new pixels repeat the border."""
    count, _, height, width = images.shape
    pad = max(1, round(_PADDING * min(height, width)))
    shift = torch.randint(-pad, pad + 1, (2, count, 1), generator=generator)
    rows = (torch.arange(height) + shift[0]).clamp_(0, height - 1).to(images.device)  # [n, height]
    columns = (torch.arange(width) + shift[1]).clamp_(0, width - 1).to(images.device)  # [n, width]
    batch = torch.arange(count, device=images.device)[:, None, None]
    # Indexing around a slice puts the channels last: [n, height, width, c].
    return images[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _resized_crop(images: Tensor, least: float, generator: torch.Generator) -> Tensor:
    """Crop a random rectangle with a share `least` of the area or more, and enlarge it to the whole image."""
    count = len(images)
    area = _uniform(count, least, 1.0, generator)
    aspect = torch.exp(_uniform(count, math.log(_CROP_ASPECT[0]), math.log(_CROP_ASPECT[1]), generator))
    width, height = torch.sqrt(area * aspect).clamp(max=1.0), torch.sqrt(area / aspect).clamp(max=1.0)  # shares of the side
    column, row = ((1 - side) * _uniform(count, -1.0, 1.0, generator) for side in (width, height))  # affine_grid's unit is half a side
    zero = torch.zeros(count)
    theta = torch.stack([width, zero, column, zero, height, row], dim=1).view(count, 2, 3).to(images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    cropped = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return cropped.round_().clamp_(0, 255).to(torch.uint8)


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
    """Cover a random rectangle of some images with mid grey."""
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
