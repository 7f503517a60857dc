"""Pictures to plant copies of: handwritten digits, patches of photographs, and changes to either."""

import io
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import torch
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

from gda.data.sources.demo import load_digits

Change = Callable[[Image.Image], Image.Image]


@lru_cache
def digits() -> torch.Tensor:
    """The demo's 5,000 digits in a fixed random order, uint8 NCHW."""
    images, _ = load_digits()
    return as_tensor(images[np.random.default_rng(0).permutation(len(images))])


@lru_cache
def patches(px: int = 32, *, contrast: float = 12.0) -> torch.Tensor:
    """Colour patches of two photographs side by side, those of at least this contrast (of 255), in a fixed random order."""
    grids = [
        photo[: photo.shape[0] // px * px, : photo.shape[1] // px * px].reshape(photo.shape[0] // px, px, photo.shape[1] // px, px, 3)
        for photo in load_sample_images().images
    ]
    cut = np.concatenate([grid.swapaxes(1, 2).reshape(-1, px, px, 3) for grid in grids])
    cut = cut[cut.mean(3).std((1, 2)) >= contrast]
    return as_tensor(cut[np.random.default_rng(0).permutation(len(cut))])


def as_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 NCHW of uint8 NHWC."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).contiguous()


def changed(images: torch.Tensor, change: Change) -> torch.Tensor:
    """Every image after `change`."""
    return as_tensor(np.stack([np.asarray(change(Image.fromarray(image))) for image in images.permute(0, 2, 3, 1).numpy()]))


def encoded(kind: str, quality: int) -> Change:
    """Compressed with loss and read again."""

    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, kind, quality=quality)
        return Image.open(buffer).convert("RGB")

    return change


def cropped(kept: float, across: float, down: float) -> Change:
    """A crop of `kept` of the side, at a place from 0 (left, top) to 1, scaled back."""

    def change(image: Image.Image) -> Image.Image:
        width, height = image.size
        left, top = across * (1 - kept) * width, down * (1 - kept) * height
        return image.resize(image.size, Image.Resampling.BICUBIC, box=(left, top, left + kept * width, top + kept * height))

    return change


def _padded(image: Image.Image, margin: int) -> Image.Image:
    return Image.fromarray(np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="edge"))


def turned(degrees: float) -> Change:
    """Rotated about the centre; corners are filled from the edge."""

    def change(image: Image.Image) -> Image.Image:
        margin = image.size[0] // 2
        whole = _padded(image, margin).rotate(degrees, Image.Resampling.BICUBIC)
        return whole.crop((margin, margin, margin + image.size[0], margin + image.size[1]))

    return change


def shifted(across: float, down: float) -> Change:
    """Shifted by shares of the side, to whole pixels."""

    def change(image: Image.Image) -> Image.Image:
        margin, x, y = 10, round(across * image.size[0]), round(down * image.size[1])
        return _padded(image, margin).crop((margin + x, margin + y, margin + x + image.size[0], margin + y + image.size[1]))

    return change


def resized(share: float) -> Change:
    """Scaled to a share of the side and back."""

    def change(image: Image.Image) -> Image.Image:
        small = tuple(round(side * share) for side in image.size)
        return image.resize(small, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)

    return change


def noisy(deviation: float) -> Change:
    """With normal noise, of 255."""

    def change(image: Image.Image) -> Image.Image:
        pixels = np.asarray(image) + np.random.default_rng(3).normal(0, deviation, (image.size[1], image.size[0], 3))
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    return change


def mirrored(image: Image.Image) -> Image.Image:
    """Left to right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def brighter(factor: float) -> Change:
    """Brightness times a factor, cut off at white."""
    return lambda image: ImageEnhance.Brightness(image).enhance(factor)


def contrasted(factor: float) -> Change:
    """Contrast times a factor, cut off at black and white."""
    return lambda image: ImageEnhance.Contrast(image).enhance(factor)


def both(first: Change, second: Change) -> Change:
    """One after the other."""
    return lambda image: second(first(image))


CHANGES: Mapping[str, Change] = {
    "none": lambda image: image,
    "jpeg 90": encoded("JPEG", 90),
    "jpeg 60": encoded("JPEG", 60),
    "jpeg 30": encoded("JPEG", 30),
    "webp 50": encoded("WEBP", 50),
    "half size and back": resized(0.5),
    "mirrored": mirrored,
    "crop 95% right": cropped(0.95, 1.0, 0.5),
    "crop 90% centre": cropped(0.9, 0.5, 0.5),
    "crop 87%": cropped(0.87, 0.3, 0.8),
    "crop 83%": cropped(0.83, 0.7, 0.1),
    "crop 80% corner": cropped(0.8, 1.0, 0.0),
    "turned 3": turned(3),
    "turned 7": turned(-7),
    "turned 12": turned(12),
    "shifted 3%": shifted(0.03, 0.0),
    "shifted 7%": shifted(0.07, -0.05),
    "brighter 1.3": brighter(1.3),
    "darker 0.7": brighter(0.7),
    "contrast 0.6": contrasted(0.6),
    "contrast 1.4": contrasted(1.4),
    "noise 6": noisy(6),
    "noise 15": noisy(15),
    "mirrored crop 90%, jpeg 60": both(both(mirrored, cropped(0.9, 0.2, 0.2)), encoded("JPEG", 60)),
    "turned 5, brighter": both(turned(5), brighter(1.2)),
}
