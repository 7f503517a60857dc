"""Folders whose files are written again in place, each whole: by one process at a time, and without what a killed one left half written."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gda.io.locks import locked
from gda.io.publish import TEMPORARY_SUFFIX, storage_errors, work_root

_WAIT = 30.0  # seconds for another process, which only writes a few small files


@contextmanager
def rewriting(folder: Path) -> Iterator[None]:
    """Make `folder` unless it is there, drop temporary files of killed writers, and keep other processes of this work folder out.

    Raises `TryAgainError` where another process is still writing it, `MissingError` where it cannot be written or locked.
    """
    name = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:32]
    busy = f"{folder}: another process is writing it; run the same command again"
    with locked(work_root() / "locks" / f"{name}.lock", busy=busy, wait=_WAIT):
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(f".*{TEMPORARY_SUFFIX}"):
                left.unlink(missing_ok=True)
        yield
