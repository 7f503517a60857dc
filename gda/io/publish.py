"""The one way output appears: built in a work folder, then renamed to its final name, create-only."""

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
from gda.artifacts.fingerprint import Recipe, parse_recipe
from gda.errors import DataError, TryAgainError, UsageError
from gda.io.locks import locked
from gda.runtime.disks import FULL_OR_FAILING, storage_errors
from gda.runtime.reading import read_object

RECIPE_FILE = contents.RECIPE_FILE
TEMPORARY_SUFFIX = ".gda-tmp"
_WORK, _STAGING = "work", "out"
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Where a recipe is worked on (`work`, resumable) and where its result goes (`out`); `finished` when it is there already."""

    recipe: Recipe
    work: Path
    out: Path
    finished: bool

    @property
    def staging(self) -> Path:
        """The folder in which the stage builds its output; what an earlier, killed run left there is kept."""
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


def _work_folder(recipe: Recipe) -> Path:
    return work_root() / _WORK / recipe.digest[:32]


def prepare(recipe: Recipe, out: Path, *, may_replace: Callable[[Path], None] | None = None) -> Workspace:
    """Say whether `out` holds this recipe's result already, every file as it was written, and make its work folder when it does not.

    `may_replace` raises unless what is there may give way to another recipe's result; without it nothing may.

    Raises `UsageError` when `out` holds something else, `DataError` naming a file of it that changed since, `MissingError` when the work
    folder cannot be written, `TryAgainError` when it is taken away at that moment.
    """
    target = out.resolve() if out.is_symlink() else out
    work = _work_folder(recipe)
    if _is_taken(target) and may_replace is not None and not _holds(recipe, target):
        may_replace(target)
    elif _is_taken(target):
        _require_same(recipe, target)
        contents.require_whole(target, advice=f"remove {target} and run the same command")
        return Workspace(recipe=recipe, work=work, out=target, finished=True)
    try:
        with storage_errors(work):
            _make_folder(work)
        write_json(work / RECIPE_FILE, asdict(recipe))
    except FileNotFoundError:  # another process published this meanwhile, and took the work folder away
        if _is_taken(target):
            return prepare(recipe, out, may_replace=may_replace)
        raise TryAgainError(f"{work}: was taken away; run the same command again") from None
    return Workspace(recipe=recipe, work=work, out=target, finished=False)


def publish(workspace: Workspace, *, keep_work: bool = False, room: AbstractContextManager[None] | None = None) -> Path:
    """Give what was built in `staging` its final name in one rename, and drop the work folder unless `keep_work`.

    Where another recipe's result has the name, that is free inside of `room`, which is only entered once the new one is complete.
    Whoever comes second with the same recipe finds the result there and is content. Raises `TryAgainError` when something else
    took the name meanwhile, `MissingError` when the disk is full, read-only or failing; then nothing is under the final name.
    """
    staging, out = workspace.work / _STAGING, workspace.out
    try:
        _sweep(staging)
        with storage_errors(staging):
            listed = contents.with_files(asdict(workspace.recipe), staging)
        write_json(staging / RECIPE_FILE, listed)
        with storage_errors(out):
            _sweep(staging)
            _settle(staging)
            out.parent.mkdir(parents=True, exist_ok=True)
            _move_new(workspace, staging, room)
            sync(out.parent)
    except FileNotFoundError:  # a worker of the same recipe has published this very folder
        _accept_winner(workspace)
    if not keep_work:
        shutil.rmtree(workspace.work, ignore_errors=True)
    return out


def published_meanwhile(workspace: Workspace) -> bool:
    """Whether another process has published this very result, so that its work folder is gone; what came into it since is dropped."""
    if not _holds(workspace.recipe, workspace.out):
        return False
    shutil.rmtree(workspace.work, ignore_errors=True)
    return True


def claim(workspace: Workspace) -> None:
    """Say that workers are making `out` by this recipe, so that one that was told otherwise is not left drawing another set beside it.

    Raises `UsageError` with the difference where half of another recipe's result for `out` lies in the work folder.
    """
    place = work_root() / "claims" / f"{hashlib.sha256(str(workspace.out.absolute()).encode()).hexdigest()[:32]}.json"
    with suppress(DataError):  # none yet, or a damaged one
        earlier = parse_recipe(read_object(place), place)
        folder = _work_folder(earlier)
        if earlier != workspace.recipe and any((folder / _STAGING).glob("*")):
            changes = "; ".join(earlier.difference(workspace.recipe)[:3])
            raise UsageError(f"{workspace.out}: is half made otherwise ({changes}); give --out another name, or remove {folder}")
    with storage_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    write_json(place, asdict(workspace.recipe))


@contextmanager
def exclusive(workspace: Workspace, *, wait: float = 0.0) -> Iterator[None]:
    """Keep other processes out of this work folder, for stages that are not made of parallel workers, waiting at most `wait` seconds.

    Raises `TryAgainError` where another process is at it, or has just finished, `MissingError` on a file system without locks.
    """
    busy = f"{workspace.out}: another process is working on exactly this; wait for it, then run the same command"
    # Not in the work folder: whoever finishes takes that away, and a lock on a file without a name keeps nobody out.
    with locked(work_root() / "locks" / f"{workspace.recipe.digest[:32]}.lock", busy=busy, wait=wait):
        if not (workspace.work / RECIPE_FILE).is_file():  # it finished and cleaned up between our `prepare` and now
            raise TryAgainError(busy)
        yield


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: temporary sibling, fsync, rename over whatever was there. Raises `MissingError`."""
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
    """As `write_bytes`, but create-only: says whether the name was free, and leaves alone what is there where it was not."""
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
    """Give a complete temporary file its final name unless that is taken; says whether it was free. `temporary` is gone after."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        temporary.unlink()
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # Without hard links there is no create-only rename of files; the window between the two calls is all that is lost.
        if path.exists():
            temporary.unlink()
            return False
        os.rename(temporary, path)
        return True
    temporary.unlink()
    return True


def temporary_name(path: Path) -> Path:
    """A name on the file system of `path` that no reader looks at: beside it, or beside the staging folder that it is in.

    Not in a staging folder: whoever publishes that would take a half-written file of a slower process along.
    """
    staging = next((folder for folder in path.parents if _is_staging(folder)), path)
    return staging.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def _is_staging(folder: Path) -> bool:
    return folder.name == _STAGING and (folder.parent / RECIPE_FILE).is_file() and folder.parent.parent.name == _WORK


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a published folder. Raises `DataError` when it is missing or not one."""
    path = folder / RECIPE_FILE
    content = read_object(path)
    return parse_recipe({name: value for name, value in content.items() if name not in (contents.FILES, contents.SEAL)}, path)


