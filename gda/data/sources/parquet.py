"""Hugging Face data sets as parquet files: a column of encoded images with their bytes, one of labels."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gda.artifacts.fingerprint import digest_of
from gda.data.sources.file_splits import splits_of_files
from gda.data.sources.source import Columns, ImageSource, Slice, SourceRecord, path_key, printable, require_split_column_used
from gda.data.sources.splits import parse_split
from gda.data.sources.tables import filled
from gda.errors import DataError, UsageError
from gda.io.atomic import work_root
from gda.io.shards import sha256_of
from gda.runtime.disks import storage_errors

_LABEL = "label"
_MOST_BYTES = 4 << 30  # of a row group's images, uncompressed
_ROWS = 64  # at a time


def read_parquet(paths: Sequence[Path], columns: Columns, *, strict: bool, progress: bool) -> ImageSource:
    """List parquet files with image bytes; splits come from `columns.split` or the files' names (train-00000-of-00001.parquet).

    The file's Hugging Face features name whole-number labels. The encoded images are copied to a scratch folder, which is deleted with
    the source. Raises `DataError` for a file that cannot be read, `UsageError` for missing columns.
    """
    with storage_errors(work_root()):
        work_root().mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix="parquet-", dir=work_root())
    splits = [None] * len(paths) if columns.split else splits_of_files(paths, strict=strict)
    records: list[SourceRecord] = []
    values: list[dict[str, Any]] = []
    for number, (path, split) in enumerate(zip(paths, splits, strict=True)):
        for record, row in _records(path, columns, Path(scratch.name, f"{number:06d}")):
            records.append(record if columns.split else replace(record, split=split))
            values.append(row)
    if columns.split is None and values:
        common = set.intersection(*(set(row) for row in values))
        by_column = {name: [row[name] for row in values] for name in sorted(common)}
        require_split_column_used(by_column, [record.split for record in records], str(paths[0]))
    return ImageSource(
        records=records,
        class_names=sorted({record.class_name for record in records}),
        content_digest=digest_of([[path.name for path in paths], [sha256_of(path) for path in paths], columns.names]),
        description="parquet files",
        scratch=scratch,
    )


def _records(path: Path, columns: Columns, spool: Path) -> Iterator[tuple[SourceRecord, dict[str, Any]]]:
    try:
        with pq.ParquetFile(path) as file, storage_errors(spool), open(spool, "wb") as out:
            schema = file.schema_arrow
            image, label = _image_column(path, schema), _required(path, schema, columns.label or _LABEL)
            wanted = [image, label, *(name for name in schema.names if name not in (image, label) and _is_plain(schema.field(name).type))]
            for name in columns.names:
                _required(path, schema, name)
            names = _class_names(schema, label)
            _require_bounded(path, file)
            batches = file.iter_batches(batch_size=_ROWS, columns=wanted)
            for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
                data = _bytes_of(row.pop(image), f"{path.name} row {number}")
                yield _record(path, number, row, Slice(path=spool, offset=out.tell(), size=len(data)), columns, label, names), row
                out.write(data)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet ({str(error).splitlines()[0]})") from None


def _record(
    path: Path, number: int, row: dict[str, Any], payload: Slice, columns: Columns, label: str, names: Sequence[str]
) -> SourceRecord:
    where, value = f"{path.name} row {number}", row[label]
    if names and isinstance(value, int):
        if not 0 <= value < len(names):
            raise DataError(f"{where}: {label} is {value}; the file names {len(names)} classes, from 0")
        class_name = names[value]
    else:
        class_name = filled(row, label, where)
    name = printable(f"{path.parent.name}/{path.stem}/{number:08d}")
    return SourceRecord(
        name=name,
        key=path_key(name),
        class_name=class_name,
        payload=payload,
        split=parse_split(filled(row, columns.split, where), where) if columns.split else None,
        group=filled(row, columns.group, where) if columns.group else None,
    )


def _bytes_of(value: Any, where: str) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise DataError(f"{where}: holds no image bytes, only a path; write the images into the file, or give their folder")
    return data


def _is_plain(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)


def _image_column(path: Path, schema: pa.Schema) -> str:
    def holds(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" for field in kind.fields)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    found = [field.name for field in schema if holds(field.type)]
    if len(found) != 1:
        raise UsageError(
            f"{path}: has {len(found)} columns of image bytes among {', '.join(schema.names)}; accepted: one, as Hugging Face writes it"
        )
    return str(found[0])


def _required(path: Path, schema: pa.Schema, name: str) -> str:
    if name not in schema.names:
        hint = "; snapshot.label_column names another" if name == _LABEL else ""
        raise UsageError(f"{path}: no column {name!r}; it has {', '.join(schema.names)}{hint}")
    return name


def _class_names(schema: pa.Schema, label: str) -> list[str]:
    """Names of a ClassLabel, which `datasets` keeps in the schema's metadata; empty where there is none."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        return [str(name) for name in feature["names"]]
    except (KeyError, ValueError, TypeError):
        return []


def _require_bounded(path: Path, file: pq.ParquetFile) -> None:
    for group in range(file.metadata.num_row_groups):
        size = file.metadata.row_group(group).total_byte_size
        if size > _MOST_BYTES:
            raise DataError(f"{path}: row group {group} is {size} bytes unpacked; accepted: at most {_MOST_BYTES}, write smaller groups")
