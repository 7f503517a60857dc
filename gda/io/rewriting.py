"""Folders whose files are rewritten in place, each as a whole: by one process at a time, and without half-written files of killed ones."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gda.io.atomic import TEMPORARY_SUFFIX, work_root
from gda.io.locks import locked
from gda.runtime.disks import storage_errors

_WAIT = 30.0  # seconds for another process, which only writes a few small files


@contextmanager
def rewriting(folder: Path) -> Iterator[None]:
    """Make `folder` unless it exists, remove temporary files of killed writers, and lock it against processes with the same work folder.

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
