"""A note of each stage at work, written before it publishes: if its process is killed, its run can be kept later from the note."""

import hashlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gda.errors import GdaError, TryAgainError
from gda.io.atomic import shown_name, write_bytes
from gda.io.locks import locked
from gda.tracking.published import MARKERS, PUBLISHED, published_outcome
from gda.tracking.runs import keep, record
from gda.tracking.secrets import masked

STARTED = "started"  # in the folder of kept runs


@dataclass(frozen=True, kw_only=True)
class Started:
    """A stage at work: the path of its output and the fields of its run. `before` is the digest of what is already published there."""

    stage: str
    output: str
    params: Mapping[str, Any]
    datasets: Mapping[str, str]  # context -> path of a snapshot
    before: str | None
    began: float | None = None

    @classmethod
    def of(cls, stage: str, output: Path, *, params: Mapping[str, Any], datasets: Mapping[str, Path]) -> "Started":
        """Describe a stage that is about to run."""
        paths = {role: str(path) for role, path in datasets.items()}
        clean = {name: masked(value) if isinstance(value, str) else value for name, value in params.items()}
        return cls(
            stage=stage, output=str(output.absolute()), params=clean, datasets=paths, before=_published(stage, output), began=time.time()
        )

    @contextmanager
    def written(self, folder: Path) -> Iterator[None]:
        """Keep a note of it in `folder` while the body runs, and after a failure of the body that came later than what it published.

        Raises `MissingError` where the note cannot be written.
        """
        path = folder / STARTED / f"{secrets.token_hex(16)}.json"
        lock = path.with_suffix(".lock")
        with locked(lock, busy=f"{lock}: held by another process"):
            write_bytes(path, json.dumps(asdict(self), default=str).encode())
            try:
                yield
            except BaseException:
                if _published(self.stage, Path(self.output)) == self.before:
                    _forget(path)
                raise
            _forget(path)


def settle(folder: Path) -> None:
    """Keep the runs of processes that were killed between publishing and keeping them; notes of those that published nothing go."""
    for path in sorted((folder / STARTED).glob("*.json")):
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(path.with_suffix(".lock"), busy="still at work"))
            except TryAgainError:
                continue
            if path.is_file():  # else its process has ended meanwhile
                _keep_published(path, folder)
                _forget(path)


def _keep_published(path: Path, folder: Path) -> None:
    try:
        begun = Started(**json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        return  # cut short: it was killed before it began to work
    out = Path(begun.output)
    if _published(begun.stage, out) in (None, begun.before):
        return
    try:
        outcome = published_outcome(begun.stage, out, dict(begun.params))
    except (GdaError, KeyError):
        return  # damaged since; the stages that read it report that
    datasets = {role: (given, digest) for role, given in begun.datasets.items() if (digest := snapshot_digest(Path(given)))}
    ended = _marker(begun.stage, out).stat().st_mtime
    name = f"{begun.stage} {shown_name(out)}"
    run = record(begun.stage, name, outcome, params=begun.params, datasets=datasets, ended=ended, began=begun.began)
    keep(run, folder)


def snapshot_digest(path: Path) -> str:
    """Digest of the snapshot at `path`; empty where there is none."""
    try:
        return str(json.loads((path / "snapshot.json").read_text("utf-8"))["digest"])
    except (OSError, ValueError, KeyError):
        return ""


def _marker(stage: str, out: Path) -> Path:
    return out / MARKERS.get(stage, PUBLISHED)


def _published(stage: str, out: Path) -> str | None:
    try:
        return hashlib.sha256(_marker(stage, out).read_bytes()).hexdigest()
    except OSError:
        return None


def _forget(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_suffix(".lock").unlink(missing_ok=True)
