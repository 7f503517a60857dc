"""Real, zero-shot and fine-tuned images side by side: one row per class, one block of columns per set."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gda.data.images.codecs import Rgb, decode, encode_png, resize_and_crop, to_array
from gda.data.store.snapshot import Snapshot
from gda.io.shards import read_record

MAX_ROWS, _COLUMNS = 12, 5
_SMALLEST_TILE, _LARGEST_TILE = 48, 96  # pixels
_GAP, _BLOCK_GAP, _HEADER, _MARGIN = 3, 24, 34, 8
_INK = (32, 33, 36)


def image_grid(sets: Mapping[str, Snapshot], classes: Sequence[str]) -> bytes:
    """PNG of training images: rows are (at most 12, evenly spread) classes, each entry of `sets` is a titled block of five columns.

    Small images are enlarged by whole pixels, so that the reader sees what the classifier sees. Test images are never shown.
    """
    shown = [int(i) for i in np.unique(np.linspace(0, len(classes) - 1, min(MAX_ROWS, len(classes))).round())]
    blocks = {title: [_tiles(snapshot, label) for label in shown] for title, snapshot in sets.items()}
    tile = max((t.shape[0] for rows in blocks.values() for row in rows for t in row), default=_SMALLEST_TILE)
    return encode_png(_render(blocks, [classes[label] for label in shown], tile))


def _tiles(snapshot: Snapshot, label: int) -> list[Rgb]:
    """The first images of a class, in key order; fewer where the class has fewer."""
    rows = snapshot.manifest("train")
    rows = rows[rows["label"] == label].sort_values("key").head(_COLUMNS)
    images = []
    for row in rows.itertuples():
        path = snapshot.path / str(row.shard)
        image = decode(read_record(path, int(row.offset)).image, name=f"{path}: {row.key}")
        images.append(to_array(_scaled(image)))
    return images


def _scaled(image: Image.Image) -> Image.Image:
    side = min(image.size)
    if side >= _SMALLEST_TILE:
        return resize_and_crop(image, min(side, _LARGEST_TILE))
    factor = -(-_SMALLEST_TILE // side)
    square = resize_and_crop(image, side)
    return square.resize((side * factor, side * factor), Image.Resampling.NEAREST)


def _render(blocks: Mapping[str, list[list[Rgb]]], names: Sequence[str], tile: int) -> Rgb:
    font = ImageFont.load_default(size=17)
    label_width = max((int(font.getlength(_short(name))) for name in names), default=0) + 2 * _MARGIN
    block_width = _COLUMNS * (tile + _GAP) - _GAP
    width = label_width + len(blocks) * (block_width + _BLOCK_GAP) - _BLOCK_GAP + _MARGIN
    height = _HEADER + len(names) * (tile + _GAP) + _MARGIN
    canvas = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(canvas)
    for i, name in enumerate(names):
        pen.text((label_width - _MARGIN, _HEADER + i * (tile + _GAP) + tile // 2), _short(name), fill=_INK, font=font, anchor="rm")
    for b, (title, rows) in enumerate(blocks.items()):
        left = label_width + b * (block_width + _BLOCK_GAP)
        pen.text((left + block_width // 2, _HEADER // 2), title, fill=_INK, font=font, anchor="mm")
        for i, row in enumerate(rows):
            for j, rgb in enumerate(row):
                image = Image.fromarray(rgb).resize((tile, tile), Image.Resampling.NEAREST)
                canvas.paste(image, (left + j * (tile + _GAP), _HEADER + i * (tile + _GAP)))
    return to_array(canvas)


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"
