"""Sources that are archives: WebDataset tars and the `.npz` that ADM, DiT and their evaluators exchange."""

import itertools
import json
import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gda.artifacts.fingerprint import digest_of
from gda.data.images.listing import HEAD, IMAGE_ENDINGS, image_format
from gda.data.sources.file_splits import splits_of_files
from gda.data.sources.source import Columns, ImageSource, Slice, SourceRecord, path_key, printable, require_split_column_used
from gda.data.sources.splits import parse_split
from gda.errors import DataError, UsageError
from gda.io.shards import TAR_BLOCK, Member, read_members, sha256_of
from gda.runtime.parallel import run_parallel
from gda.runtime.progress import Bar, tick
from gda.runtime.reading import parser, read_text, whole_number

_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)\Z")  # WebDataset's rule: the key ends at the first dot of the last part
_LONGEST = 200  # characters of a field
_NPZ = "an .npz of plain arrays"
_NPZ_FREE, _NPZ_GROWTH = 256 << 20, 50  # bytes always accepted for an array, and the largest accepted ratio of decompression
_CLASS_NAMES = "classnames.txt"
_ARRAYS = {"arr_0": "the images", "arr_1": "their labels, which training and evaluating classifiers requires"}


@dataclass(frozen=True, kw_only=True)
class _Tar:
    path: Path
    columns: Columns
    split: str | None


@dataclass(frozen=True, kw_only=True)
class _Listing:
    sha256: str
    records: list[SourceRecord]
    fields: list[dict[str, str]]  # short texts and numbers of each record's .json
    rejected: list[tuple[str, str]]


def read_tars(paths: Sequence[Path], columns: Columns, *, strict: bool, progress: bool) -> ImageSource:
    """List WebDataset tars; the class is in `.cls` (a number or a name), in a field of `.json`, or in the member `.{columns.label}`.

    A `classnames.txt` next to the tars, if present, names class numbers by line. Splits come from `columns.split` or the tars' names, see
    `gda.data.sources.file_splits`. Raises `DataError` for a missing, truncated or unsafe tar.
    """
    splits = [None] * len(paths) if columns.split else splits_of_files(paths, strict=strict)
    tars = [_Tar(path=path, columns=columns, split=split) for path, split in zip(paths, splits, strict=True)]
    with Bar(len(tars), "list tars", unit="tar", shown=progress):
        listings = run_parallel(_list_tar, tars)
    names = _class_names(paths[0].parent)
    records = [_named(record, names) for listing in listings for record in listing.records]
    if columns.split is None:
        rows = [fields for listing in listings for fields in listing.fields]
        common = set.intersection(*(set(fields) for fields in rows)) if rows else set()
        values = {name: [fields[name] for fields in rows] for name in sorted(common)}
        require_split_column_used(values, [record.split for record in records], str(paths[0]))
    return ImageSource(
        records=records,
        class_names=sorted({record.class_name for record in records}),
        content_digest=digest_of([[path.name for path in paths], [listing.sha256 for listing in listings], columns.names, names]),
        description="WebDataset tars",
        rejected=[item for listing in listings for item in listing.rejected],
    )


def read_npz_source(path: Path, columns: Columns) -> ImageSource:
    """Images `arr_0` (uint8 [n, height, width, 3]) and labels `arr_1` (whole numbers [n]); nothing is unpickled.

    A `classnames.txt` next to the file, if present, names the classes; else they are named by number. Arrays carry no marks, so synthetic
    images in an .npz are not recognised. Raises `DataError` naming the array.
    """
    columns.refuse("an .npz has no columns")
    images, labels = _load_arrays(path)
    names = _class_names(path.parent)
    records = []
    for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        name = f"{index:08d}"
        records.append(_named(SourceRecord(name=name, key=f"npz-{name}", class_name=str(label), payload=image), names))
    return ImageSource(
        records=records,
        class_names=sorted({record.class_name for record in records}),
        content_digest=digest_of([sha256_of(path), names]),
        description=".npz arrays",
    )


def _list_tar(tar: _Tar) -> _Listing:
    records, kept_fields, rejected = [], [], []
    for key, members in _groups(tar.path):
        name = printable(f"{tar.path.stem}/{key}")
        try:
            fields = _json_fields(members.get("json"), name)
            records.append(_tar_record(tar, name, members, fields))
            kept_fields.append(fields)
        except DataError as error:
            rejected.append((name, str(error)))
    tick()
    return _Listing(sha256=sha256_of(tar.path), records=records, fields=kept_fields, rejected=rejected)


