"""Replaces a result by that of a later fingerprint: only results that this program made and nobody changed, and only by a complete one.

A replaced result is kept in the work folder, and restored when its fingerprint is requested again.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gda.artifacts import contents
from gda.artifacts.contents import FINGERPRINT_FILE
from gda.artifacts.fingerprint import Fingerprint
from gda.errors import DataError, UsageError
from gda.io.atomic import TEMPORARY_SUFFIX, sync, temporary_name, work_root
from gda.io.locks import locked
from gda.io.up_to_date import Workspace, prepare, read_fingerprint
from gda.runtime.disks import storage_errors

_WAIT = 30.0  # seconds for another process, which only renames a folder
ADVICE = "move it away, or choose another --out"


@dataclass(frozen=True, kw_only=True)
class Own:
    """The results that may be replaced: those of `stage` whose fingerprint has these fields of `config`."""

    stage: str
    config: Mapping[str, Any]

    def require(self, folder: Path) -> None:
        """Raises `UsageError` or `DataError` where `folder` holds anything but such a result with every file unchanged."""
        if not (folder / FINGERPRINT_FILE).is_file():
            raise UsageError(f"{folder}: exists and was not made by this command; {ADVICE}")
        fingerprint = read_fingerprint(folder)
        found = {"stage": fingerprint.stage} | fingerprint.config
        for name, value in {"stage": self.stage, **self.config}.items():
            if found.get(name) != value:
                raise UsageError(f"{folder}: exists and is of {name} {found.get(name)}, not {value}; {ADVICE}")
        listed = contents.recorded_files(folder)
        if listed is None:
            raise UsageError(f"{folder}: was made by an earlier version, which did not list its files; {ADVICE}")
        contents.require_whole(folder, advice=f"remove {folder} and run the same command")
        if added := sorted(_every_file(folder) - listed.keys() - {FINGERPRINT_FILE}):
            raise UsageError(f"{folder / added[0]}: was not made by this command; {ADVICE}")

    @contextmanager
    def moved_away(self, folder: Path) -> Iterator[None]:
        """Free the name `folder` within the context, by moving its result away; the result is restored where the body fails.

        Raises as `require` does, and `TryAgainError` where another process is replacing it.
        """
        lock = work_root() / "locks" / f"{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:32]}.lock"
        with locked(lock, busy=f"{folder}: another process is replacing it; run the same command again", wait=_WAIT):
            if not folder.exists() or not any(folder.iterdir()):
                yield
                return
            self.require(folder)
            kept, sibling = _kept_folder(read_fingerprint(folder)), temporary_name(folder)
            try:
                with storage_errors(folder):
                    _set_aside(folder, kept, sibling)
                yield
            except BaseException:
                for aside in (kept, sibling):
                    if aside.exists() and not folder.exists():
                        os.rename(aside, folder)
                raise
            sync(folder.parent)
            shutil.rmtree(sibling, ignore_errors=True)

    def remove(self, folder: Path) -> None:
        """Move `folder` away without a replacement. Raises as `moved_away` does."""
        with self.moved_away(folder):
            pass


def begin(fingerprint: Fingerprint, out: Path, own: Own | None) -> Workspace:
    """As `prepare`, but results described by `own` may be replaced; an earlier result of `fingerprint` that was replaced is restored.

    Raises as `prepare` and `Own.moved_away` do.
    """
    if own is None:
        return prepare(fingerprint, out)
    workspace = prepare(fingerprint, out, may_replace=own.require)
    if workspace.finished or not _take_back(workspace, own):
        return workspace
    shutil.rmtree(workspace.work, ignore_errors=True)
    return prepare(fingerprint, out)


def kept_result(fingerprint: Fingerprint) -> Path | None:
    """The earlier result of `fingerprint` that was replaced by another, with every file unchanged; None where there is none."""
    folder = _kept_folder(fingerprint)
    with suppress(DataError):
        if read_fingerprint(folder) == fingerprint and not contents.damaged_files(folder):
            return folder
    return None


def drop_unfinished(folder: Path) -> None:
    """Remove the partly copied or partly removed results that killed processes left in `folder`."""
    for left in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        shutil.rmtree(left, ignore_errors=True)


def _take_back(workspace: Workspace, own: Own) -> bool:
    """Restore the result of this fingerprint at `out`, if it was kept; returns whether it was."""
    kept, out = kept_result(workspace.fingerprint), workspace.out
    if kept is None:
        return False
    try:
        with storage_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        with own.moved_away(out):
            os.rename(kept, out)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EXDEV):  # another process took it, or it is on another file system
            raise
        return False
    return True


def _kept_folder(fingerprint: Fingerprint) -> Path:
    return work_root() / "replaced" / fingerprint.digest[:32]


def _set_aside(folder: Path, kept: Path, sibling: Path) -> None:
    """Rename `folder` to `kept`, in the work folder, or to the hidden name `sibling` if `kept` is on another file system."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(kept, ignore_errors=True)
    try:
        os.rename(folder, kept)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        os.rename(folder, sibling)


def _every_file(folder: Path) -> set[str]:
    """Every file and link in the folder, including hidden ones, as POSIX paths."""
    found = set()
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if Path(root, name).is_symlink()]
        found |= {Path(root, name).relative_to(folder).as_posix() for name in (*files, *links)}
    return found
