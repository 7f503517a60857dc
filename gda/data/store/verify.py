"""Verifies a snapshot to the last bit: index, manifest, every shard, every record, every pixel."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gda.artifacts.document import read_document
from gda.artifacts.snapshot import ShardInfo, SnapshotIndex
from gda.data.checks.leaks import cross_split_duplicates, straddling_groups
from gda.data.images.codecs import decode, pixel_digest, to_array
from gda.data.store.snapshot import INDEX_FILE, digest_rows, index_problems, manifest_problems
from gda.errors import DataError
from gda.io.manifest import read_manifest
from gda.io.shards import ShardRecord, iterate_shard, sha256_of
from gda.runtime.parallel import run_parallel
from gda.runtime.progress import Bar, tick

_WORTH_WORKERS = 1000  # images; below it, starting processes costs more than it saves


@dataclass(frozen=True, kw_only=True)
class _Task:
    path: Path
    shard: ShardInfo
    rows: pd.DataFrame


def verify_snapshot(path: Path, *, progress: bool = False) -> list[str]:
    """Everything that is wrong with the snapshot at `path`, one line each naming shard and record; empty when it is sound.

    Test images are decoded to compare their pixels with the manifest's digests. No test image is returned, so the ledger records nothing.
    """
    try:
        index = read_document(path / INDEX_FILE, SnapshotIndex)
    except DataError as error:
        return [str(error)]
    problems = index_problems(path, index) + _stray_shards(path, index)
    try:
        rows = read_manifest(path, index.manifest_sha256)
    except DataError as error:
        return [*problems, str(error)]
    problems += [f"{path}: {problem}" for problem in manifest_problems(index, rows)]
    problems += _content_problems(path, index, rows)
    tasks = [_Task(path=path, shard=shard, rows=rows[rows["shard"] == shard.name]) for shard in index.shards]
    tasks = [task for task in tasks if (path / task.shard.name).is_file()]
    workers = None if len(rows) >= _WORTH_WORKERS else 1
    with Bar(len(rows), "verify", unit="image", shown=progress):
        problems += [problem for part in run_parallel(_verify_shard, tasks, workers=workers) for problem in part]
    return problems


def _stray_shards(path: Path, index: SnapshotIndex) -> list[str]:
    stray = {tar.name for tar in path.glob("*.tar")} - {shard.name for shard in index.shards}
    return [f"{path / name}: not named by snapshot.json" for name in sorted(stray)]


def _content_problems(path: Path, index: SnapshotIndex, rows: pd.DataFrame) -> list[str]:
    problems = []
    if digest_rows(rows, index.classes) != index.digest:
        problems.append(f"{path}: the content digest in snapshot.json is not that of the manifest")
    if index.kind == "real" and (pairs := cross_split_duplicates(rows)):
        problems.append(f"{path}: {len(pairs)} pictures are in more than one split, first {' = '.join(pairs[0])}")
    if index.kind == "real" and (groups := straddling_groups(rows)):
        problems.append(f"{path}: {len(groups)} groups have images in more than one split, first {groups[0][0]!r}")
    return problems


def _verify_shard(task: _Task) -> list[str]:
    path = task.path / task.shard.name
    problems = []
    try:
        if sha256_of(path) != task.shard.sha256:
            problems.append(f"{path}: checksum differs from snapshot.json")
        expected = {row["key"]: row for row in task.rows.to_dict("records")}
        for offset, record in iterate_shard(path, of_test=True):
            row = expected.pop(record.key, None)
            problems += [f"{path}: record {record.key!r}: {problem}" for problem in _record_problems(offset, record, row)]
        problems += [f"{path}: record {key!r} is missing" for key in expected]
    except DataError as error:
        problems.append(str(error))
    tick(len(task.rows))
    return problems


def _record_problems(offset: int, record: ShardRecord, row: dict[Any, Any] | None) -> Iterator[str]:
    if row is None:
        yield "not in the manifest, or twice in the shard"
        return
    if offset != row["offset"]:
        yield f"at byte {offset}, the manifest has {row['offset']}"
    if record.label != row["label"]:
        yield f"label {record.label}, the manifest has {row['label']}"
    if hashlib.sha256(record.image).hexdigest() != row["sha256"]:
        yield "checksum differs from the manifest"
        return
    try:
        rgb = to_array(decode(record.image, name=record.key))
    except DataError as error:
        yield str(error).removeprefix(f"{record.key}: ")
        return
    if rgb.shape[:2] != (row["height"], row["width"]) or pixel_digest(rgb) != row["pixel_sha256"]:
        yield "pixels differ from the manifest"
