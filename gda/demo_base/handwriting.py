"""Simulated handwriting of glyphs: random slant, proportions, pen width and pressure, framed like characters in scanned forms.

A glyph is stored as signed distances to its outline, so that every pen width is exact, independently of the face's weight.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt

HALF_PEN = (1.6, 3.6)  # px of the frame that `write` uses, at twice the image's resolution
LONGEST_SIDE = 20 / 28  # of the written character, in image pixels
_STEADY = 0.25  # largest change by pressure, relative to the pen width


def outline_distances(mask: np.ndarray, factor: int) -> np.ndarray:
    """Signed distances to the outline of a bool [px, px] mask, positive inside: float32 [px / factor, px / factor], in its pixels."""
    signed = np.where(mask, distance_transform_edt(mask) - 0.5, 0.5 - distance_transform_edt(~mask))
    px = len(mask) // factor
    return (signed.reshape(px, factor, px, factor).mean(axis=(1, 3)) / factor).astype(np.float32)


def half_stroke(distances: torch.Tensor) -> torch.Tensor:
    """Half the mean stroke width of float32 [n, px, px] distances: float32 [n]; distances rise evenly from 0 to it across a stroke."""
    inside = distances > 0
    return 2 * (distances * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)


def write(distances: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Ink of written glyphs, float32 [n, 1, px / 2, px / 2] in [0, 1], from float32 [n, px, px] distances; 1 is ink."""
    warped, scale = _warp(distances[:, None], generator)
    ink = _ink(warped / scale, half_stroke(distances) / scale.flatten(), generator)
    return F.avg_pool2d(_frame(ink, generator), 2)


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _warp(maps: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Slanted, stretched, rotated and bent maps, and the factor by which each shrank, float32 [n, 1, 1, 1]."""
    n, _, px, _ = maps.shape
    angle = _uniform(-0.15, 0.15, (n,), generator)
    slant = _uniform(-0.2, 0.4, (n,), generator)
    stretch = torch.exp(_uniform(-0.22, 0.22, (n,), generator))  # of width relative to height
    sine, cosine = torch.sin(angle), torch.cos(angle)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = cosine * stretch
    theta[:, 0, 1] = cosine * slant - sine
    theta[:, 1, 0] = sine * stretch
    theta[:, 1, 1] = sine * slant + cosine
    theta *= 1.25  # leaves room for slanted strokes at the frame's border
    grid = F.affine_grid(theta, [n, 1, px, px], align_corners=False)
    bumps = torch.randn(n, 2, 4, 4, generator=generator) * _uniform(0.0, 0.11, (n, 1, 1, 1), generator)
    bent = F.interpolate(bumps, size=(px, px), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    shrunk = (theta[:, 0, 0] * theta[:, 1, 1] - theta[:, 0, 1] * theta[:, 1, 0]).sqrt()
    return F.grid_sample(maps, grid + bent, padding_mode="border", align_corners=False), shrunk[:, None, None, None]


def _ink(distances: torch.Tensor, half: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Ink of a pen whose width varies between glyphs and along each glyph; strokes keep at least half their original width."""
    n = len(half)
    pen = torch.maximum(_uniform(*HALF_PEN, (n,), generator), half / 2)[:, None, None, None]
    pressure = F.interpolate(_uniform(-_STEADY, _STEADY, (n, 1, 3, 3), generator), size=distances.shape[2:], mode="bilinear")
    softness = _uniform(0.15, 0.45, (n, 1, 1, 1), generator)
    return torch.sigmoid((distances - half[:, None, None, None] + pen * (1 + pressure)) / softness)


def _frame(ink: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Scale each character to about `LONGEST_SIDE` and move its centre of mass near the middle, as in LeCun et al. (1998)."""
    n, _, px, _ = ink.shape
    places = (torch.arange(px) + 0.5) * (2 / px) - 1
    spans, centres = [], []
    for other in (1, 2):  # across, then down
        profile, mass = ink[:, 0].amax(other) > 0.5, ink[:, 0].sum(other)
        first = torch.where(profile, places, 2.0).amin(1)
        last = torch.where(profile, places, -2.0).amax(1)
        spans.append((last - first + 2 / px) / 2)
        centres.append((mass * places).sum(1) / mass.sum(1).clamp(min=1e-3))
    side = LONGEST_SIDE * _uniform(0.92, 1.05, (n,), generator)
    factor = torch.maximum(*spans).clamp(min=0.1) / side
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = factor
    shift = _uniform(-0.05, 0.05, (n, 2), generator)
    theta[:, :, 2] = torch.stack(centres, dim=1) + factor[:, None] * shift
    return F.grid_sample(ink, F.affine_grid(theta, [n, 1, px, px], align_corners=False), align_corners=False)
