"""Publishing of outputs: each is built in a work folder, then renamed to its final name, create-only."""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gda.artifacts import contents
from gda.artifacts.contents import FINGERPRINT_FILE as FINGERPRINT_FILE
from gda.artifacts.fingerprint import Fingerprint, parse_fingerprint
from gda.errors import DataError, TryAgainError, UsageError
from gda.io.locks import locked
from gda.runtime.disks import FULL_OR_FAILING, storage_errors
from gda.runtime.reading import read_object

TEMPORARY_SUFFIX = ".gda-tmp"
_WORK, _STAGING = "work", "out"
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


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
        path = self.work / _STAGING
        with storage_errors(path):
            _make_folder(path)
        return path

    def fresh_staging(self) -> Path:
        """The same folder, emptied: for stages that start over rather than resume."""
        shutil.rmtree(self.work / _STAGING, ignore_errors=True)
        return self.staging


def work_root() -> Path:
    """`GDA_WORK_DIR`, or `.gda` in the current folder: checkpoints, partial output and ledgers."""
    return Path(os.environ.get("GDA_WORK_DIR") or ".gda")


def _work_folder(fingerprint: Fingerprint) -> Path:
    return work_root() / _WORK / fingerprint.digest[:32]


def prepare(fingerprint: Fingerprint, out: Path, *, may_replace: Callable[[Path], None] | None = None) -> Workspace:
    """Check whether `out` holds this fingerprint's result already, with every file unchanged, and make the work folder when it does not.

    `may_replace` raises unless another fingerprint's result may replace what `out` holds; without it nothing may be replaced.

    Raises `UsageError` when `out` holds something else, `DataError` naming a file of it that changed since, `MissingError` when the work
    folder cannot be written, `TryAgainError` when another process removes it at that moment.
    """
    target = out.resolve() if out.is_symlink() else out
    work = _work_folder(fingerprint)
    if _is_taken(target) and may_replace is not None and not _holds(fingerprint, target):
        may_replace(target)
    elif _is_taken(target):
        _require_same(fingerprint, target)
        contents.require_whole(target, advice=f"remove {target} and run the same command")
        return Workspace(fingerprint=fingerprint, work=work, out=target, finished=True)
    try:
        with storage_errors(work):
            _make_folder(work)
        write_json(work / FINGERPRINT_FILE, asdict(fingerprint))
    except FileNotFoundError:  # another process published this meanwhile, and removed the work folder
        if _is_taken(target):
            return prepare(fingerprint, out, may_replace=may_replace)
        raise TryAgainError(f"{work}: was removed; run the same command again") from None
    return Workspace(fingerprint=fingerprint, work=work, out=target, finished=False)


def publish(workspace: Workspace, *, keep_work: bool = False, room: AbstractContextManager[None] | None = None) -> Path:
    """Rename the content of `staging` to its final name in one step, and remove the work folder unless `keep_work`.

    Where another fingerprint's result has the name, the context `room` moves it away; it is entered only once the new result is complete.
    If another process published the same fingerprint first, its result is accepted. Raises `TryAgainError` when something else took the
    name meanwhile, `MissingError` when the disk is full, read-only or failing; then nothing is under the final name.
    """
    staging, out = workspace.work / _STAGING, workspace.out
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
    if not _holds(workspace.fingerprint, workspace.out):
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
        folder = _work_folder(earlier)
        if earlier != workspace.fingerprint and any((folder / _STAGING).glob("*")):
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
    return folder.name == _STAGING and (folder.parent / FINGERPRINT_FILE).is_file() and folder.parent.parent.name == _WORK


def read_fingerprint(folder: Path) -> Fingerprint:
    """The fingerprint of a published folder. Raises `DataError` when it is missing or not one."""
    path = folder / FINGERPRINT_FILE
    content = read_object(path)
    return parse_fingerprint({name: value for name, value in content.items() if name not in (contents.FILES, contents.SEAL)}, path)


def _make_folder(path: Path) -> None:
    """Make the folder unless it exists; if another process removes it meanwhile, pathlib reports a file of that name."""
    for _ in range(100):
        try:
            return path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            if path.exists():  # it is a file
                raise
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _is_taken(out: Path) -> bool:
    return out.exists() and (not out.is_dir() or any(out.iterdir()))


def _holds(fingerprint: Fingerprint, out: Path) -> bool:
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


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


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
    if room is None or _holds(workspace.fingerprint, workspace.out):
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
    if not _holds(workspace.fingerprint, workspace.out):
        raise TryAgainError(f"{workspace.out}: appeared while this ran and holds something else; remove it and run the same command")


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's names, to disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def shown_name(output: Path) -> str:
    """The name of an output in messages; `ARM-SEED` for a classifier in a folder named by its seed."""
    return f"{output.parent.name}-{output.name}" if output.name.isdigit() and output.parent.name else output.name
