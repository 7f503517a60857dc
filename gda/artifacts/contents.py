"""What a published folder holds: `fingerprint.json` lists every file with its sha256, and every reader of the folder compares.

Hashing reads a file once, about 1 GB/s; a process does not read an unchanged file again.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gda.artifacts.fingerprint import digest_of
from gda.errors import DataError
from gda.runtime.reading import read_json

FINGERPRINT_FILE = "fingerprint.json"
FILES, SEAL = "files", "sha256"  # in fingerprint.json: sha256 by name of every other file, and that of fingerprint.json's own content
# Users may remove these folders: features of a set are then extracted again, and a generator can no longer be averaged again.
_OPTIONAL = ("features/", "ema/")
_READ_BY_LOADERS = {".safetensors", ".json", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".npy", ".tar", ".parquet"}
_SETTLED = 2.0  # seconds: a file changed later than this before it was hashed may change again under the same time stamp
_known: dict[tuple[int, ...], str] = {}


def file_digest(path: Path) -> str:
    """sha256 (64 hex digits) of a file; not read again in this process while inode, size and times of change stay. Raises `OSError`."""
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        # The time of the inode's change cannot be set back, as that of the content can.
        identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if identity in _known:
            return _known[identity]
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time() - max(found.st_mtime, found.st_ctime) > _SETTLED:
        _known[identity] = digest
    return digest


def with_files(fingerprint: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The content of `fingerprint.json` for `folder` as it is now: the fingerprint, every other file's sha256, and the sha256 of all this.

    Raises `OSError` where the folder cannot be read or is removed meanwhile.
    """
    content = dict(fingerprint) | {FILES: {name: file_digest(folder / name) for name in _names(folder)}}
    return content | {SEAL: digest_of(content)}


def recorded_files(folder: Path) -> dict[str, str] | None:
    """sha256 by name, from `fingerprint.json` in `folder`; None without that file, or where it is of a version that listed no files.

    Raises `DataError` where `fingerprint.json` is damaged or was edited.
    """
    path = folder / FINGERPRINT_FILE
    if not path.exists():
        return None
    content = read_json(path, finite=False)
    if not isinstance(content, dict) or not content.keys() & {FILES, SEAL}:
        return None
    recorded = content.pop(SEAL, None)
    files = content.get(FILES)
    if not isinstance(files, dict) or _digest_or_none(content) != recorded:
        raise DataError(f"{path}: damaged or edited, its content is not what was written (sha256 differs)")
    return {str(name): str(digest) for name, digest in files.items()}


def damaged_files(folder: Path, *, only: Iterable[str] | None = None) -> list[str]:
    """Differences between the folder and the list in `fingerprint.json`, a line for each file; of all files, or of those named `only`.

    Empty where nothing is listed. An added file counts if a loader could read it.
    """
    try:
        files = recorded_files(folder)
    except DataError as error:
        return [str(error)]
    if files is None:
        return []
    names = files.keys() if only is None else files.keys() & set(only)
    problems = [problem for name in sorted(names) if (problem := _problem(folder, name, files[name]))]
    if only is None:
        added = [name for name in _names(folder) if name not in files and Path(name).suffix in _READ_BY_LOADERS]
        problems += [f"{folder / name}: was added after {folder} was written" for name in added]
    return problems


def require_whole(folder: Path, *, only: Iterable[str] | None = None, advice: str = "make it again, or restore it from a copy") -> None:
    """Raises `DataError` naming the first file that differs from what `fingerprint.json` in `folder` lists, as `damaged_files` does."""
    if problems := damaged_files(folder, only=only):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}; {advice}")


def require_recorded(path: Path, data: bytes) -> None:
    """Raises `DataError` where `data`, what was read from `path`, is not what `fingerprint.json` of its folder lists."""
    files = recorded_files(path.parent)
    if files is not None and path.name in files and hashlib.sha256(data).hexdigest() != files[path.name]:
        raise DataError(f"{_changed(path)}; make it again, or restore it from a copy")


def _problem(folder: Path, name: str, expected: str) -> str | None:
    path = folder / name
    if not path.is_file():
        if name.startswith(_OPTIONAL) and not path.parent.exists():
            return None
        return f"{path}: not found, though {FINGERPRINT_FILE} lists it"
    try:
        return None if file_digest(path) == expected else _changed(path)
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"


def _changed(path: Path) -> str:
    return f"{path}: damaged or exchanged, its sha256 is not the one in {FINGERPRINT_FILE}"


def _digest_or_none(content: Mapping[str, Any]) -> str | None:
    try:
        return digest_of(content)
    except ValueError:  # NaN, which JSON as Python reads it may hold
        return None


def _names(folder: Path) -> list[str]:
    """Every file in the folder but its own `fingerprint.json`, as POSIX paths, sorted; hidden ones belong to other tools."""
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        found += [Path(root, name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    return sorted(name for name in found if name != FINGERPRINT_FILE)
