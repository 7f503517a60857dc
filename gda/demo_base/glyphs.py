"""Captioned glyphs rendered from matplotlib's fonts and from handwriting faces: the pre-training data of the demo base.

All glyphs come from fonts, none from scanned handwriting. A glyph is rendered once per face and character; every sample warps it
(affine, elastic, stroke weight) and colours it, so that the base learns shapes and captions rather than a few bitmaps.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from gda.demo_base.faces import HANDWRITING, Face, face_files
from gda.demo_base.handwriting import outline_distances, write
from gda.errors import DataError

BANK_PX = 56  # glyphs are rendered at twice the final size and warped down
IMAGE_PX = 28
CHARACTERS = string.digits + string.ascii_lowercase + string.ascii_uppercase
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "white": (1.0, 1.0, 1.0),
    "black": (0.0, 0.0, 0.0),
    "red": (0.9, 0.15, 0.1),
    "green": (0.1, 0.75, 0.2),
    "blue": (0.15, 0.3, 0.95),
    "yellow": (0.95, 0.85, 0.1),
}
DIGIT_SHARE = 0.7
COLOURED_SHARE = 0.15
HANDWRITTEN_SHARE = 0.7  # of the samples, if there are handwriting faces
STROKE_SHARE = 0.6  # of the handwritten digits 1: a single stroke, as most people write it, which no face has
_ONE = CHARACTERS.index("1")
_FINER = 2  # times the bank's size: resolution of the outlines
_FONTS = {
    "DejaVuSans": "sans",
    "DejaVuSans-Bold": "bold sans",
    "DejaVuSans-Oblique": "italic sans",
    "DejaVuSans-BoldOblique": "bold italic sans",
    "DejaVuSansMono": "mono",
    "DejaVuSansMono-Bold": "bold mono",
    "DejaVuSansMono-Oblique": "italic mono",
    "DejaVuSansMono-BoldOblique": "bold italic mono",
    "DejaVuSerif": "serif",
    "DejaVuSerif-Bold": "bold serif",
    "DejaVuSerif-Italic": "italic serif",
    "DejaVuSerif-BoldItalic": "bold italic serif",
    "STIXGeneral": "serif",
    "STIXGeneralBol": "bold serif",
    "STIXGeneralItalic": "italic serif",
    "STIXGeneralBolIta": "bold italic serif",
    "cmb10": "bold serif",
    "cmr10": "serif",
    "cmss10": "sans",
    "cmtt10": "mono",
    "cmti10": "italic serif",
}


@dataclass(frozen=True, kw_only=True)
class GlyphBatch:
    """Rendered glyphs: `images` float32 NCHW in [-1, 1] at 28 px, one caption and one character index per image."""

    images: torch.Tensor
    captions: list[str]
    characters: torch.Tensor


class GlyphBank:
    """Every character in every face, rendered once: `alpha` of the printed faces is uint8 [faces, characters, 56, 56].

    `handwriting` is the folder of `faces`: `HANDWRITTEN_SHARE` of the samples is handwritten, from `distances` to their outlines,
    float32 [faces, characters, 56, 56], and `STROKE_SHARE` of the digits 1 among them are a stroke. Without it, no sample is
    handwritten and `distances` is None.
    Raises `FileNotFoundError` if matplotlib's fonts are not installed, and the errors of `face_files`.
    """

    def __init__(self, handwriting: Path | None = None, faces: Sequence[Face] = HANDWRITING) -> None:
        fonts = _font_directory()
        self.styles = tuple(_FONTS.values())
        self.alpha = torch.from_numpy(np.stack([[_render(fonts / f"{name}.ttf", c, BANK_PX) for c in CHARACTERS] for name in _FONTS]))
        self.written_styles = tuple(face.style for face in faces)
        self.distances = None if handwriting is None else torch.stack([face_distances(path) for path in face_files(handwriting, faces)])

    def render(self, count: int, generator: torch.Generator) -> GlyphBatch:
        """Render `count` warped, coloured and captioned glyphs; the same generator state gives the same batch."""
        font = torch.randint(len(self.styles), (count,), generator=generator)
        digit = torch.rand(count, generator=generator) < DIGIT_SHARE
        character = torch.where(
            digit,
            torch.randint(10, (count,), generator=generator),
            torch.randint(10, len(CHARACTERS), (count,), generator=generator),
        )
        ink = self.alpha[font, character].float()[:, None] / 255.0
        ink = _reweight_strokes(_warp(ink, generator), generator)
        styles = [self.styles[int(f)] for f in font]
        if self.distances is not None:
            by_hand = (torch.rand(count, generator=generator) < HANDWRITTEN_SHARE).nonzero().flatten()
            face = torch.randint(len(self.distances), (len(by_hand),), generator=generator)
            outlines = self.distances[face, character[by_hand]]
            outlines[(character[by_hand] == _ONE) & (torch.rand(len(by_hand), generator=generator) < STROKE_SHARE)] = _stroke_distances()
            ink[by_hand] = write(outlines, generator)
            for i, f in zip(by_hand.tolist(), face.tolist(), strict=True):
                styles[i] = self.written_styles[f]
        pick = torch.rand(count, 8, generator=generator)
        names = list(COLOURS)
        captions, front, back = [], [], []
        for i in range(count):
            u = pick[i].tolist()
            text = caption(CHARACTERS[int(character[i])], styles[i], u[:3])
            fg, bg = "white", "black"
            if u[3] < COLOURED_SHARE:
                fg = names[int(u[4] * len(names))]
                others = [n for n in names if n != fg]
                bg = others[int(u[5] * len(others))]
                text = f"{fg} {text} on {bg}"
            captions.append(text)
            front.append(COLOURS[fg])
            back.append(COLOURS[bg])
        fg_rgb = torch.tensor(front)[:, :, None, None]
        bg_rgb = torch.tensor(back)[:, :, None, None]
        images = (ink * fg_rgb + (1 - ink) * bg_rgb) * 2 - 1
        return GlyphBatch(images=images, captions=captions, characters=character)


def caption(character: str, style: str, pick: list[float]) -> str:
    """Describe a glyph; the three numbers `pick` in [0, 1) choose the form of the name and the style words."""
    forms = name_forms(character)
    name = forms[int(pick[0] * len(forms))]
    words = style.split() if pick[1] < 0.4 else []
    return " ".join([*words, name])


def name_forms(character: str) -> tuple[str, ...]:
    """The names of a character in captions; all lower case, because IF's preprocessing lower-cases prompts."""
    if character.isdigit():
        word = NUMBER_WORDS[int(character)]
        return (character, word, f"digit {character}", f"number {word}")
    if character.islower():
        return (character, f"letter {character}", f"small {character}")
    return (f"capital {character.lower()}", f"capital letter {character.lower()}")


