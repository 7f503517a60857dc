"""Exporting a snapshot to the layouts that other tools read: class folders, the Hugging Face imagefolder, ADM's .npz."""

import hashlib
import itertools
import json
import zipfile
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
import pandas as pd

from gda.artifacts.fingerprint import Fingerprint
from gda.artifacts.outcome import Outcome
from gda.data.images.codecs import decode, to_array
from gda.data.store.snapshot import Snapshot
from gda.data.test_split.ledger import record_test_split
from gda.errors import DataError, UsageError
from gda.io.manifest import GROUP, SYNTHETIC_COLUMNS
from gda.io.publish import publish_once
from gda.io.shards import ShardRecord, read_shard
from gda.io.up_to_date import Workspace
from gda.runtime.disks import storage_errors

Layout = Literal["imagefolder", "npz", "hf"]


def export_snapshot(snapshot_path: Path, to: Layout, out: Path) -> Outcome:
    """Write the images of a snapshot as `out/<split>/<class>/<key>.<extension>`, as an imagefolder with metadata, or as `out/<split>.npz`.

    Image files hold the stored bytes, marks of synthetic images included. An .npz holds `arr_0` uint8 [n, height, width, 3], which must
    be of one size, and `arr_1` int64 [n] labels, the lines of `classnames.txt`: what ADM's evaluator reads. It carries no marks, so its
    synthetic images cannot be distinguished from real ones. Only `hf` keeps groups, in its metadata. One image is in memory at a time. The
    ledger records the export of a test split. Raises `UsageError` for another layout, `DataError` for a damaged shard or mixed sizes.
    """
    writers: dict[str, Callable[[Snapshot, str, Path], None]] = {"imagefolder": _write_folders, "hf": _write_hf, "npz": _write_npz}
    if to not in writers:
        raise UsageError(f"--to {to!r}: accepted are {', '.join(get_args(Layout))}")
    snapshot = Snapshot.open(snapshot_path)

    def build(workspace: Workspace) -> None:
        if "test" in snapshot.splits:
            record_test_split(snapshot, "export", work=workspace.fingerprint.digest)
        folder = workspace.fresh_staging()
        with storage_errors(folder):
            for split in snapshot.splits:
                writers[to](snapshot, split, folder)

    reused = publish_once(Fingerprint(stage="export", config={"to": to}, inputs={"snapshot": snapshot.digest}), out, build)
    summary = f"{out} is up to date" if reused else f"wrote {out}: {len(snapshot.manifest())} images as {to}"
    return Outcome(output=out, digest=snapshot.digest, summary=summary, reused=reused)


def _records(snapshot: Snapshot, split: str) -> Iterator[ShardRecord]:
    """Records of a split in the manifest's order, one at a time, each with the bytes that the manifest names."""
    columns = snapshot.manifest(split)[["shard", "key", "label", "sha256"]].itertuples(index=False, name=None)
    for shard, rows in itertools.groupby(columns, key=itemgetter(0)):
        path = snapshot.path / shard
        for row, record in itertools.zip_longest(rows, read_shard(path, of_test=True)):
            if row is None or record is None or (record.key, record.label) != row[1:3]:
                raise DataError(f"{path}: its records are not those of the manifest")
            if hashlib.sha256(record.image).hexdigest() != row[3]:
                raise DataError(f"{path}: record {record.key!r}: checksum differs from the manifest")
            yield record


def _write_folders(snapshot: Snapshot, split: str, folder: Path) -> None:
    targets = [folder / split / info.name for info in snapshot.classes]
    for target in targets:
        target.mkdir(parents=True)
    for record in _records(snapshot, split):
        (targets[record.label] / f"{record.key}.{record.extension}").write_bytes(record.image)


def _write_hf(snapshot: Snapshot, split: str, folder: Path) -> None:
    target = folder / split
    target.mkdir()
    rows = snapshot.manifest(split)
    extra = rows[[name for name in (GROUP, *SYNTHETIC_COLUMNS) if name in rows.columns and rows[name].notna().any()]]
    with open(target / "metadata.jsonl", "w", encoding="utf-8", newline="\n") as table:
        for record, values in zip(_records(snapshot, split), extra.itertuples(index=False, name=None), strict=True):
            name = f"{record.key}.{record.extension}"
            (target / name).write_bytes(record.image)
            row: dict[str, Any] = {"file_name": name, "label": snapshot.classes[record.label].name}
            row |= {column: _plain(value) for column, value in zip(extra.columns, values, strict=True)}
            table.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def _write_npz(snapshot: Snapshot, split: str, folder: Path) -> None:
    rows = snapshot.manifest(split)
    sizes = set(zip(rows["height"].tolist(), rows["width"].tolist(), strict=True))
    if len(sizes) > 1:
        raise DataError(f"{snapshot.path}: split {split} has images of {len(sizes)} sizes; an .npz needs one, set snapshot.image_size")
    shape = (*sizes.pop(), 3)
    with zipfile.ZipFile(folder / f"{split}.npz", "w") as archive:  # as np.savez writes it, but image by image
        with _array(archive, "arr_0", (len(rows), *shape), np.dtype(np.uint8)) as images:
            for record in _records(snapshot, split):
                rgb = to_array(decode(record.image, name=record.key))
                if rgb.shape != shape:
                    raise DataError(f"{snapshot.path}: record {record.key!r} is not of the size that the manifest states")
                images.write(rgb.tobytes())
        with _array(archive, "arr_1", (len(rows),), np.dtype(np.int64)) as labels:
            labels.write(rows["label"].to_numpy(dtype=np.int64).tobytes())
    (folder / "classnames.txt").write_bytes("".join(f"{info.name}\n" for info in snapshot.classes).encode())


def _array(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> IO[bytes]:
    """An array of the archive, open for its bytes in C order after the header; without a time stamp."""
    file = archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file


def _plain(value: Any) -> Any:
    """The value as JSON; null where the manifest has none."""
    return None if pd.isna(value) else value
