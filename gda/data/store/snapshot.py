"""A snapshot: tar shards, a manifest and `snapshot.json`, which is written last, so that its presence means complete."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gda.artifacts.document import dump_document, read_document
from gda.artifacts.snapshot import ClassInfo, ShardInfo, SnapshotIndex
from gda.data.store.classes import make_classes
from gda.errors import DataError
from gda.io.atomic import write_bytes
from gda.io.manifest import GROUP, read_manifest, write_manifest
from gda.io.shards import sha256_of

INDEX_FILE = "snapshot.json"
SPLITS = ("train", "val", "test")
SHARD_NAME = re.compile(r"(train|val|test)-[0-9]{6}\.tar\Z")
_HASH = "[0-9a-f]{64}"


class Snapshot:
    """An opened snapshot: `path`, `index`, `digest`, `classes`; images are read through `gda.data.store.in_memory`."""

    def __init__(self, path: Path, index: SnapshotIndex, rows: pd.DataFrame) -> None:
        self.path = path
        self.index = index
        self._rows = rows

    @classmethod
    def open(cls, path: Path) -> "Snapshot":
        """Check `snapshot.json`, the manifest's checksum and that every shard is there. Raises `DataError` naming the file."""
        index = read_document(path / INDEX_FILE, SnapshotIndex)
        problems = index_problems(path, index)
        if problems:
            raise DataError(problems[0])
        rows = read_manifest(path, index.manifest_sha256)
        if problems := manifest_problems(index, rows):
            raise DataError(f"{path}: {problems[0]}")
        if digest_rows(rows, index.classes) != index.digest:
            raise DataError(f"{path / INDEX_FILE}: its digest is not that of the images in the manifest")
        return cls(path, index, rows)

    @property
    def digest(self) -> str:
        """Content digest: classes, and key, split, label and pixel hash of every image."""
        return self.index.digest

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """Classes in label order."""
        return self.index.classes

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The splits that hold images, of train, val, test."""
        return tuple(split for split in SPLITS if split in self.index.counts)

    def manifest(self, split: str | None = None) -> pd.DataFrame:
        """One row per image in shard order, of one split or of all; a copy, so that callers may add columns."""
        rows = self._rows if split is None else self._rows[self._rows["split"] == split]
        return rows.reset_index(drop=True)

    def groups(self, split: str) -> NDArray[np.int32] | None:
        """int32 [n]: the number of each image's group (patient, video) in manifest order; an image without group is a group of its own.

        None where the source has no groups.
        """
        rows = self.manifest(split)
        if GROUP not in rows or rows[GROUP].isna().all():
            return None
        numbers, names = pd.factorize(rows[GROUP], sort=True)
        alone = numbers < 0
        return np.where(alone, len(names) - 1 + np.cumsum(alone), numbers).astype(np.int32)

    def split_digest(self, split: str) -> str:
        """Content digest of one split alone."""
        return digest_rows(self.manifest(split), self.classes)


def commit_snapshot(
    folder: Path,
    *,
    kind: Literal["real", "synthetic"],
    classes: Sequence[ClassInfo],
    rows: pd.DataFrame,
    provenance: Mapping[str, str],
    licence: str,
    plan_digest: str | None = None,
    quarantined: Sequence[dict[str, str]] = (),
) -> SnapshotIndex:
    """Turn a folder of finished tars into a snapshot: hash them, write the manifest, then `snapshot.json`.

    `rows` are those of `write_image_shard`, concatenated, plus the synthetic columns where `kind` is synthetic. Raises `DataError`
    when rows and tars do not belong together, a key repeats, or there are no images.
    """
    rows = rows.sort_values(["shard", "offset"], ignore_index=True)
    shards = _describe_shards(folder, rows)
    index = SnapshotIndex(
        kind=kind,
        classes=tuple(classes),
        counts=count_rows(rows, classes),
        shards=shards,
        manifest_sha256=write_manifest(folder, rows, synthetic=kind == "synthetic"),
        digest=digest_rows(rows, classes),
        plan_digest=plan_digest,
        provenance=dict(provenance),
        licence=licence,
        quarantined=tuple(quarantined),
    )
    if problems := manifest_problems(index, rows):
        raise DataError(f"{folder}: {problems[0]}")
    write_bytes(folder / INDEX_FILE, dump_document(index))
    return index


def digest_rows(rows: pd.DataFrame, classes: Sequence[ClassInfo]) -> str:
    """sha256 over the classes, then key, split, label, pixel hash and group, where there are groups, of every image in key order."""
    hasher = hashlib.sha256(b"gda-snapshot-1\n")
    for info in classes:
        hasher.update(f"{info.name}\t{info.prompt_name}\n".encode())
    hasher.update(b"\n")
    ordered = rows.sort_values("key")
    names = ["key", "split", "label", "pixel_sha256", *([GROUP] if GROUP in rows else [])]
    for line in zip(*(ordered[name].tolist() for name in names), strict=True):
        hasher.update(("\t".join("" if pd.isna(part) else str(part) for part in line) + "\n").encode())
    return hasher.hexdigest()


def count_rows(rows: pd.DataFrame, classes: Sequence[ClassInfo]) -> dict[str, dict[str, int]]:
    """Numbers of images by split and class name; 0 for a class without images in a split."""
    counted = rows.groupby(["split", "class"]).size().to_dict()
    present = set(rows["split"].unique())
    splits = [split for split in SPLITS if split in present]
    return {split: {info.name: int(counted.get((split, info.name), 0)) for info in classes} for split in splits}


def index_problems(path: Path, index: SnapshotIndex) -> list[str]:
    """What is wrong with `snapshot.json` itself or with the shards it names, one line each."""
    problems = []
    try:
        names = [info.name for info in index.classes]
        if sorted(info.name for info in make_classes(names)) != sorted(names):
            problems.append(f"{path / INDEX_FILE}: class names repeat or are not in unicode form NFC")
    except DataError as error:
        problems.append(f"{path / INDEX_FILE}: {error}")
    for shard in index.shards:
        if not SHARD_NAME.match(shard.name) or not shard.name.startswith(f"{shard.split}-"):
            problems.append(f"{path / INDEX_FILE}: {shard.name!r} is not a shard name of split {shard.split}")
        elif not (path / shard.name).is_file():
            problems.append(f"{path / shard.name}: not found, though snapshot.json names it")
    return problems


def manifest_problems(index: SnapshotIndex, rows: pd.DataFrame) -> list[str]:
    """Where manifest and index contradict each other, one line each."""
    problems = []
    if rows.empty:
        problems.append("the manifest holds no images")
    if rows["key"].duplicated().any():
        problems.append(f"key {rows['key'][rows['key'].duplicated()].iloc[0]!r} occurs twice in the manifest")
    names = dict(enumerate(info.name for info in index.classes))
    if (wrong := rows[rows["label"].map(names) != rows["class"]]).size:
        problems.append(f"record {wrong['key'].iloc[0]!r}: label {wrong['label'].iloc[0]} is not class {wrong['class'].iloc[0]!r}")
    if not rows["pixel_sha256"].astype(str).str.fullmatch(_HASH).all():
        problems.append("a pixel hash is not 64 hex digits")
    expected = {(shard.name, shard.split): shard.count for shard in index.shards}
    if rows.groupby(["shard", "split"]).size().to_dict() != expected:
        problems.append("the manifest's shards, splits or counts differ from snapshot.json")
    if count_rows(rows, index.classes) != index.counts:
        problems.append("the manifest's class counts differ from snapshot.json")
    return problems


def _describe_shards(folder: Path, rows: pd.DataFrame) -> tuple[ShardInfo, ...]:
    if rows.empty:
        raise DataError(f"{folder}: no images to commit")
    named, present = set(rows["shard"]), {path.name for path in folder.glob("*.tar")}
    if named != present:
        raise DataError(f"{folder}: shards and rows do not belong together: {', '.join(sorted(named ^ present)[:3])}")
    groups: list[tuple[Any, pd.DataFrame]] = list(rows.groupby("shard"))
    return tuple(
        ShardInfo(name=name, split=group["split"].iloc[0], count=len(group), sha256=sha256_of(folder / name)) for name, group in groups
    )