def face_distances(path: Path) -> torch.Tensor:
    """Signed distances to the outlines of every character of a face, float32 [characters, 56, 56], in pixels.

    Raises `DataError` for a face without one of the characters: it would be rendered as a box.
    """
    with TTFont(path) as face:
        known = face.getBestCmap()
    lacks = [c for c in CHARACTERS if ord(c) not in known]
    if lacks:
        raise DataError(f"{path}: has no glyph for {', '.join(lacks)}")
    masks = [_render(path, c, BANK_PX * _FINER) > 127 for c in CHARACTERS]
    return torch.from_numpy(np.stack([outline_distances(mask, _FINER) for mask in masks]))


def _stroke_distances() -> torch.Tensor:
    """Signed distances to the outline of an upright stroke, float32 [56, 56], in pixels."""
    px = BANK_PX * _FINER
    half, width = round(0.36 * px), px // 36
    mask = np.zeros((px, px), dtype=bool)
    mask[px // 2 - half : px // 2 + half, px // 2 - width : px // 2 + width] = True
    return torch.from_numpy(outline_distances(mask, _FINER))


def _font_directory() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _render(font: Path, character: str, px: int) -> np.ndarray:
    """One centred character with its longest side normalised: uint8 [px, px], 255 is ink."""
    font_px = 96
    face = ImageFont.truetype(str(font), font_px)
    canvas = Image.new("L", (3 * font_px, 3 * font_px))
    ImageDraw.Draw(canvas).text((font_px, font_px // 2), character, fill=255, font=face)
    box = canvas.getbbox()
    assert box is not None, f"{font.name} has no glyph for {character!r}"
    glyph = canvas.crop(box)
    scale = 0.72 * px / max(glyph.size)
    size = (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale)))
    glyph = glyph.resize(size, Image.Resampling.LANCZOS)
    out = Image.new("L", (px, px))
    out.paste(glyph, ((px - size[0]) // 2, (px - size[1]) // 2))
    return np.asarray(out)


def _warp(ink: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random affine and elastic warp of [n, 1, 56, 56] ink, area-averaged down to 28 px."""
    n = ink.shape[0]

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    angle = uniform(-0.26, 0.26, n)
    shear = uniform(-0.35, 0.35, n)
    sx, sy = uniform(0.9, 1.35, n), uniform(0.9, 1.25, n)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = sx * torch.cos(angle)
    theta[:, 0, 1] = sx * (shear - torch.sin(angle))
    theta[:, 1, 0] = sy * torch.sin(angle)
    theta[:, 1, 1] = sy * torch.cos(angle)
    theta[:, :, 2] = uniform(-0.1, 0.1, n, 2)
    grid = F.affine_grid(theta, [n, 1, BANK_PX, BANK_PX], align_corners=False)
    strength = uniform(0.0, 0.16, n)[:, None, None, None]
    bumps = torch.randn(n, 2, 4, 4, generator=generator) * strength
    field = F.interpolate(bumps, size=(BANK_PX, BANK_PX), mode="bicubic", align_corners=True)
    warped = F.grid_sample(ink, grid + field.permute(0, 2, 3, 1), align_corners=False)
    return F.avg_pool2d(warped, 2)


def _reweight_strokes(ink: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Thicken or thin strokes by moving the threshold at which blurred ink counts as ink."""
    n = ink.shape[0]
    blurred = F.avg_pool2d(F.pad(ink, (1, 1, 1, 1)), 3, stride=1)
    threshold = 0.18 + 0.42 * torch.rand(n, 1, 1, 1, generator=generator)
    hardness = 6 + 6 * torch.rand(n, 1, 1, 1, generator=generator)
    reweighted = torch.sigmoid(hardness * (blurred - threshold))
    floor = torch.sigmoid(-hardness * threshold)
    return ((reweighted - floor) / (1 - floor)).clamp(0, 1)
