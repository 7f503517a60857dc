"""WebDataset tar shards: equal records give equal bytes; shards are read as a stream and never extracted."""

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from gda.artifacts.fingerprint import canonical_json
from gda.errors import DataError, UsageError
from gda.io.atomic import commit_new, temporary_name
from gda.runtime.disks import storage_errors

TAR_BLOCK = 512
IMAGE_EXTENSIONS = ("png", "jpg", "webp")
# The end mark is exactly two zero blocks (not padded to 10,240 bytes), so that a cut at any 512 bytes loses some of it.
_END = bytes(2 * TAR_BLOCK)
_ZERO = bytes(TAR_BLOCK)
_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}\Z")
_OF_TEST = re.compile(r"test-[0-9]{6}\.tar\Z")  # the names in a snapshot, whose index ensures that no other shard holds test images
_REGULAR = (b"0", b"\0")
_EXTENDED = (b"x", b"g", b"L")  # headers of other tools that describe the next member
_LONGEST_EXTENDED_HEADER = 1 << 20  # bytes
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,8}) ([^=\n]+)=")
# A header as tarfile writes it with its defaults (mode 644, mtime 0, uid and gid 0, no owner names), without name, size and checksum.
_TEMPLATE = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
_MODE, _MTIME, _REST = _TEMPLATE[100:124], _TEMPLATE[135:148], _TEMPLATE[156:]
_OWN_HEADER = re.compile(rb"([A-Za-z0-9_-]{1,80}\.[a-z]{3,4})\0+%b([0-7]{11})" % re.escape(_MODE))
_SUM = sum(_MODE) + sum(_MTIME) + 8 * ord(" ") + sum(_REST)


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One image with its metadata: `<key>.<extension>` (encoded bytes), `<key>.cls` (label), `<key>.json` (meta)."""

    key: str
    extension: str
    image: bytes
    label: int
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """What a written shard holds; `offsets` are byte offsets of each record's first header."""

    name: str
    count: int
    sha256: str
    offsets: list[int]


class Member(NamedTuple):
    """One regular file inside a tar: its name, the byte offset of its header, its content."""

    name: str
    offset: int
    data: bytes


class _Override(NamedTuple):
    """Name and size in bytes of the next member from an extended header, None where it has none."""

    name: str | None = None
    size: int | None = None


def write_shard(path: Path, records: Iterable[ShardRecord]) -> ShardIndex:
    """Write records in the order given (mtime, uid and gid 0), fsync, then take the name `path`, create-only.

    Where `path` exists already its bytes must be the same. Raises `DataError` on a bad or repeated key, on no records at all and
    when `path` holds other bytes; `MissingError` when the disk is full, read-only or failing.
    """
    temporary = temporary_name(path)
    with storage_errors(path):
        try:
            with open(temporary, "xb", buffering=1 << 20) as file:
                index = _write_records(file, path.name, records)
                file.flush()
                os.fsync(file.fileno())
            if not commit_new(temporary, path) and sha256_of(path) != index.sha256:
                raise DataError(f"{path}: exists already with other content; remove it, and it will be written again")
        finally:
            temporary.unlink(missing_ok=True)
    return index


def link_shard(source: Path, target: Path) -> None:
    """Give a shard another name without copying it, where the file system has hard links. Raises `MissingError` as `write_shard` does."""
    with storage_errors(target):
        try:
            os.link(source.resolve(), target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, target)


def read_shard(path: Path, *, of_test: bool = False) -> Iterator[ShardRecord]:
    """The records of a shard in order. Raises `DataError` naming shard and record for anything `write_shard` would not write.

    A snapshot's test shard is read only with `of_test`, by callers that have recorded it in the ledger; else it is a `UsageError`.
    """
    for _, record in iterate_shard(path, of_test=of_test):
        yield record


def iterate_shard(path: Path, *, of_test: bool = False) -> Iterator[tuple[int, ShardRecord]]:
    """As `read_shard`, with the byte offset of each record's first header."""
    if not of_test:
        _require_not_test(path)
    with _open(path) as file:
        members = read_members(file, path.name, foreign=False)
        for first in members:
            yield first.offset, _assemble(path.name, [first, *islice(members, 2)])


