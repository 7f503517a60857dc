"""Sources that are folders: class folders (with or without split folders above them) and the Hugging Face imagefolder."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from gda.data.sources import ACCEPTED, IMAGE_ENDINGS, Columns, Slice, Source, SourceRecord, fingerprint_files, path_key, printable
from gda.data.splits import SPLIT_NAMES, parse_split
from gda.errors import DataError, UsageError

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
_CLUTTER = ("__MACOSX", "Thumbs.db", "desktop.ini")


def read_folder(root: Path, columns: Columns, *, progress: bool) -> Source:
    """List an image folder of any of the three layouts.

    Raises `DataError` for a class without images, files outside the folder and rows that cannot be understood; `UsageError` when
    there is no such folder or `columns` are asked of a folder without metadata.
    """
    try:
        return _read(root, columns, progress)
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read ({error.strerror})") from None


def _read(root: Path, columns: Columns, progress: bool) -> Source:
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; accepted sources: {ACCEPTED}")
    if (root / "snapshot.json").exists():
        raise UsageError(f"{root}: is a snapshot already")
    if tables := _metadata_files(root):
        return _from_tables(root, tables, columns, progress)
    if columns.names:
        raise UsageError(f"column {columns.names[0]!r}: {root} has no {' or '.join(METADATA_FILES)} to find it in")
    return _from_class_folders(root, progress)


def _from_class_folders(root: Path, progress: bool) -> Source:
    records: list[SourceRecord] = []
    rejected: list[tuple[str, str]] = []
    ignored = 0
    class_names: set[str] = set()
    for split, folder in _split_folders(root):
        for child in _visible(folder):
            if not child.is_dir():
                ignored += not _is_image_name(child)
                rejected += [(_relative(child, root), "not in a class folder")] if _is_image_name(child) else []
                continue
            class_names.add(child.name)
            found, others = images_below(child, root)
            ignored += others
            if not found and split in (None, "train"):
                raise DataError(f"{child}: class {child.name!r} has no images; add some or remove the folder")
            records += [_record(root, path, child.name, split=split) for path in found]
    if not class_names:
        raise DataError(f"{root}: holds no class folders, no metadata.csv or metadata.jsonl, and no tars")
    return _source(records, class_names, rejected, ignored, "image folder", progress)


def _from_tables(root: Path, tables: list[tuple[str | None, Path]], columns: Columns, progress: bool) -> Source:
    records: list[SourceRecord] = []
    rejected: list[tuple[str, str]] = []
    for split, table in tables:
        for where, row in _read_table(table, (*columns.names, "file_name", "label")):
            path = table.parent / _inside(row["file_name"], where)
            name = _relative(path, root)
            if columns.split is not None:
                split = parse_split(_filled(row, columns.split, where), where)
            group = None if columns.group is None else _filled(row, columns.group, where)
            records.append(_record(root, path, _filled(row, "label", where), split=split, group=group))
            if not path.is_file():
                rejected.append((name, f"not found, though {where} lists it"))
    missing = {name for name, _ in rejected}
    listed = {record.name for record in records}
    if len(listed) < len(records):
        raise DataError(f"{root}: {len(records) - len(listed)} files are listed more than once in the metadata")
    on_disk, others = images_below(root, root)
    ignored = others - len(tables) + sum(_relative(path, root) not in listed for path in on_disk)
    class_names = {record.class_name for record in records}
    records = [record for record in records if record.name not in missing]
    return _source(records, class_names, rejected, ignored, "Hugging Face imagefolder", progress)


def _source(
    records: list[SourceRecord], class_names: set[str], rejected: list[tuple[str, str]], ignored: int, kind: str, progress: bool
) -> Source:
    return Source(
        records=records,
        class_names=sorted(class_names),
        fingerprint=fingerprint_files(records, progress=progress),
        description=kind,
        rejected=rejected,
        ignored=ignored,
    )


def _record(root: Path, path: Path, class_name: str, *, split: str | None, group: str | None = None) -> SourceRecord:
    name = _relative(path, root)
    return SourceRecord(name=name, key=path_key(name), class_name=class_name, payload=Slice(path=path), split=split, group=group)


def _split_folders(root: Path) -> list[tuple[str | None, Path]]:
    """The folders that hold class folders: `root` itself, or split folders where every folder in it is named as a split."""
    folders = [child for child in _visible(root) if child.is_dir()]
    splits = [SPLIT_NAMES.get(folder.name.lower()) for folder in folders]
    if "train" not in splits or None in splits:
        return [(None, root)]
    if len(set(splits)) < len(splits):
        raise DataError(f"{root}: two folders name one split: {', '.join(folder.name for folder in folders)}")
    for folder in folders:
        if not any(child.is_dir() for child in _visible(folder)):
            raise DataError(f"{folder}: a split folder without class folders in it")
    return list(zip(splits, folders, strict=True))


def _metadata_files(root: Path) -> list[tuple[str | None, Path]]:
    here: list[tuple[str | None, Path]] = [(None, root / name) for name in METADATA_FILES if (root / name).is_file()]
    if here:
        return here[:1]
    below: list[tuple[str | None, Path]] = []
    for folder in (child for child in _visible(root) if child.is_dir() and child.name.lower() in SPLIT_NAMES):
        below += [(SPLIT_NAMES[folder.name.lower()], folder / name) for name in METADATA_FILES if (folder / name).is_file()][:1]
    return below


def _read_table(table: Path, required: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with where they stand ("metadata.csv line 7"); the required columns are there."""
    rows = _read_csv(table) if table.suffix == ".csv" else _read_jsonl(table)
    for line, row in rows:
        for name in required:
            if name not in row:
                raise UsageError(f"{table} line {line}: no column {name!r}; it has {', '.join(map(str, row))}")
        yield f"{table.name} line {line}", row


def _read_csv(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{table} line {reader.line_num}: not as many fields as the header has")
                yield reader.line_num, row
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{table}: not a UTF-8 CSV file ({error})") from None


def _read_jsonl(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(table.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{table} line {number}: not a JSON object")
        yield number, row


def _filled(row: dict[str, Any], column: str, where: str) -> str:
    value = row[column]
    if value is None or isinstance(value, float | dict | list) or not str(value).strip():
        raise DataError(f"{where}: {column} is {value!r}; accepted: a name or a whole number")
    return str(value)


def _inside(value: Any, where: str) -> PurePosixPath:
    path = PurePosixPath(str(value).replace("\\", "/"))
    if not isinstance(value, str) or not path.name or path.is_absolute() or ".." in path.parts:
        raise DataError(f"{where}: file_name {value!r} is not a path inside the folder")
    return path


def images_below(folder: Path, root: Path) -> tuple[list[Path], int]:
    """Image files anywhere below, sorted, and the count of other files. Folder links are followed, each real folder once."""
    images: list[Path] = []
    others, seen = 0, set()
    for here, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else sorted(name for name in folders if not _is_clutter(name))
        if real in seen:
            continue
        seen.add(real)
        paths = [Path(here, name) for name in names if not _is_clutter(name)]
        images += [path for path in paths if _is_image_name(path)]
        others += sum(not _is_image_name(path) for path in paths)
    return sorted(images, key=lambda path: _relative(path, root)), others


def _raise(error: OSError) -> None:
    raise error  # os.walk would pass over folders that it cannot read


def _visible(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if not _is_clutter(child.name))


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name in _CLUTTER


def _is_image_name(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_ENDINGS


def _relative(path: Path, root: Path) -> str:
    return printable(path.relative_to(root).as_posix())
