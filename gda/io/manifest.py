"""The manifest: a row per image as Parquet, with one fixed schema and no library metadata that would change its bytes."""

import hashlib
import io
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gda.errors import DataError
from gda.io.publish import write_bytes

MANIFEST_FILE = "manifest.parquet"
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
    arrays |= {name: pa.array(rows[name], from_pandas=True) for name in sorted(set(rows.columns) - set(columns))}
    table = pa.table(arrays).replace_schema_metadata(None)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(folder / MANIFEST_FILE, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def read_manifest(folder: Path, sha256: str) -> pd.DataFrame:
    """Read `manifest.parquet` after checking its bytes. Raises `DataError` when it is missing, damaged or lacks a column."""
    path = folder / MANIFEST_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(f"{path}: checksum differs from snapshot.json; the manifest was damaged or replaced")
    try:
        table = pq.read_table(pa.BufferReader(data))
    except pa.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None
    if missing := [name for name in COLUMNS if name not in table.column_names]:
        raise DataError(f"{path}: column {missing[0]!r} is missing")
    # Whole numbers stay such beside nulls: as floats, seeds would lose their last digits.
    return table.to_pandas(integer_object_nulls=True)


def _column(rows: pd.DataFrame, name: str, kind: pa.DataType) -> pa.Array:
    if name in rows.columns:
        return pa.array(rows[name], type=kind, from_pandas=True)
    if name in COLUMNS:
        raise ValueError(f"rows lack the column {name!r}")
    return pa.nulls(len(rows), kind)
