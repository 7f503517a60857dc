"""Errors of disks that are full, read-only, failing or without locks, distinguished from defects of gda in every library's wording.

Most libraries raise `OSError` with its number. Some hide it: safetensors and sqlite3 raise errors of their own, numpy counts bytes.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gda.errors import GdaError, MissingError, TryAgainError

FULL_OR_FAILING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
# No file can be used at all, for reading or writing; these errors do not depend on a file's content.
UNUSABLE = FULL_OR_FAILING | {
    errno.ENOLCK,
    errno.EFBIG,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.EREMOTEIO,
    errno.ENXIO,
    errno.ENODEV,
}
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.ENAMETOOLONG})
_WHILE_WRITING = UNUSABLE | _FORBIDDEN | {errno.ENOTDIR, errno.EEXIST}
_ADVICE = "make room or choose another place, then run the same command"
_NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
_LIBRARIES = ("safetensors", "safetensors_rust", "pyarrow", "sqlalchemy", "sqlite3", "mlflow", "zipfile", "torch")
# numpy's `tofile`, Pillow's encoders and torch's archive writer, which name no number.
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written|when writing image file|PytorchStreamWriter failed writing")
_SQLITE_UNUSABLE = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")
_SQLITE_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED")


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full, read-only, failing or forbidden disk into a `MissingError` that names `path`."""
    try:
        yield
    except GdaError:
        raise
    except Exception as error:
        if (reason := _reason(error, _WHILE_WRITING)) is None:
            raise
        raise MissingError(f"{path}: cannot be written ({reason}); {_ADVICE}") from None


def storage_problem(error: BaseException) -> GdaError | None:
    """The error for a user where `error`, or what caused it, is a disk that cannot be used; None where it is anything else."""
    for one in _chain(error):
        if _sqlite_name(one).startswith(_SQLITE_BUSY):
            return TryAgainError(f"{one}: another process is writing to the database; run the same command again")
        if (reason := _reason(one, UNUSABLE | _FORBIDDEN)) is not None:
            where = f"{name}: " if (name := getattr(one, "filename", None)) else ""
            return MissingError(f"{where}storage cannot be used ({reason}); {_ADVICE}")
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from, at most ten."""
    current: BaseException | None = error
    for _ in range(10):
        if current is None:
            return
        yield current
        current = current.__cause__ or getattr(current, "orig", None)


def _reason(error: BaseException, numbers: frozenset[int]) -> str | None:
    """What is wrong with the disk, by the system's words; None where `error` is none of `numbers`."""
    if (number := _errno(error)) is not None:
        return os.strerror(number) if number in numbers else None
    if isinstance(error, OSError | RuntimeError) and _SHORT_WRITE.search(str(error)):
        return "the disk took less than was written"
    if _sqlite_name(error).startswith(_SQLITE_UNUSABLE):
        return str(error)
    return None


def _errno(error: BaseException) -> int | None:
    """The number of an `OSError`, also of `shutil.Error` and of libraries that have it in their text alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    root = type(error).__module__.partition(".")[0]
    if isinstance(error, OSError) or root in _LIBRARIES:
        text = str(error)
        if found := _NUMBER.search(text):
            return int(found[1] or found[2])
        return next((number for number in sorted(UNUSABLE) if os.strerror(number) in text), None)
    return None


def _sqlite_name(error: BaseException) -> str:
    name = getattr(error, "sqlite_errorname", "")
    return name if isinstance(name, str) else ""
