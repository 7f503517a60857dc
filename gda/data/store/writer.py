"""Writes images into shards, for real and synthetic sets: each is encoded once and has one manifest row."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from gda.artifacts.fingerprint import digest_of
from gda.data.images.codecs import PNG, SYNTHETIC_MARK, Codec, Rgb, encode, pixel_digest, stored_pixels
from gda.errors import DataError
from gda.io.atomic import write_bytes
from gda.io.manifest import SYNTHETIC_COLUMNS
from gda.io.shards import ShardRecord, sha256_of, write_shard


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """An image on its way into a shard: `rgb` uint8 [height, width, 3]; `meta` goes to `<key>.json`.

    Entries of `meta` named as a synthetic manifest column (seed, prompt, ...) go to the manifest as well. `text` goes into the image
    file itself, as `gda.data.images.codecs.encode` puts it there.
    """

    key: str
    rgb: Rgb
    label: int
    class_name: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EncodedRecord:
    """An image encoded already, with what the manifest says about it; `pixel_sha256` is that of the pixels a reader decodes."""

    key: str
    image: bytes
    extension: str = "png"
    label: int
    class_name: str
    pixel_sha256: str
    width: int
    height: int
    meta: Mapping[str, Any] = field(default_factory=dict)


def shard_name(split: str, number: int) -> str:
    """`train-000007.tar`."""
    return f"{split}-{number:06d}.tar"


def encode_record(record: ImageRecord, codec: Codec = PNG) -> EncodedRecord:
    """Encode, and hash the pixels as they are stored; an image with a `generator_digest` in its meta is marked as synthetic.

    Safe to call from several threads at once. Raises `ValueError` as `gda.data.images.codecs.encode` does.
    """
    height, width, _ = record.rgb.shape
    mark = {SYNTHETIC_MARK: str(record.meta["generator_digest"])} if "generator_digest" in record.meta else {}
    image = encode(record.rgb, codec, {**mark, **record.text})
    return EncodedRecord(
        key=record.key,
        image=image,
        extension=codec.extension,
        label=record.label,
        class_name=record.class_name,
        pixel_sha256=pixel_digest(stored_pixels(record.rgb, image, codec)),
        width=width,
        height=height,
        meta=record.meta,
    )


def write_image_shard(folder: Path, *, name: str, split: str, records: Sequence[ImageRecord], codec: Codec = PNG) -> pd.DataFrame:
    """Encode and write one shard, create-only; returns its manifest rows in order. Raises as `write_shard` does."""
    return write_encoded_shard(folder, name=name, split=split, records=[encode_record(record, codec) for record in records])


def write_encoded_shard(folder: Path, *, name: str, split: str, records: Sequence[EncodedRecord]) -> pd.DataFrame:
    """As `write_image_shard`, for records that were encoded elsewhere."""
    shard = (ShardRecord(key=r.key, extension=r.extension, image=r.image, label=r.label, meta=dict(r.meta)) for r in records)
    index = write_shard(folder / name, shard)
    rows = [_row(record, name, split, offset) for record, offset in zip(records, index.offsets, strict=True)]
    return pd.DataFrame(rows)


def save_rows(sidecar: Path, shard: Path, rows: pd.DataFrame) -> None:
    """Keep a finished shard's rows in the work folder until the set is committed: one JSON file, written whole, with the tar's checksum."""
    content = {"sha256": sha256_of(shard), "size": shard.stat().st_size, "rows": rows.to_dict("records")}
    plain = json.loads(json.dumps(content, default=_plain, allow_nan=False))
    write_bytes(sidecar, json.dumps(plain | {"checksum": digest_of(plain)}, sort_keys=True, allow_nan=False).encode())


def load_rows(sidecar: Path, shard: Path, *, checked: bool = True) -> pd.DataFrame | None:
    """The rows of a finished shard; None when there are none or the tar is not the recorded one, so that it must be sampled again.

    A tar is recognised by its checksum, or, if not `checked`, only by its size, which costs nothing however large the shards are.
    """
    try:
        content = json.loads(sidecar.read_bytes())
        if content.pop("checksum") != digest_of(content):
            return None
        if shard.stat().st_size == content["size"] and (not checked or sha256_of(shard) == content["sha256"]):
            return pd.DataFrame(content["rows"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DataError):
        pass  # for any fault the result is the same: this shard does not count as finished
    return None


def _plain(value: Any) -> Any:
    return value.item()  # numpy scalars


def _row(record: EncodedRecord, shard: str, split: str, offset: int) -> dict[str, Any]:
    return {
        "key": record.key,
        "split": split,
        "label": record.label,
        "class": record.class_name,
        "sha256": hashlib.sha256(record.image).hexdigest(),
        "pixel_sha256": record.pixel_sha256,
        "width": record.width,
        "height": record.height,
        "shard": shard,
        "offset": offset,
        **{name: record.meta[name] for name in SYNTHETIC_COLUMNS if name in record.meta},
    }
