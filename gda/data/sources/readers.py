"""Chooses the reader of a source (folder, tars, parquet files, .npz arrays or a demo set) by its content rather than its name."""

import glob
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from gda.config.sections import SnapshotConfig
from gda.data.images.listing import Folder, read_head
from gda.data.sources.archives import read_npz_source, read_tars
from gda.data.sources.demo import read_demo
from gda.data.sources.folders import list_source, read_folder
from gda.data.sources.parquet import read_parquet
from gda.data.sources.source import ACCEPTED_SOURCES, Columns, ImageSource
from gda.errors import DataError, UsageError

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_UNPACK = {"gzip": "gunzip -k", "bzip2": "bunzip2 -k", "xz": "unxz -k", "zstd": "unzstd"}
_TAR, _PARQUET, _NPZ = "tar", "parquet", "npz"


def open_source(source: str, config: SnapshotConfig, columns: Columns, *, progress: bool = False) -> ImageSource:
    """List the images of `source`: a folder, tars, parquet files, an .npz or a demo set.

    Raises `UsageError` for a source that is missing or not accepted, `DataError` for one that cannot be read or is ambiguous.
    """
    if source.startswith("demo://"):
        return read_demo(source, config, columns)
    if "://" in source:
        raise UsageError(f"{source}: remote sources are not read; accepted: {ACCEPTED_SOURCES}")
    path = Path(source)
    if path.is_dir():
        return _open_folder(path, config, columns, progress)
    is_pattern = not path.exists() and any(character in source for character in "*?[{")
    paths = expand(source) if is_pattern else [path]
    if not is_pattern and not path.exists():
        if path.suffix in (".tar", ".npz", ".parquet", ".gz", ".tgz"):
            raise (DataError if ".tar" in path.suffixes else UsageError)(f"{source}: not found: no such file")
        raise UsageError(f"{source}: no such folder; accepted sources: {ACCEPTED_SOURCES}")
    return _open_files(paths, source, columns, progress, strict=False)


def expand(pattern: str) -> list[Path]:
    """The files that braces (`{000..012}` keeps leading zeros, `{a,b}`) and globs name. Raises where one is missing or none matches."""
    names = _expand_braces(pattern)
    if any(character in pattern for character in "*?["):
        names = sorted(itertools.chain.from_iterable(glob.glob(name) for name in names))
        if not names:
            raise UsageError(f"{pattern}: matches no file")
    for name in names:
        if not Path(name).is_file():
            raise DataError(f"{name}: not found" + (f", though {pattern} names it" if name != pattern else ""))
    return [Path(name) for name in names]


def _open_folder(folder: Path, config: SnapshotConfig, columns: Columns, progress: bool) -> ImageSource:
    listing = list_source(folder)
    files = _archives(listing.root)
    if not files:
        return read_folder(folder, columns, layout=config.layout, listing=listing, progress=progress)
    images = listing.root.all_images()
    if images:
        raise DataError(
            f"{folder}: holds {len(images)} images and {len(files)} archives such as {files[0].name}; "
            "name the folder of the images or a pattern of the archives, not both"
        )
    return _open_files(files, str(folder), columns, progress, strict=True)


def _archives(root: Folder) -> list[Path]:
    """Tars, parquet files and .npz below a folder. A parquet named as a tar is img2dataset's list of what the tar holds."""
    ends = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".parquet", ".npz", ".zip", ".7z", ".rar")
    found = [path for folder in root.walk() for path in folder.others if path.name.lower().endswith(ends)]
    found = [path for path in found if path.name != "metadata.parquet"]
    tars = {path.with_suffix("") for path in found if path.suffix == ".tar"}
    return sorted(path for path in found if path.suffix != ".parquet" or path.with_suffix("") not in tars)


def _open_files(paths: Sequence[Path], source: str, columns: Columns, progress: bool, *, strict: bool) -> ImageSource:
    kinds = {_kind(path) for path in paths}
    if len(kinds) > 1:
        raise DataError(f"{source}: holds {' and '.join(sorted(kinds))} files; select one kind by a pattern such as *.tar")
    kind = kinds.pop()
    if kind == _TAR:
        return read_tars(paths, columns, strict=strict, progress=progress)
    if kind == _PARQUET:
        return read_parquet(paths, columns, strict=strict, progress=progress)
    if len(paths) > 1:
        raise UsageError(f"{source}: names {len(paths)} .npz files; one is read at a time")
    return read_npz_source(paths[0], columns)


def _kind(path: Path) -> str:
    """The kind of a file by its content, else by its name. Raises `UsageError` for kinds that are not accepted."""
    head = read_head(path)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise UsageError(f"{path}: is compressed ({name}); unpack it first: {_UNPACK[name]} {path}")
    if head.startswith(b"PAR1"):
        return _PARQUET
    if path.suffix == ".npz":
        return _NPZ
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"7z\xbc\xaf", b"Rar!")):
        raise UsageError(f"{path}: is a zip, 7z or rar archive; unpack it first and name the folder")
    if head[257:262] == b"ustar" or path.name.lower().endswith(".tar"):
        return _TAR
    if path.suffix == ".parquet":
        raise DataError(f"{path}: not a parquet file")
    raise UsageError(f"{path}: is none of the accepted sources: {ACCEPTED_SOURCES}")


def _expand_braces(pattern: str) -> list[str]:
    """Shell braces: `{000..012}` keeps leading zeros, `{a,b}` lists."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    bounds = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", match.group(1))
    if bounds is not None:
        low, high = bounds.groups()
        parts = [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]
    else:
        parts = match.group(1).split(",")
    return [name for part in parts for name in _expand_braces(before + part + after)]
