"""Exporting a snapshot to the layouts that other tools read: class folders, the Hugging Face imagefolder, ADM's .npz."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from gda.artifacts import Outcome
from gda.data.images import decode, to_array
from gda.data.ledger import record_test_opening
from gda.data.snapshot import Snapshot
from gda.errors import DataError, UsageError
from gda.io.manifest import SYNTHETIC_COLUMNS
from gda.io.publish import exclusive, prepare, publish, storage_errors, write_bytes
from gda.io.shards import ShardRecord, read_shard
from gda.recipe import Recipe

Layout = Literal["imagefolder", "npz", "hf"]


def export_snapshot(snapshot_path: Path, to: Layout, out: Path) -> Outcome:
    """Write the images of a snapshot as `out/<split>/<class>/<key>.png`, as an imagefolder with metadata, or as `out/<split>.npz`.

    Files hold the stored bytes; an .npz needs images of one size. A test split is noted in the ledger as exported. Raises `UsageError`
    for another layout, `DataError` for a damaged shard or mixed sizes.
    """
    writers: dict[str, Callable[[Snapshot, str, Path], None]] = {"imagefolder": _write_folders, "hf": _write_hf, "npz": _write_npz}
    if to not in writers:
        raise UsageError(f"--to {to!r}: accepted are {', '.join(get_args(Layout))}")
    snapshot = Snapshot.open(snapshot_path)
    workspace = prepare(Recipe(stage="export", config={"to": to}, inputs={"snapshot": snapshot.digest}), out)
    if workspace.finished:
        return Outcome(output=out, digest=snapshot.digest, summary=f"{out} is up to date", reused=True)
    if "test" in snapshot.splits:
        record_test_opening(snapshot.digest, "export")
    with exclusive(workspace):
        folder = workspace.fresh_staging()
        with storage_errors(folder):
            for split in snapshot.splits:
                writers[to](snapshot, split, folder)
        publish(workspace)
    count = len(snapshot.manifest())
    return Outcome(output=out, digest=snapshot.digest, summary=f"wrote {out}: {count} images as {to}")


def _records(snapshot: Snapshot, split: str) -> Iterator[ShardRecord]:
    for shard in snapshot.index.shards:
        if shard.split == split:
            yield from read_shard(snapshot.path / shard.name)


def _write_folders(snapshot: Snapshot, split: str, folder: Path) -> None:
    targets = [folder / split / info.name for info in snapshot.classes]
    for target in targets:
        target.mkdir(parents=True)
    for record in _records(snapshot, split):
        (targets[record.label] / f"{record.key}.{record.extension}").write_bytes(record.image)


def _write_hf(snapshot: Snapshot, split: str, folder: Path) -> None:
    target = folder / split
    target.mkdir()
    rows = snapshot.manifest(split).set_index("key")
    extra = [name for name in SYNTHETIC_COLUMNS if name in rows.columns and rows[name].notna().any()]
    lines = []
    for record in _records(snapshot, split):
        name = f"{record.key}.{record.extension}"
        (target / name).write_bytes(record.image)
        row: dict[str, Any] = {"file_name": name, "label": snapshot.classes[record.label].name}
        lines.append(json.dumps(row | {column: _plain(rows.at[record.key, column]) for column in extra}, ensure_ascii=False) + "\n")
    write_bytes(target / "metadata.jsonl", "".join(lines).encode())


def _write_npz(snapshot: Snapshot, split: str, folder: Path) -> None:
    rows = snapshot.manifest(split)
    sizes = set(zip(rows["height"].tolist(), rows["width"].tolist(), strict=True))
    if len(sizes) > 1:
        raise DataError(f"{snapshot.path}: split {split} has images of {len(sizes)} sizes; an .npz needs one, set snapshot.image_size")
    images = np.stack([to_array(decode(record.image, name=record.key)) for record in _records(snapshot, split)])
    buffer = io.BytesIO()
    np.savez(buffer, images, rows["label"].to_numpy(dtype=np.int64))  # named arr_0 and arr_1; its zip carries no times
    write_bytes(folder / f"{split}.npz", buffer.getvalue())


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
