"""The manifest: one row per image as Parquet, with a fixed schema and without library metadata, which would change its bytes."""

import hashlib
import io
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gda.errors import DataError
from gda.io.atomic import write_bytes
from gda.runtime.reading import parser, read_bytes

MANIFEST_FILE = "manifest.parquet"
LARGEST_MANIFEST = 1 << 33
# Two checksums of every image cannot be compressed: no real manifest grows even tenfold.
_ALWAYS_FINE, _MOST_EXPANSION = 1 << 26, 200
COLUMNS: dict[str, pa.DataType] = {
    "key": pa.string(),
    "split": pa.string(),
    "label": pa.int64(),
    "class": pa.string(),
    "sha256": pa.string(),
    "pixel_sha256": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "shard": pa.string(),
    "offset": pa.int64(),
}
# The group of a real image (a patient, a video): absent if the source has no groups, null for images without a group.
GROUP = "group"
_OPTIONAL_COLUMNS: dict[str, pa.DataType] = {GROUP: pa.string()}
SYNTHETIC_COLUMNS: dict[str, pa.DataType] = {
    "seed": pa.int64(),
    "prompt": pa.string(),
    "negative_prompt": pa.string(),
    "guidance_scale": pa.float64(),
    "num_inference_steps": pa.int32(),
    "scheduler": pa.string(),
    "source_image": pa.string(),
    "generator_digest": pa.string(),
    "strength": pa.float64(),
    "source_class": pa.string(),
}


def write_manifest(folder: Path, rows: pd.DataFrame, *, synthetic: bool) -> str:
    """Write `manifest.parquet` and return its sha256; columns beyond the schema follow in alphabetical order, absent ones are null."""
    columns = {**COLUMNS, **SYNTHETIC_COLUMNS} if synthetic else dict(COLUMNS)
    arrays = {name: _column(rows, name, kind) for name, kind in columns.items()}
    further = sorted(set(rows.columns) - set(columns))
    arrays |= {name: pa.array(rows[name], type=_OPTIONAL_COLUMNS.get(name), from_pandas=True) for name in further}
    table = pa.table(arrays).replace_schema_metadata(None)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(folder / MANIFEST_FILE, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def read_manifest(folder: Path, sha256: str) -> pd.DataFrame:
    """Read `manifest.parquet` after checking its bytes.

    Raises `DataError` when it is missing, damaged, lacks a column, has one of another type or with nulls, or expands beyond measure.
    """
    path = folder / MANIFEST_FILE
    data = read_bytes(path, limit=LARGEST_MANIFEST)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(f"{path}: checksum differs from snapshot.json; the manifest was damaged or replaced")
    table = _read_table(data, path)
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise DataError(f"{path}: column {missing[0]!r} is missing")
    if empty := [name for name in COLUMNS if table.column(name).null_count]:
        raise DataError(f"{path}: column {empty[0]!r} has empty fields")
    with parser(path, "a manifest"):
        # Whole numbers stay whole where a column has nulls: as floats, seeds would lose their last digits.
        return table.to_pandas(integer_object_nulls=True)


def _read_table(data: bytes, path: Path) -> pa.Table:
    """The whole table; texts are decoded after their total length is checked, since a few bytes can repeat a long text a million times."""
    expected = COLUMNS | SYNTHETIC_COLUMNS | _OPTIONAL_COLUMNS
    with parser(path, "a Parquet file with the columns of a manifest"):
        file = pq.ParquetFile(pa.BufferReader(data))
        texts = [field.name for field in file.schema_arrow if _is_text(field.type)]
        _require_measure(file.metadata.num_rows, len(data))
        table = pq.read_table(pa.BufferReader(data), read_dictionary=texts)
        table.validate(full=True)
        _require_measure(sum(_text_bytes(table.column(name)) for name in texts), len(data))
        kinds = {field.name: pa.string() if field.name in texts else field.type for field in table.schema}
        kinds |= {name: expected[name] for name in kinds.keys() & expected.keys()}
        return table.cast(pa.schema(list(kinds.items())))


def _is_text(kind: pa.DataType) -> bool:
    held = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(is_kind(held) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary))


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Bytes of all texts of a dictionary column once decoded."""
    lengths = (pc.sum(pc.take(pc.binary_length(chunk.dictionary), chunk.indices)).as_py() for chunk in column.chunks)
    return sum(length or 0 for length in lengths)


def _require_measure(amount: int, size: int) -> None:
    if amount > max(_ALWAYS_FINE, size * _MOST_EXPANSION):
        raise ValueError(f"{size} bytes that expand to {amount}")


def _column(rows: pd.DataFrame, name: str, kind: pa.DataType) -> pa.Array:
    if name in rows.columns:
        return pa.array(rows[name], type=kind, from_pandas=True)
    if name in COLUMNS:
        raise ValueError(f"rows lack the column {name!r}")
    return pa.nulls(len(rows), kind)
