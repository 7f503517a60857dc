"""Columns of a source's table that are recognised by their names."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gda.data.sources.source import Columns

_NAMES = {
    "label": ("label", "class", "class_name", "category", "target", "species", "diagnosis"),
    "group": ("group", "group_id", "patient", "patient_id", "subject", "subject_id", "video", "video_id", "scene", "individual_id"),
    "split": ("split", "splits", "subset", "partition", "phase"),
}
_TABLES = ("metadata.csv", "metadata.jsonl")


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """The columns by use (label, group, split), without a label that is called `label`, the default."""

    by_use: dict[str, str]

    @property
    def used(self) -> Columns:
        """As the source's reader takes them."""
        return Columns(label=self.by_use.get("label"), group=self.by_use.get("group"), split=self.by_use.get("split"))


def recognised_columns(source: str) -> Recognised:
    """The columns of the table of `source`: metadata.csv or metadata.jsonl of a folder, or a parquet file; none elsewhere."""
    names = _columns(source)
    found = {
        use: match for use, known in _NAMES.items() if (match := next((name for name in names if name.strip().lower() in known), None))
    }
    if found.get("label") == "label":
        del found["label"]
    return Recognised(by_use=found)


def _columns(source: str) -> Sequence[str]:
    path = Path(source)
    if not path.exists():
        return ()
    if path.is_file():
        return _of_parquet(path) if path.suffix == ".parquet" else ()
    for table in (path / name for name in _TABLES):
        if table.is_file():
            return _of_table(table)
    parquet = sorted(path.glob("*.parquet"))
    return _of_parquet(parquet[0]) if parquet else ()


def _of_table(table: Path) -> Sequence[str]:
    import csv

    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), []) if table.suffix == ".csv" else list(json.loads(file.readline() or "{}"))
    except (OSError, ValueError, csv.Error):
        return ()  # the reader names what is wrong with it


def _of_parquet(path: Path) -> Sequence[str]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        names: list[str] = pyarrow.parquet.read_schema(path).names
    except (OSError, pa.ArrowInvalid):
        return ()
    return names