def _groups(path: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Consecutive members with the same key, by extension; one group is in memory at a time."""
    with open(path, "rb") as file:
        members = ((_MEMBER.match(member.name), member) for member in read_members(file, path.name, foreign=True))
        for key, group in itertools.groupby(members, key=lambda pair: pair[0].group(1) if pair[0] else pair[1].name):
            yield key, {match.group(2).lower() if match else "": member for match, member in group}


def _tar_record(tar: _Tar, name: str, members: dict[str, Member], fields: dict[str, str]) -> SourceRecord:
    found = [extension for extension, member in members.items() if _is_image(extension, member)]
    if len(found) != 1:
        raise DataError(f"not one image but {len(found)}, in {', '.join(sorted(members)) or 'nothing'}")
    image = members[found[0]]
    columns = tar.columns
    return SourceRecord(
        name=name,
        key=path_key(name),
        class_name=_label(members, fields, columns.label),
        payload=Slice(path=tar.path, offset=image.offset + TAR_BLOCK, size=len(image.data)),
        split=tar.split if columns.split is None else parse_split(_field(fields, columns.split), name),
        group=None if columns.group is None else _field(fields, columns.group),
    )


def _is_image(extension: str, member: Member) -> bool:
    return f".{extension}" in IMAGE_ENDINGS or image_format(member.data[:HEAD]) is not None


def _label(members: dict[str, Member], fields: dict[str, str], column: str | None) -> str:
    """The class: `.cls`, else the field `label` of the `.json`; with a `column`, that field of it or the member with that ending."""
    if column is not None:
        return _text(members[column].data, column) if column in members and column not in fields else _field(fields, column)
    if "cls" in members:
        return _text(members["cls"].data, "cls")
    if "label" in fields:
        return fields["label"]
    has = f"; its .json holds {', '.join(sorted(fields))}" if fields else ""
    raise DataError(
        f"an image without a .cls, in {', '.join(sorted(members))}{has}: set snapshot.label_column to a field of it or to an ending"
    )


def _field(fields: dict[str, str], column: str) -> str:
    if column not in fields:
        raise DataError(f"its .json does not hold {column} as a name or a whole number")
    return fields[column]


def _json_fields(member: Member | None, name: str) -> dict[str, str]:
    """Names and whole numbers of a record's `.json`, as text; empty without one."""
    if member is None:
        return {}
    try:
        content = json.loads(member.data)
    except (ValueError, RecursionError):
        raise DataError(f"{name}.json is no JSON") from None
    if not isinstance(content, dict):
        raise DataError(f"{name}.json is no JSON object")
    plain = {key: value for key, value in content.items() if isinstance(value, str | int) and not isinstance(value, bool)}
    return {key: str(value)[:_LONGEST] for key, value in plain.items() if str(value).strip()}


def _text(data: bytes, extension: str) -> str:
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise DataError(f".{extension} is empty or not text")
    return text


def _load_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    names = []
    for header in _headers(path):
        _require_bounded(path, header)
        names.append(header.name.removesuffix(".npy"))
    for name, what in _ARRAYS.items():
        if name not in names:
            raise DataError(f"{path}: array {name!r} is missing, {what}; it has {', '.join(names)}")
    with parser(path, _NPZ), np.load(path, allow_pickle=False) as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise DataError(f"{path}: arr_0 is {images.dtype} {list(images.shape)}; accepted: uint8 [n, height, width, 3]")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or (labels < 0).any():
        raise DataError(f"{path}: arr_1 is {labels.dtype} {list(labels.shape)}; accepted: {len(images)} whole numbers from 0")
    return images, labels


class _Header(NamedTuple):
    """An array's header in an .npz: sizes in bytes in the archive (`packed`), decompressed (`unpacked`) and in memory (`size`)."""

    name: str
    packed: int
    unpacked: int
    shape: tuple[int, ...]
    size: int


def _headers(path: Path) -> Iterator[_Header]:
    with parser(path, _NPZ):
        archive = zipfile.ZipFile(path)
    with archive:
        for entry in archive.infolist():
            with parser(path, _NPZ):
                header = _header(archive, entry)
            yield header


def _header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Header:
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return _Header(entry.filename, entry.compress_size, entry.file_size, shape, math.prod(shape) * dtype.itemsize)


def _require_bounded(path: Path, header: _Header) -> None:
    """Raise `DataError` where an array would take far more memory than the file, before memory is allocated."""
    if header.size > header.unpacked or header.size < 0:
        raise DataError(f"{path}: {header.name} says {header.size} bytes of {list(header.shape)}, and holds {header.unpacked}")
    if header.size > _NPZ_FREE and header.size > _NPZ_GROWTH * max(header.packed, 1):
        raise DataError(
            f"{path}: {header.name} would grow from {header.packed / 1e6:.1f} MB to {header.size / 1e6:.0f} MB of memory, "
            f"more than {_NPZ_GROWTH} times; save it with numpy.savez, uncompressed, if it is meant so"
        )


def _class_names(folder: Path) -> list[str]:
    path = folder / _CLASS_NAMES
    return read_text(path).splitlines() if path.is_file() else []


def _named(record: SourceRecord, names: list[str]) -> SourceRecord:
    if not names or (label := whole_number(record.class_name)) is None:
        return record
    if label >= len(names):
        raise DataError(f"{record.name}: label {record.class_name} has no line in {_CLASS_NAMES}, which has {len(names)}")
    return SourceRecord(
        name=record.name,
        key=record.key,
        class_name=names[label],
        payload=record.payload,
        split=record.split,
        group=record.group,
    )
