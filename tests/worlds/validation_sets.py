"""Tiny sets for validation tests: the colour is the class, blobs make every image a picture of its own."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from gda.artifacts.document import dump_document, read_document
from gda.artifacts.snapshot import ClassInfo, SnapshotIndex
from gda.config.load import Config, parse_config
from gda.data.images.codecs import encode_png, pixel_digest
from gda.data.store.snapshot import INDEX_FILE, commit_snapshot
from gda.data.store.writer import EncodedRecord, write_encoded_shard
from gda.io.manifest import read_manifest, write_manifest

SIZE = 16
COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 210), "grey": (130, 130, 130)}
CLASSES = tuple(COLOURS)
SETTINGS = {"prompt": "p", "negative_prompt": "", "guidance_scale": 1.5, "num_inference_steps": 4, "scheduler": "ddim", "source_image": ""}
COUNTS = {"train": 12, "val": 15, "test": 10}
PER_CLASS = 30


@dataclass(frozen=True, kw_only=True)
class Item:
    """An image to be written, with the class it is labelled as; `encoded` overrides the stored bytes."""

    rgb: np.ndarray
    label: str
    meta: dict[str, Any]
    encoded: bytes | None = None


def tiny_config(**validate: Any) -> Config:
    """Two folds of a small network, and limits wide enough for sets of a hundred images."""
    return parse_config(
        {
            "reference": {"folds": 2, "num_train_steps": 40},
            "classify": {"image_size": SIZE, "batch_size": 32, "warmup_steps": 5},
            "validate": {"max_copy_fraction": 0.15, "fid_max_ratio": 8.0, **validate},
        },
        where="test",
    )


def render(colour: str, rng: np.random.Generator, size: int = SIZE) -> np.ndarray:
    """uint8 [size, size, 3]: a colour with smooth blobs of light and dark."""
    blobs = Image.fromarray(rng.normal(0, 45, (5, 5)).astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    return np.clip(np.array(COLOURS[colour]) + np.asarray(blobs)[:, :, None], 0, 255).astype(np.uint8)


def items(per_class: int, seed: int, size: int = SIZE) -> list[Item]:
    """New images of every class, with provenance as `sample` writes it."""
    rng = np.random.default_rng(seed)
    rendered = [(colour, render(colour, rng, size)) for _ in range(per_class) for colour in CLASSES]
    return [
        Item(rgb=rgb, label=colour, meta={**SETTINGS, "seed": i, "generator_digest": "ab" * 32}) for i, (colour, rgb) in enumerate(rendered)
    ]


def write_set(
    folder: Path,
    splits: dict[str, Sequence[Item]],
    *,
    kind: Any = "synthetic",
    classes: Sequence[str] = CLASSES,
    plan_digest: str | None = None,
    shards: int = 1,
) -> Path:
    """Commit a snapshot of these items, with so many shards per split."""
    folder.mkdir(parents=True)
    rows = []
    for split, content in splits.items():
        records = [_record(f"{split}-{i:04d}", item, kind, classes) for i, item in enumerate(content)]
        size = -(-len(records) // shards)
        for number in range(shards):
            part = records[number * size : (number + 1) * size]
            rows.append(write_encoded_shard(folder, name=f"{split}-{number:06d}.tar", split=split, records=part))
    infos = [ClassInfo(name=name, prompt_name=name) for name in classes]
    commit_snapshot(
        folder, kind=kind, classes=infos, rows=pd.concat(rows, ignore_index=True), provenance={}, licence="CC0-1.0", plan_digest=plan_digest
    )
    return folder


def write_real(folder: Path, counts: Mapping[str, int] = COUNTS) -> Path:
    """A real snapshot with all three splits, of `counts` images per class."""
    return write_set(folder, {split: items(count, seed) for seed, (split, count) in enumerate(counts.items())}, kind="real")


def rewrite_manifest(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    """Replace the manifest by a changed one, with an index that has the new manifest's checksum and is otherwise unchanged."""
    index = read_document(folder / INDEX_FILE, SnapshotIndex)
    checksum = write_manifest(folder, change(read_manifest(folder, index.manifest_sha256)), synthetic=index.kind == "synthetic")
    (folder / INDEX_FILE).write_bytes(dump_document(index.model_copy(update={"manifest_sha256": checksum})))
    return folder


def changed(content: Sequence[Item], positions: Sequence[int], change: Callable[[Item, int], Item]) -> list[Item]:
    """The same items, those at `positions` passed through `change(item, place in positions)`."""
    places = {position: place for place, position in enumerate(positions)}
    return [change(item, places[i]) if i in places else item for i, item in enumerate(content)]


def with_pixels(item: Item, rgb: np.ndarray) -> Item:
    """The same item showing another picture."""
    return replace(item, rgb=rgb)


def as_jpeg(rgb: np.ndarray) -> np.ndarray:
    """The picture after it was encoded and decoded as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=85)
    return np.asarray(Image.open(buffer).convert("RGB"))


def _record(key: str, item: Item, kind: str, classes: Sequence[str]) -> EncodedRecord:
    height, width, _ = item.rgb.shape
    return EncodedRecord(
        key=key,
        image=item.encoded if item.encoded is not None else encode_png(item.rgb),
        label=list(classes).index(item.label),
        class_name=item.label,
        pixel_sha256=pixel_digest(item.rgb),
        width=width,
        height=height,
        meta=item.meta if kind == "synthetic" else {},
    )
