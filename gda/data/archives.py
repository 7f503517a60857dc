"""Sources that are archives: WebDataset tars and the `.npz` that ADM, DiT and their evaluators exchange."""

import glob
import itertools
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gda.data.sources import Columns, Slice, Source, SourceRecord, path_key, printable
from gda.data.splits import parse_split
from gda.errors import DataError, UsageError
from gda.io.shards import BLOCK, Member, read_members, sha256_of
from gda.parallel import Bar, run_parallel, tick
from gda.recipe import digest_of

_TAR_IMAGES = ("png", "jpg", "jpeg", "webp")
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)\Z")  # WebDataset's rule: the key ends at the first dot of the last part
_CLASS_NAMES = "classnames.txt"
_ARRAYS = {"arr_0": "the images", "arr_1": "their labels, without which no classifier can be trained or asked for its opinion"}


@dataclass(frozen=True, kw_only=True)
class _Tar:
    path: Path
    columns: Columns


@dataclass(frozen=True, kw_only=True)
class _Listing:
    sha256: str
    records: list[SourceRecord]
    rejected: list[tuple[str, str]]


def read_tars(pattern: str, columns: Columns, *, progress: bool) -> Source:
    """List WebDataset tars given by braces (`train-{000..012}.tar`) or a glob; `.cls` is a number or a class name.

    Numbers are named by line in a `classnames.txt` beside the tars, if there is one. Raises `DataError` for a missing, truncated or
    unsafe tar, `UsageError` when the pattern matches nothing.
    """
    paths = _expand(pattern)
    tars = [_Tar(path=path, columns=columns) for path in paths]
    with Bar(len(tars), "list tars", unit="tar", shown=progress):
        listings = run_parallel(_list_tar, tars)
    names = _class_names(paths[0].parent)
    records = [_named(record, names) for listing in listings for record in listing.records]
    return Source(
        records=records,
        class_names=sorted({record.class_name for record in records}),
        fingerprint=digest_of([[path.name for path in paths], [listing.sha256 for listing in listings], columns.names, names]),
        description="WebDataset tars",
        rejected=[item for listing in listings for item in listing.rejected],
    )


def read_npz(path: Path, columns: Columns) -> Source:
    """Images `arr_0` (uint8 [n, height, width, 3]) and labels `arr_1` (whole numbers [n]); nothing is unpickled.

    Classes are named by `classnames.txt` beside the file, if there is one, else by number. Arrays carry no marks: synthetic images in
    an .npz are not recognised as such. Raises `DataError` naming the array.
    """
    if columns.names:
        raise UsageError(f"column {columns.names[0]!r}: an .npz has no columns")
    images, labels = _load_arrays(path)
    names = _class_names(path.parent)
    records = []
    for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        name = f"{index:08d}"
        records.append(_named(SourceRecord(name=name, key=f"npz-{name}", class_name=str(label), payload=image), names))
    return Source(
        records=records,
        class_names=sorted({record.class_name for record in records}),
        fingerprint=digest_of([sha256_of(path), names]),
        description=".npz arrays",
    )


def _list_tar(tar: _Tar) -> _Listing:
    records, rejected = [], []
    for key, members in _groups(tar.path):
        name = printable(f"{tar.path.stem}/{key}")
        try:
            records.append(_tar_record(tar, name, members))
        except DataError as error:
            rejected.append((name, str(error)))
    tick()
    return _Listing(sha256=sha256_of(tar.path), records=records, rejected=rejected)


def _groups(path: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Consecutive members with one key, by extension; one group is in memory at a time."""
    with open(path, "rb") as file:
        members = ((_MEMBER.match(member.name), member) for member in read_members(file, path.name, foreign=True))
        for key, group in itertools.groupby(members, key=lambda pair: pair[0].group(1) if pair[0] else pair[1].name):
            yield key, {match.group(2).lower() if match else "": member for match, member in group}


def _tar_record(tar: _Tar, name: str, members: dict[str, Member]) -> SourceRecord:
    found = [extension for extension in members if extension in _TAR_IMAGES]
    if len(found) != 1 or "cls" not in members:
        raise DataError(f"not one image ({', '.join(_TAR_IMAGES)}) and a .cls, but {', '.join(sorted(members)) or 'nothing'}")
    image = members[found[0]]
    fields = _json_fields(members.get("json"), tar.columns, name)
    return SourceRecord(
        name=name,
        key=path_key(name),
        class_name=_text(members["cls"].data),
        payload=Slice(path=tar.path, offset=image.offset + BLOCK, size=len(image.data)),
        split=None if tar.columns.split is None else parse_split(fields[tar.columns.split], name),
        group=None if tar.columns.group is None else fields[tar.columns.group],
    )


def _json_fields(member: Member | None, columns: Columns, name: str) -> dict[str, str]:
    if not columns.names:
        return {}
    try:
        content = json.loads(member.data) if member else {}
        return {column: str(content[column]) for column in columns.names}
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{name}.json does not hold {' and '.join(columns.names)}") from None


def _text(data: bytes) -> str:
    try:
        text = data.decode("utf-8").strip()
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise DataError(".cls is empty or not text")
    return text


def _expand(pattern: str) -> list[Path]:
    names = _expand_braces(pattern)
    if any(character in pattern for character in "*?["):
        names = sorted(itertools.chain.from_iterable(glob.glob(name) for name in names))
        if not names:
            raise UsageError(f"{pattern}: matches no file")
    for name in names:
        if not Path(name).is_file():
            raise DataError(f"{name}: not found" + (f", though {pattern} names it" if name != pattern else ""))
    return [Path(name) for name in names]


def _expand_braces(pattern: str) -> list[str]:
    """Shell braces: `{000..012}` keeps leading zeros, `{a,b}` lists."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", match.group(1))
    if bounds is not None:
        low, high = bounds.groups()
        parts = [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]
    else:
        parts = match.group(1).split(",")
    return [name for part in parts for name in _expand_braces(before + part + after)]


def _load_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for name, what in _ARRAYS.items():
                if name not in arrays:
                    raise DataError(f"{path}: array {name!r} is missing, {what}; it has {', '.join(arrays.files)}")
            images, labels = arrays["arr_0"], arrays["arr_1"]
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not an .npz of plain arrays ({error})") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise DataError(f"{path}: arr_0 is {images.dtype} {list(images.shape)}; accepted: uint8 [n, height, width, 3]")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or (labels < 0).any():
        raise DataError(f"{path}: arr_1 is {labels.dtype} {list(labels.shape)}; accepted: {len(images)} whole numbers from 0")
    return images, labels


def _class_names(folder: Path) -> list[str]:
    path = folder / _CLASS_NAMES
    return path.read_text("utf-8").splitlines() if path.is_file() else []


def _named(record: SourceRecord, names: list[str]) -> SourceRecord:
    if not names or not record.class_name.isdecimal():
        return record
    if int(record.class_name) >= len(names):
        raise DataError(f"{record.name}: label {record.class_name} has no line in {_CLASS_NAMES}, which has {len(names)}")
    return SourceRecord(
        name=record.name,
        key=record.key,
        class_name=names[int(record.class_name)],
        payload=record.payload,
        split=record.split,
        group=record.group,
    )
