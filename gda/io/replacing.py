"""Results that give way to those of a later recipe: only what this program made, whole and with nothing added, and once the later is whole.

What gave way is kept in the work folder by its recipe, and taken back where that is asked for again.
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
from gda.artifacts.fingerprint import Recipe
from gda.errors import DataError, UsageError
from gda.io.locks import locked
from gda.io.publish import RECIPE_FILE, TEMPORARY_SUFFIX, Workspace, prepare, read_recipe, sync, temporary_name, work_root
from gda.runtime.disks import storage_errors

_WAIT = 30.0  # seconds for another process, which only renames a folder
ADVICE = "move it away, or choose another --out"


@dataclass(frozen=True, kw_only=True)
class Own:
    """What may give way: results of `stage` whose recipe has these fields of `config`."""

    stage: str
    config: Mapping[str, Any]

    def require(self, folder: Path) -> None:
        """Raises `UsageError` or `DataError`, in words, where `folder` holds anything but such a result, every file as it was written."""
        if not (folder / RECIPE_FILE).is_file():
            raise UsageError(f"{folder}: exists and was not made by this command; {ADVICE}")
        recipe = read_recipe(folder)
        found = {"stage": recipe.stage} | recipe.config
        for name, value in {"stage": self.stage, **self.config}.items():
            if found.get(name) != value:
                raise UsageError(f"{folder}: exists and is of {name} {found.get(name)}, not {value}; {ADVICE}")
        listed = contents.recorded_files(folder)
        if listed is None:
            raise UsageError(f"{folder}: was made by an earlier version, which did not list its files; {ADVICE}")
        contents.require_whole(folder, advice=f"remove {folder} and run the same command")
        if added := sorted(_every_file(folder) - listed.keys() - {RECIPE_FILE}):
            raise UsageError(f"{folder / added[0]}: was not made by this command; {ADVICE}")

    @contextmanager
    def giving_way(self, folder: Path) -> Iterator[None]:
        """Inside, the name `folder` is free for what takes its place; what was there is put back where the body fails.

        Raises as `require` does, and `TryAgainError` where another process is at it.
        """
        lock = work_root() / "locks" / f"{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:32]}.lock"
        with locked(lock, busy=f"{folder}: another process is replacing it; run the same command again", wait=_WAIT):
            if not folder.exists() or not any(folder.iterdir()):
                yield
                return
            self.require(folder)
            kept, beside = _kept_folder(read_recipe(folder)), temporary_name(folder)
            try:
                with storage_errors(folder):
                    _set_aside(folder, kept, beside)
                yield
            except BaseException:
                for aside in (kept, beside):
                    if aside.exists() and not folder.exists():
                        os.rename(aside, folder)
                raise
            sync(folder.parent)
            shutil.rmtree(beside, ignore_errors=True)

    def remove(self, folder: Path) -> None:
        """Take `folder` away, as one that gives way to nothing. Raises as `giving_way` does."""
        with self.giving_way(folder):
            pass


def begin(recipe: Recipe, out: Path, own: Own | None) -> Workspace:
    """As `prepare`, where what `own` names may give way; a result of `recipe` that once gave way itself is taken back.

    Raises as `prepare` and `Own.giving_way` do.
    """
    if own is None:
        return prepare(recipe, out)
    workspace = prepare(recipe, out, may_replace=own.require)
    if workspace.finished or not _take_back(workspace, own):
        return workspace
    shutil.rmtree(workspace.work, ignore_errors=True)
    return prepare(recipe, out)


def kept_result(recipe: Recipe) -> Path | None:
    """The result of `recipe` that has given way to another, every file as it was written; None where there is none."""
    folder = _kept_folder(recipe)
    with suppress(DataError):
        if read_recipe(folder) == recipe and not contents.damaged_files(folder):
            return folder
    return None


def drop_unfinished(folder: Path) -> None:
    """Remove from `folder` what killed processes had half copied into it, or half removed."""
    for left in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        shutil.rmtree(left, ignore_errors=True)


def _take_back(workspace: Workspace, own: Own) -> bool:
    """Whether the result of this recipe was kept and is now at `out` again."""
    kept, out = kept_result(workspace.recipe), workspace.out
    if kept is None:
        return False
    try:
        with storage_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        with own.giving_way(out):
            os.rename(kept, out)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EXDEV):  # another process took it, or it is on another file system
            raise
        return False
    return True


def _kept_folder(recipe: Recipe) -> Path:
    return work_root() / "replaced" / recipe.digest[:32]


def _set_aside(folder: Path, kept: Path, beside: Path) -> None:
    """Rename it to `kept`, in the work folder; to the hidden name `beside` where that is on another file system."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(kept, ignore_errors=True)
    try:
        os.rename(folder, kept)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        os.rename(folder, beside)


def _every_file(folder: Path) -> set[str]:
    """Every file and link in the folder, hidden ones among them, as POSIX paths."""
    found = set()
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if Path(root, name).is_symlink()]
        found |= {Path(root, name).relative_to(folder).as_posix() for name in (*files, *links)}
    return found
