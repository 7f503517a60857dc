"""Skips work that is done: a stage whose output has its fingerprint, with every file unchanged, is up to date."""

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from gda.artifacts import contents
from gda.artifacts.contents import FINGERPRINT_FILE as FINGERPRINT_FILE
from gda.artifacts.fingerprint import Fingerprint, parse_fingerprint
from gda.errors import DataError, TryAgainError, UsageError
from gda.io.atomic import STAGING, WORK, work_root, write_json
from gda.runtime.disks import storage_errors
from gda.runtime.reading import read_object


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """The work folder of a fingerprint (`work`, resumable) and the place of its result (`out`); `finished` if that is there already."""

    fingerprint: Fingerprint
    work: Path
    out: Path
    finished: bool

    @property
    def staging(self) -> Path:
        """The folder in which the stage builds its output; files of an earlier, killed run are kept."""
        path = self.work / STAGING
        with storage_errors(path):
            _make_folder(path)
        return path

    def fresh_staging(self) -> Path:
        """The same folder, emptied: for stages that start over rather than resume."""
        shutil.rmtree(self.work / STAGING, ignore_errors=True)
        return self.staging


def prepare(fingerprint: Fingerprint, out: Path, *, may_replace: Callable[[Path], None] | None = None) -> Workspace:
    """Check whether `out` holds this fingerprint's result already, with every file unchanged, and make the work folder when it does not.

    `may_replace` raises unless another fingerprint's result may replace what `out` holds; without it nothing may be replaced.

    Raises `UsageError` when `out` holds something else, `DataError` naming a file of it that changed since, `MissingError` when the work
    folder cannot be written, `TryAgainError` when another process removes it at that moment.
    """
    target = out.resolve() if out.is_symlink() else out
    work = work_folder(fingerprint)
    if is_taken(target) and may_replace is not None and not holds(fingerprint, target):
        may_replace(target)
    elif is_taken(target):
        _require_same(fingerprint, target)
        contents.require_whole(target, advice=f"remove {target} and run the same command")
        return Workspace(fingerprint=fingerprint, work=work, out=target, finished=True)
    try:
        with storage_errors(work):
            _make_folder(work)
        write_json(work / FINGERPRINT_FILE, asdict(fingerprint))
    except FileNotFoundError:  # another process published this meanwhile, and removed the work folder
        if is_taken(target):
            return prepare(fingerprint, out, may_replace=may_replace)
        raise TryAgainError(f"{work}: was removed; run the same command again") from None
    return Workspace(fingerprint=fingerprint, work=work, out=target, finished=False)


def read_fingerprint(folder: Path) -> Fingerprint:
    """The fingerprint of a published folder. Raises `DataError` when it is missing or not one."""
    path = folder / FINGERPRINT_FILE
    content = read_object(path)
    return parse_fingerprint({name: value for name, value in content.items() if name not in (contents.FILES, contents.SEAL)}, path)


def work_folder(fingerprint: Fingerprint) -> Path:
    return work_root() / WORK / fingerprint.digest[:32]


def _make_folder(path: Path) -> None:
    """Make the folder unless it exists; if another process removes it meanwhile, pathlib reports a file of that name."""
    for _ in range(100):
        try:
            return path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            if path.exists():  # it is a file
                raise
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def is_taken(out: Path) -> bool:
    return out.exists() and (not out.is_dir() or any(out.iterdir()))


def holds(fingerprint: Fingerprint, out: Path) -> bool:
    with suppress(DataError):
        return read_fingerprint(out) == fingerprint
    return False


def _require_same(fingerprint: Fingerprint, out: Path) -> None:
    advice = "remove it or choose another --out"
    if not (out / FINGERPRINT_FILE).is_file():
        raise UsageError(f"{out}: exists and was not made by this command; {advice}")
    try:
        changes = read_fingerprint(out).difference(fingerprint)
    except DataError as error:
        raise UsageError(f"{error}; {advice}") from None
    if changes:
        more = f" (and {len(changes) - 3} more)" if len(changes) > 3 else ""
        raise UsageError(f"{out}: exists and was made with other settings ({'; '.join(changes[:3])}{more}); {advice}")
