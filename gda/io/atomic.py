"""Files that are written whole or not at all, and the folder for work under way."""

import errno
import json
import os
import secrets
from pathlib import Path
from typing import Any

from gda.artifacts.contents import FINGERPRINT_FILE as FINGERPRINT_FILE
from gda.runtime.disks import storage_errors

TEMPORARY_SUFFIX = ".gda-tmp"
WORK, STAGING = "work", "out"
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


def work_root() -> Path:
    """`GDA_WORK_DIR`, or `.gda` in the current folder: checkpoints, partial output and ledgers."""
    return Path(os.environ.get("GDA_WORK_DIR") or ".gda")


def shown_name(output: Path) -> str:
    """The name of an output in messages; `ARM-SEED` for a classifier in a folder named by its seed."""
    return f"{output.parent.name}-{output.name}" if output.name.isdigit() and output.parent.name else output.name


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: temporary sibling, fsync, rename over any existing file. Raises `MissingError`."""
    with storage_errors(path):
        temporary = temporary_name(path)
        try:
            _write_synced(temporary, data)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


def write_new(path: Path, data: bytes) -> bool:
    """As `write_bytes`, but create-only: returns whether the name was free, and does not touch an existing file."""
    with storage_errors(path):
        temporary = temporary_name(path)
        try:
            _write_synced(temporary, data)
            free = commit_new(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)
        return free


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON as `write_bytes` does; equal content gives equal bytes. NaN and infinity are refused (`ValueError`)."""
    write_bytes(path, (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def commit_new(temporary: Path, path: Path) -> bool:
    """Give a complete temporary file its final name unless that is taken; returns whether it was free. Removes `temporary`."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        temporary.unlink()
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # Without hard links there is no create-only rename of files: a short window between the two calls remains.
        if path.exists():
            temporary.unlink()
            return False
        os.rename(temporary, path)
        return True
    temporary.unlink()
    return True


def temporary_name(path: Path) -> Path:
    """A name on the file system of `path` that no reader opens: next to it, or next to the staging folder that it is in.

    Not in a staging folder: a process that publishes the folder would include a half-written file of a slower process.
    """
    staging = next((folder for folder in path.parents if _is_staging(folder)), path)
    return staging.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def _is_staging(folder: Path) -> bool:
    return folder.name == STAGING and (folder.parent / FINGERPRINT_FILE).is_file() and folder.parent.parent.name == WORK


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's names, to disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