def read_record(path: Path, offset: int) -> ShardRecord:
    """The record that starts at `offset`, without reading the rest; for any shard except test shards. Raises as `read_shard` does."""
    _require_not_test(path)
    with _open(path) as file:
        file.seek(offset)
        return _assemble(path.name, list(islice(read_members(file, path.name, foreign=False), 3)))


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes. Raises `DataError` when it cannot be read."""
    with _open(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_members(file: BinaryIO, shard: str, *, foreign: bool) -> Iterator[Member]:
    """Regular members from the current position of `file` to the end mark.

    Links, devices, absolute names, `..` and damaged or truncated content raise `DataError`. `foreign` tars (other tools')
    may hold folders and long names (PAX, GNU); in ours they are errors, and so is padding that is not zero.
    """
    override = _Override()
    offset, end = file.tell(), _length(file)
    while True:
        header = file.read(TAR_BLOCK)
        if header == _ZERO:
            return _require_end(file, shard)
        own = None if foreign else _parse_own(header)
        name, size, kind = own or _parse_header(header, shard, offset)
        size = size if override.size is None or kind in _EXTENDED else override.size
        data = _read_data(file, shard, name, size, end - offset - TAR_BLOCK, strict=not foreign)
        start, offset = offset, offset + TAR_BLOCK + size + -size % TAR_BLOCK
        if own is not None:
            yield Member(name, start, data)
            continue
        if foreign and kind in _EXTENDED:
            override = _long_name(shard, start, kind, data, override)
            continue
        name, override = override.name or name, _Override()
        if kind in _REGULAR and not name.endswith("/"):
            yield Member(_safe_name(name, shard, foreign), start, data)
        elif not (foreign and (kind == b"5" or name.endswith("/"))):
            raise DataError(f"{shard}: member {name!r} is a link or a special file; only regular files are accepted")


def _require_not_test(path: Path) -> None:
    if _OF_TEST.match(path.name):
        raise UsageError(f"{path}: is of a test split; only open_test reads its images")


def _write_records(file: BinaryIO, name: str, records: Iterable[ShardRecord]) -> ShardIndex:
    hasher = hashlib.sha256()
    seen: set[str] = set()
    offsets, position = [], 0
    for record in records:
        if record.key in seen:
            raise DataError(f"{name}: key {record.key!r} occurs twice")
        seen.add(record.key)
        block = _pack(name, record)
        file.write(block)
        hasher.update(block)
        offsets.append(position)
        position += len(block)
    if not offsets:
        raise DataError(f"{name}: a shard needs at least one record")
    file.write(_END)
    hasher.update(_END)
    return ShardIndex(name=name, count=len(offsets), sha256=hasher.hexdigest(), offsets=offsets)


def _pack(shard: str, record: ShardRecord) -> bytes:
    if not _KEY.match(record.key):
        raise DataError(f"{shard}: key {record.key!r} is not 1 to 80 of letters, digits, '_' and '-'")
    if record.extension not in IMAGE_EXTENSIONS:
        raise DataError(f"{shard}: {record.key}: extension {record.extension!r} is not one of {', '.join(IMAGE_EXTENSIONS)}")
    parts = ((record.extension, record.image), ("cls", b"%d" % record.label), ("json", canonical_json(record.meta)))
    return b"".join(_pack_member(f"{record.key}.{extension}", data) for extension, data in parts)


def _pack_member(name: str, data: bytes) -> bytes:
    return b"%b%b%b" % (_header(name.encode("ascii"), len(data)), data, bytes(-len(data) % TAR_BLOCK))


def _header(name: bytes, size: int) -> bytes:
    """The USTAR header of a plain file: `name` of at most 100 bytes, `size` in bytes; `tarfile` gives the same, ten times slower."""
    digits = b"%011o" % size
    assert len(digits) == 11  # 8 GiB
    return b"%b%b%b%b%06o\0 %b" % (name.ljust(100, b"\0"), _MODE, digits, _MTIME, _SUM + sum(name) + sum(digits), _REST)


def _parse_own(header: bytes) -> tuple[str, int, bytes] | None:
    """As `_parse_header`, four times faster, for headers exactly as `write_shard` writes them; None where the full parser must decide."""
    found = _OWN_HEADER.match(header)
    if found is None:
        return None
    name, size = found[1], int(found[2], 8)
    return (name.decode("ascii"), size, b"0") if header == _header(name, size) else None


def _assemble(shard: str, members: list[Member]) -> ShardRecord:
    if not members:
        raise DataError(f"{shard}: no record at this offset")
    key, _, extension = members[0].name.partition(".")
    found = [member.name for member in members]
    if extension not in IMAGE_EXTENSIONS or found[1:] != [f"{key}.cls", f"{key}.json"]:
        raise DataError(f"{shard}: record {key!r} is not an image, .cls and .json in this order (found {', '.join(found)})")
    image, label, meta = members
    return ShardRecord(key=key, extension=extension, image=image.data, label=_parse_label(shard, label), meta=_parse_meta(shard, meta))


def _parse_label(shard: str, member: Member) -> int:
    try:
        return int(member.data)
    except ValueError:
        raise DataError(f"{shard}: {member.name} is not a whole number") from None


def _parse_meta(shard: str, member: Member) -> dict[str, Any]:
    try:
        meta = json.loads(member.data)
    except ValueError:
        meta = None
    if not isinstance(meta, dict):
        raise DataError(f"{shard}: {member.name} is not a JSON object")
    return meta


def _parse_header(header: bytes, shard: str, offset: int) -> tuple[str, int, bytes]:
    """Name, size in bytes and type flag; the header's own checksum is verified first."""
    if len(header) < TAR_BLOCK:
        raise DataError(f"{shard}: truncated at byte {offset + len(header)}: the end mark is missing")
    try:
        if sum(header) - sum(header[148:156]) + 8 * ord(" ") != _number(header[148:156]):
            raise ValueError
        name = _text(header[:100])
        if header[257:263] == b"ustar\0" and header[345] != 0:
            name = f"{_text(header[345:500])}/{name}"
        return name, _number(header[124:136]), header[156:157]
    except ValueError:
        raise DataError(f"{shard}: damaged header at byte {offset}") from None


def _number(field_bytes: bytes) -> int:
    if field_bytes[0] == 0x80:  # GNU's form of sizes that do not fit in octal
        return int.from_bytes(field_bytes[1:], "big")
    digits = field_bytes.split(b"\0", 1)[0].strip() or b"0"
    if not digits.isdigit():  # int() would take signs and underscores
        raise ValueError(field_bytes)
    return int(digits, 8)


def _text(field_bytes: bytes) -> str:
    return field_bytes.split(b"\0", 1)[0].decode("utf-8")


def _read_data(file: BinaryIO, shard: str, name: str, size: int, left: int, *, strict: bool) -> bytes:
    """Content of a member, `left` bytes before the end of the file."""
    padding = -size % TAR_BLOCK
    if size + padding > left:  # checked before reading, since a read of an absurd size would allocate its memory first
        raise DataError(f"{shard}: {name!r}: truncated ({left} of {size + padding} bytes)")
    data = file.read(size + padding)
    if len(data) < size + padding:
        raise DataError(f"{shard}: {name!r}: truncated while it was read")
    if strict and data.count(0, size) != padding:
        raise DataError(f"{shard}: {name!r}: damaged padding")
    return data[:size]


def _require_end(file: BinaryIO, shard: str) -> None:
    if file.read(TAR_BLOCK) != _ZERO:
        raise DataError(f"{shard}: truncated or damaged: the end mark is incomplete")
    while chunk := file.read(1 << 20):
        if any(chunk):
            raise DataError(f"{shard}: content after the end mark")


def _long_name(shard: str, offset: int, kind: bytes, data: bytes, before: _Override) -> _Override:
    """Name and size of the next member from an extended header (GNU's long name, PAX). Raises `DataError` for a malformed header."""
    try:
        if len(data) > _LONGEST_EXTENDED_HEADER:
            raise ValueError(f"{len(data)} bytes long")
        if kind == b"L":
            return _Override(_text(data), before.size)
        return before if kind == b"g" else _pax(data, before)
    except ValueError as error:
        raise DataError(f"{shard}: damaged extended header at byte {offset} ({error})") from None


def _pax(data: bytes, before: _Override) -> _Override:
    """Records "LENGTH KEYWORD=VALUE\\n", each of them LENGTH bytes long. Raises `ValueError`."""
    name, size, start = before.name, before.size, 0
    while start < len(data):
        found = _PAX_RECORD.match(data, start)
        end = start + int(found[1]) if found else 0
        if found is None or not found.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise ValueError(f"no PAX record at byte {start} of it")
        keyword, value = found[2], data[found.end() : end - 1]
        if keyword.startswith(b"GNU.sparse."):
            raise ValueError("a sparse file; write the tar without --sparse")
        if keyword == b"path":
            name = value.decode("utf-8")
        elif keyword == b"size":
            if not value.isdigit() or len(value) > 20:
                raise ValueError(f"size {value[:30]!r}")
            size = int(value)
        start = end
    return _Override(name, size)


def _safe_name(name: str, shard: str, foreign: bool) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.name or (not foreign and len(path.parts) != 1):
        raise DataError(f"{shard}: member name {name!r} leaves the archive; only plain relative names are accepted")
    return str(path)


def _length(file: BinaryIO) -> int:
    position = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(position)
    return end


def _open(path: Path) -> io.BufferedReader:
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