def _make_folder(path: Path) -> None:
    """Make it unless it is there; another process may take it away meanwhile, which pathlib takes for a file of that name."""
    for _ in range(100):
        try:
            return path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            if path.exists():  # a file, in truth
                raise
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _is_taken(out: Path) -> bool:
    return out.exists() and (not out.is_dir() or any(out.iterdir()))


def _holds(recipe: Recipe, out: Path) -> bool:
    with suppress(DataError):
        return read_recipe(out) == recipe
    return False


def _require_same(recipe: Recipe, out: Path) -> None:
    advice = "remove it or choose another --out"
    if not (out / RECIPE_FILE).is_file():
        raise UsageError(f"{out}: exists and was not made by this command; {advice}")
    try:
        changes = read_recipe(out).difference(recipe)
    except DataError as error:
        raise UsageError(f"{error}; {advice}") from None
    if changes:
        more = f" (and {len(changes) - 3} more)" if len(changes) > 3 else ""
        raise UsageError(f"{out}: exists and was made otherwise ({'; '.join(changes[:3])}{more}); {advice}")


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sweep(staging: Path) -> None:
    """Drop temporaries of killed writers."""
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
    """The work folder is on another file system: copy beside the final name first, so that the rename stays atomic."""
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
    """The name is taken: by the same result, which is fine, or by one that gives way in `room`."""
    if room is None or _holds(workspace.recipe, workspace.out):
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
    if not _holds(workspace.recipe, workspace.out):
        raise TryAgainError(f"{workspace.out}: appeared while this ran and holds something else; remove it and run the same command")


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's names, to disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def shown_name(output: Path) -> str:
    """The name of an output, of a classifier in a folder of its seed `ARM-SEED`."""
    return f"{output.parent.name}-{output.name}" if output.name.isdigit() and output.parent.name else output.name
