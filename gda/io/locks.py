"""File locks held by the operating system, so that a killed process leaves none behind."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gda.errors import MissingError, TryAgainError
from gda.runtime.disks import storage_errors

if TYPE_CHECKING:
    import filelock

# Errors of file systems without locks, such as network file systems that lost their lock manager.
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def locked(path: Path, *, busy: str, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` (created if missing, and not deleted), waiting at most `wait` seconds for another process.

    Raises `TryAgainError` with the message `busy` where another process still holds it, `MissingError` where the file system has no
    locks or cannot be written.
    """
    import filelock

    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    # Its lock files for systems without locks would outlive a killed process.
    lock = filelock.FileLock(path, timeout=wait, fallback_to_soft=False, thread_local=False)
    try:
        with storage_errors(path):
            _acquire(lock, path, wait)
    except filelock.Timeout:
        raise TryAgainError(busy) from None
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: "filelock.BaseFileLock", path: Path, wait: float) -> None:
    try:
        lock.acquire(timeout=wait)
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        reason = f"{path}: this file system has no locks ({error.strerror})"
        raise MissingError(f"{reason}; set GDA_WORK_DIR to a folder on one that has them") from None
