"""Checks every record of a set once: does it decode to the last byte, and to the pixels and the size in the manifest?"""

import hashlib
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from gda.data.images.codecs import FORMATS, Rgb, decode, pixel_digest, resize_and_crop, to_array
from gda.data.images.pixels import room_for
from gda.data.store.snapshot import Snapshot
from gda.errors import DataError
from gda.io.shards import iterate_shard


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What was found.

    `table` has a row per image in manifest order: the manifest's columns, `decoded` (1 or 0), `decoded_width`, `decoded_height`,
    `decoded_mode` (Pillow's, of the file), `decoded_pixel_sha256` (null where it does not decode), `as_recorded` (1: the pixels are
    those of the manifest) and `size_as_recorded` (1: so is the size). `images` uint8 NCHW are those that decode, scaled and cropped to
    one size; `rows` are their positions in the table.
    """

    table: pd.DataFrame
    images: torch.Tensor
    rows: np.ndarray
    failures: tuple[str, ...]  # one line per undecodable record


def audit_images(snapshot: Snapshot, *, size: int, scratch: Path | None = None) -> Audit:
    """Decode all records of all splits; given `scratch`, into a file mapped from there, as of `room_for`.

    Raises `DataError` for a shard that is cut short, altered or not in the manifest's order.
    """
    manifest = snapshot.manifest()
    found, failures = [], []
    images, kept = room_for(len(manifest), size, scratch=scratch), 0
    pixels = images.numpy()
    for name, data in _encoded(snapshot, manifest):
        try:
            image = decode(data, name=name)
        except DataError as error:
            failures.append(str(error))
            found.append(_missing())
            continue
        found.append(_seen(to_array(image)) | {"decoded_mode": _stored_mode(data)})
        pixels[kept] = to_array(resize_and_crop(image, size)).transpose(2, 0, 1)
        kept += 1
    table = pd.concat([manifest, pd.DataFrame(found, index=manifest.index)], axis=1)
    table["as_recorded"] = (table["decoded_pixel_sha256"] == table["pixel_sha256"]).astype(int)
    sides = (table["decoded_width"] == table["width"]) & (table["decoded_height"] == table["height"])
    table["size_as_recorded"] = sides.astype(int)
    return Audit(table=table, images=images[:kept], rows=np.flatnonzero(table["decoded"]), failures=tuple(failures))


def _encoded(snapshot: Snapshot, manifest: pd.DataFrame) -> Iterator[tuple[str, bytes]]:
    """(name for messages, encoded image) of every record in manifest order, exactly as many as the manifest has rows."""
    columns = manifest[["shard", "key", "label", "sha256"]].itertuples(index=False, name=None)
    for shard, expected in itertools.groupby(columns, key=itemgetter(0)):
        path = snapshot.path / shard
        for row, pair in itertools.zip_longest(expected, iterate_shard(path)):
            if row is None or pair is None or (pair[1].key, pair[1].label) != row[1:3]:
                raise DataError(f"{path}: its records are not those of the manifest")
            if hashlib.sha256(pair[1].image).hexdigest() != row[3]:
                raise DataError(f"{path}: record {row[1]!r}: checksum differs from the manifest")
            yield f"{shard}: {row[1]}", pair[1].image


def _seen(rgb: Rgb) -> dict[str, Any]:
    height, width, _ = rgb.shape
    return {"decoded": 1, "decoded_width": width, "decoded_height": height, "decoded_pixel_sha256": pixel_digest(rgb)}


def _stored_mode(data: bytes) -> str:
    """The mode stored in the file, which the decoded RGB image no longer shows."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return image.mode


def _missing() -> dict[str, Any]:
    return {"decoded": 0, "decoded_width": None, "decoded_height": None, "decoded_pixel_sha256": None, "decoded_mode": None}
