"""Sources of images: the common form that every kind of source is turned into."""

import hashlib
import re
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from gda.artifacts.fingerprint import digest_of
from gda.data.images.codecs import Rgb
from gda.data.sources.splits import split_words
from gda.errors import ConfigError, DataError, UsageError
from gda.io.shards import sha256_of
from gda.runtime.parallel import run_parallel
from gda.runtime.progress import Bar, tick

ACCEPTED_SOURCES = "an image folder, *.tar, *.parquet, *.npz or a folder of them, demo://mnist, demo://digits"
_HASH_CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Bytes of a file from `offset`; a `size` of None reaches to its end."""

    path: Path
    offset: int = 0
    size: int | None = None

    def read(self) -> bytes:
        """The bytes. Raises `OSError`."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read() if self.size is None else file.read(self.size)


@dataclass(frozen=True, kw_only=True)
class SourceRecord:
    """An image of a source: messages and the key use `name` (relative, stable); `payload` is encoded bytes or pixels."""

    name: str
    key: str
    class_name: str
    payload: Slice | Rgb
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """A listed source. `content_digest` is the digest of its content; `rejected` are (name, reason) of the listing.

    `left_out` counts other files by the reason why they are not read. `scratch` is a folder with payloads, deleted with the source.
    """

    records: Sequence[SourceRecord]
    class_names: Sequence[str]
    content_digest: str
    description: str
    licence: str = "unknown"
    rejected: Sequence[tuple[str, str]] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    scratch: "tempfile.TemporaryDirectory[str] | None" = None


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns (of metadata.csv, metadata.jsonl, a parquet or a tar's .json) that hold a record's split, group and label.

    None where unused; the label is then in `label`. If `lenient`, a source without columns ignores the label's column.
    """

    split: str | None = None
    group: str | None = None
    label: str | None = None
    lenient: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The configured columns."""
        return tuple(name for name in (self.split, self.group, self.label) if name is not None)

    def refuse(self, source: object) -> None:
        """Raise `UsageError` where columns are configured; `source` states why there are none."""
        fields = {"split_column": self.split, "group_column": self.group, "label_column": None if self.lenient else self.label}
        for field_name, column in fields.items():
            if column is not None:
                raise UsageError(f"snapshot.{field_name}: column {column!r}: {source}")


# Usual names of split columns; if such a column were ignored, its test images would be trained on.
_SPLIT_COLUMNS = ("split", "splits", "subset", "partition", "set", "phase", "usage")


def require_split_column_used(values: Mapping[str, Sequence[object]], splits: Sequence[str | None], where: str) -> None:
    """Raise `ConfigError` when an unused column holds train, val and test, and differs from `splits`, as read for the same records.

    `values` holds the values of every column by its name.
    """
    for column, found in values.items():
        if column.strip().lower() not in _SPLIT_COLUMNS or not found:
            continue
        read = [split_words(str(value)) for value in found]
        recorded = [split for split, rest in read if split and not rest]
        if len(recorded) == len(found) and set(recorded) != {"train"} and recorded != list(splits):
            counts = ", ".join(f"{split} {count}" for split, count in sorted(Counter(recorded).items()))
            raise ConfigError(
                f"{where}: column {column!r} holds {counts}, and nothing uses it: set snapshot.split_column to {column!r}, "
                "or rename the column if it is no split"
            )


def path_key(name: str) -> str:
    """A shard key for a relative path: its readable stem and 64 bits of hash; depends on nothing but the path."""
    stable = unicodedata.normalize("NFC", name)
    stem = re.sub(r"[^A-Za-z0-9]+", "-", PurePosixPath(stable).stem).strip("-")[:40] or "image"
    return f"{stem}-{hashlib.sha256(stable.encode()).hexdigest()[:16]}"


def printable(name: str) -> str:
    """A file name as one line of valid unicode: bytes that are not UTF-8 and control characters are written as escapes."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\x{ord(match[0]):02x}", name.encode("utf-8", "backslashreplace").decode())


def digest_files(records: Sequence[SourceRecord], *, progress: bool) -> str:
    """Digest of every record's name, class, split, group and file content. Unreadable files count as such."""
    chunks = [records[start : start + _HASH_CHUNK] for start in range(0, len(records), _HASH_CHUNK)]
    with Bar(len(records), "hash source", unit="image", shown=progress):
        parts = run_parallel(_hash_chunk, chunks)
    return digest_of(sorted(line for part in parts for line in part))


def _hash_chunk(records: Sequence[SourceRecord]) -> list[list[str]]:
    lines = []
    for record in records:
        assert isinstance(record.payload, Slice)
        try:
            content = sha256_of(record.payload.path)
        except DataError:
            content = "unreadable"
        lines.append([record.name, record.class_name, record.split or "", record.group or "", content])
    tick(len(records))
    return lines
