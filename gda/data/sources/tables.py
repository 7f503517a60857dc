"""The Hugging Face imagefolder: metadata.csv or metadata.jsonl with one row per image, above all images or in each split folder."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from gda.data.images.listing import Folder
from gda.data.sources.source import Columns, Slice, SourceRecord, path_key, printable, require_split_column_used
from gda.data.sources.splits import parse_split, splits_of
from gda.errors import DataError, UsageError

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
_UNREAD = ("metadata.parquet",)
_LABEL = "label"


def metadata_files(root: Folder) -> list[Path]:
    """The metadata files below `root`, empty without any. Raises `DataError` where they do not cover every image exactly once."""
    found: list[Path] = []
    for folder in root.walk():
        here = [path for path in folder.others if path.name in (*METADATA_FILES, *_UNREAD)]
        if len(here) > 1:
            raise DataError(f"{folder.path}: holds {' and '.join(path.name for path in here)}; keep one of them")
        if here and here[0].name in _UNREAD:
            raise DataError(f"{here[0]}: is not read; write it as metadata.csv, or set snapshot.layout to take labels from folders")
        found += here
    covered = [table.parent for table in found]
    for path in root.all_images() if found else []:
        above = [folder for folder in covered if path.is_relative_to(folder)]
        if len(above) != 1:
            what = "is below no metadata file" if not above else "is below two metadata files"
            raise DataError(
                f"{path}: {what}, while {found[0]} is there: give one above all images or one in each split folder, "
                "or set snapshot.layout to take labels from folders"
            )
    return found


def read_tables(root: Path, tables: Sequence[Path], columns: Columns) -> tuple[list[SourceRecord], list[tuple[str, str]], set[str]]:
    """One record per row, (name, reason) of missing files, and the classes of all rows.

    Splits are those of `columns.split`, else those of the files' folders. Raises `DataError` and `UsageError` with the line.
    """
    records: list[SourceRecord] = []
    rejected: list[tuple[str, str]] = []
    rows: list[dict[str, Any]] = []
    label = columns.label or _LABEL
    for table in tables:
        for where, row in _read_table(table, (*columns.names, "file_name", label)):
            path = table.parent / _inside(row["file_name"], where)
            name = printable(path.relative_to(root).as_posix())
            if not path.is_file():
                rejected.append((name, f"not found, though {where} lists it"))
            record = SourceRecord(
                name=name,
                key=path_key(name),
                class_name=filled(row, label, where),
                payload=Slice(path=path),
                split=None if columns.split is None else parse_split(filled(row, columns.split, where), where),
                group=None if columns.group is None else filled(row, columns.group, where),
            )
            records.append(record)
            rows.append(row)
    _require_listed_once(root, records)
    if columns.split is None:
        records = _with_splits_of_folders(root, records)
        common = set.intersection(*(set(row) for row in rows)) if rows else set()
        values = {str(name): [row[name] for row in rows] for name in sorted(map(str, common))}
        require_split_column_used(values, [record.split for record in records], str(tables[0]))
    missing = {name for name, _ in rejected}
    return [record for record in records if record.name not in missing], rejected, {record.class_name for record in records}


def filled(row: dict[str, Any], column: str, where: str) -> str:
    """A row's name or whole number in `column`, as text. Raises `DataError` for anything else."""
    value = row[column]
    if value is None or isinstance(value, float | dict | list | bytes) or not str(value).strip():
        raise DataError(f"{where}: {column} is {value!r}; accepted: a name or a whole number")
    return str(value)


def _with_splits_of_folders(root: Path, records: Sequence[SourceRecord]) -> list[SourceRecord]:
    """The records with the split in the name of a folder in their path; unchanged where no folder is named as a split."""
    folders = [PurePosixPath(record.name).parts[:-1] for record in records]
    depth = max((len(parts) for parts in folders), default=0)
    levels = [sorted({parts[level] for parts in folders if len(parts) > level}) for level in range(depth)]
    meaning = [dict(zip(names, splits_of(names), strict=True)) for names in levels]
    found: list[set[str]] = []
    for record, parts in zip(records, folders, strict=True):
        read = [meaning[level][part] for level, part in enumerate(parts) if part != record.class_name]
        found.append({split for split in read if split is not None})
    if not any(found):
        return list(records)
    for record, splits in zip(records, found, strict=True):
        if len(splits) != 1:
            what = "is in no folder named as a split" if not splits else f"is in folders named as {' and '.join(sorted(splits))}"
            raise DataError(
                f"{root}: {record.name} {what}, while others are in folders of one split; "
                "set snapshot.split_column to a column with the split of each image, or move the file"
            )
    return [replace_split(record, splits.pop()) for record, splits in zip(records, found, strict=True)]


def replace_split(record: SourceRecord, split: str | None) -> SourceRecord:
    """The record with another split."""
    return SourceRecord(
        name=record.name, key=record.key, class_name=record.class_name, payload=record.payload, split=split, group=record.group
    )


def _require_listed_once(root: Path, records: Sequence[SourceRecord]) -> None:
    labels: dict[str, str] = {}
    repeated = 0
    for record in records:
        first = labels.setdefault(record.name, record.class_name)
        if first != record.class_name:
            raise DataError(f"{root}: {record.name} has two labels in the metadata, {first!r} and {record.class_name!r}; keep one row")
        repeated += 1
    if len(labels) < repeated:
        raise DataError(f"{root}: {repeated - len(labels)} files are listed more than once in the metadata")


def _read_table(table: Path, required: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows, each with its place ("metadata.csv line 7"); all have the required columns."""
    rows = _read_csv(table) if table.suffix == ".csv" else _read_jsonl(table)
    for line, row in rows:
        for name in required:
            if name not in row:
                hint = "; snapshot.label_column names another" if name == _LABEL else ""
                raise UsageError(f"{table} line {line}: no column {name!r}; it has {', '.join(map(str, row))}{hint}")
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


def _inside(value: Any, where: str) -> PurePosixPath:
    path = PurePosixPath(str(value).replace("\\", "/"))
    if not isinstance(value, str) or not path.name or path.is_absolute() or ".." in path.parts:
        raise DataError(f"{where}: file_name {value!r} is not a path inside the folder")
    return path
