"""Publishing of outputs: each is built in a work folder, then renamed to its final name, create-only."""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from gda.artifacts import contents
from gda.artifacts.contents import FINGERPRINT_FILE
from gda.artifacts.fingerprint import Fingerprint, parse_fingerprint
from gda.errors import DataError, TryAgainError, UsageError
from gda.io.atomic import STAGING, TEMPORARY_SUFFIX, sync, temporary_name, work_root, write_json
from gda.io.locks import locked
from gda.io.up_to_date import Workspace, holds, prepare, work_folder
from gda.runtime.disks import FULL_OR_FAILING, storage_errors
from gda.runtime.reading import read_object

_TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}


def publish(workspace: Workspace, *, keep_work: bool = False, room: AbstractContextManager[None] | None = None) -> Path:
    """Rename the content of `staging` to its final name in one step, and remove the work folder unless `keep_work`.

    Where another fingerprint's result has the name, the context `room` moves it away; it is entered only once the new result is complete.
    If another process published the same fingerprint first, its result is accepted. Raises `TryAgainError` when something else took the
    name meanwhile, `MissingError` when the disk is full, read-only or failing; then nothing is under the final name.
    """
    staging, out = workspace.work / STAGING, workspace.out
    try:
        _sweep(staging)
        with storage_errors(staging):
            listed = contents.with_files(asdict(workspace.fingerprint), staging)
        write_json(staging / FINGERPRINT_FILE, listed)
        with storage_errors(out):
            _sweep(staging)
            _settle(staging)
            out.parent.mkdir(parents=True, exist_ok=True)
            _move_new(workspace, staging, room)
            sync(out.parent)
    except FileNotFoundError:  # a worker of the same fingerprint has published this very folder
        _accept_winner(workspace)
    if not keep_work:
        shutil.rmtree(workspace.work, ignore_errors=True)
    return out


def published_meanwhile(workspace: Workspace) -> bool:
    """Whether another process has published this result and removed the work folder; removes anything written to that folder since."""
    if not holds(workspace.fingerprint, workspace.out):
        return False
    shutil.rmtree(workspace.work, ignore_errors=True)
    return True


def claim(workspace: Workspace) -> None:
    """Record that workers make `out` by this fingerprint, so that a worker with other settings does not sample another set meanwhile.

    Raises `UsageError` with the difference where the work folder holds part of another fingerprint's result for `out`.
    """
    place = work_root() / "claims" / f"{hashlib.sha256(str(workspace.out.absolute()).encode()).hexdigest()[:32]}.json"
    with suppress(DataError):  # none yet, or a damaged one
        earlier = parse_fingerprint(read_object(place), place)
        folder = work_folder(earlier)
        if earlier != workspace.fingerprint and any((folder / STAGING).glob("*")):
            changes = "; ".join(earlier.difference(workspace.fingerprint)[:3])
            raise UsageError(f"{workspace.out}: is half made with other settings ({changes}); give --out another name, or remove {folder}")
    with storage_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    write_json(place, asdict(workspace.fingerprint))


@contextmanager
def exclusive(workspace: Workspace, *, wait: float = 0.0) -> Iterator[None]:
    """Lock this work folder against other processes, for stages without parallel workers, waiting at most `wait` seconds.

    Raises `TryAgainError` where another process holds it, or has just finished, `MissingError` on a file system without locks.
    """
    busy = f"{workspace.out}: another process is working on exactly this; wait for it, then run the same command"
    # Not in the work folder: the process that finishes removes it, and a lock on a deleted file excludes no one.
    with locked(work_root() / "locks" / f"{workspace.fingerprint.digest[:32]}.lock", busy=busy, wait=wait):
        if not (workspace.work / FINGERPRINT_FILE).is_file():  # it finished and cleaned up between our `prepare` and now
            raise TryAgainError(busy)
        yield


def publish_once(fingerprint: Fingerprint, out: Path, build: Callable[[Workspace], object]) -> bool:
    """Publish what `build` writes into the workspace's staging folder, unless `out` holds it already; returns whether it did.

    Raises as `prepare`, `exclusive` and `publish` do.
    """
    workspace = prepare(fingerprint, out)
    if not workspace.finished:
        with exclusive(workspace):
            build(workspace)
            publish(workspace)
    return workspace.finished


def _sweep(staging: Path) -> None:
    """Remove temporary files of killed writers."""
    for folder, _, names in os.walk(staging):
        for name in names:
            if name.endswith(TEMPORARY_SUFFIX):
                Path(folder, name).unlink(missing_ok=True)


def _settle(staging: Path) -> None:
    """Flush the whole tree, so that the rename cannot outrun the content."""
    for folder, _, names in os.walk(staging):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                sync(path)
        sync(Path(folder))


def _move_new(workspace: Workspace, staging: Path, room: AbstractContextManager[None] | None) -> None:
    out = workspace.out
    try:
        os.rename(staging, out)  # a folder replaces nothing but an empty folder: create-only by the kernel
    except OSError as error:
        if error.errno == errno.EXDEV:
            _copy_new(workspace, staging, room)
        elif error.errno in _TAKEN:
            _take_place(workspace, staging, room)
        else:
            raise


def _copy_new(workspace: Workspace, staging: Path, room: AbstractContextManager[None] | None) -> None:
    """The work folder is on another file system: copy next to the final name first, so that the rename stays atomic."""
    sibling = temporary_name(workspace.out)
    try:
        shutil.copytree(staging, sibling, symlinks=True)
        _sweep(sibling)
        _settle(sibling)
        try:
            os.rename(sibling, workspace.out)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            _take_place(workspace, sibling, room)
    except OSError as error:
        raise _unwrap(error) from None  # shutil.Error wraps the real errors of single files
    finally:
        shutil.rmtree(sibling, ignore_errors=True)


def _take_place(workspace: Workspace, complete: Path, room: AbstractContextManager[None] | None) -> None:
    """The name is taken: by the same result, which is accepted, or by one that `room` moves away."""
    if room is None or holds(workspace.fingerprint, workspace.out):
        _accept_winner(workspace)
        return
    with room:
        os.rename(complete, workspace.out)


def _unwrap(error: OSError) -> OSError:
    if not isinstance(error, shutil.Error):
        return error
    _, target, reason = error.args[0][0]
    number = next((code for code in FULL_OR_FAILING if os.strerror(code) in reason), errno.EIO)
    return OSError(number, os.strerror(number), target)


def _accept_winner(workspace: Workspace) -> None:
    if not holds(workspace.fingerprint, workspace.out):
        raise TryAgainError(f"{workspace.out}: appeared while this ran and holds something else; remove it and run the same command")
