"""Where images come from: what every kind of source is turned into, and which kind a command-line argument means."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from gda.data.images import Rgb
from gda.errors import DataError
from gda.io.shards import sha256_of
from gda.parallel import Bar, run_parallel, tick
from gda.recipe import digest_of

ACCEPTED = "an image folder, *.tar, *.npz, demo://mnist, demo://digits"
# Files with these endings are taken for images; whether they are is decided by their content.
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
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
    """An image of a source: `name` (relative, stable) is what messages and the key go by; `payload` is encoded bytes or pixels."""

    name: str
    key: str
    class_name: str
    payload: Slice | Rgb
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A listed source. `fingerprint` digests its content; `rejected` are (name, reason) of the listing; `ignored` counts other files."""

    records: Sequence[SourceRecord]
    class_names: Sequence[str]
    fingerprint: str
    description: str
    licence: str = "unknown"
    rejected: Sequence[tuple[str, str]] = ()
    ignored: int = 0


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns (of metadata.csv, metadata.jsonl or a tar's .json) that hold a record's split and group; None where unused."""

    split: str | None = None
    group: str | None = None
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(name for name in (self.split, self.group) if name is not None))


def path_key(name: str) -> str:
    """A shard key for a relative path: its readable stem and 64 bits of hash; depends on nothing but the path."""
    stable = unicodedata.normalize("NFC", name)
    stem = re.sub(r"[^A-Za-z0-9]+", "-", PurePosixPath(stable).stem).strip("-")[:40] or "image"
    return f"{stem}-{hashlib.sha256(stable.encode()).hexdigest()[:16]}"


def printable(name: str) -> str:
    """A file name as one line of valid unicode: bytes that are not UTF-8 and control characters are written as escapes."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\x{ord(match[0]):02x}", name.encode("utf-8", "backslashreplace").decode())


def fingerprint_files(records: Sequence[SourceRecord], *, progress: bool) -> str:
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
