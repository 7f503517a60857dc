"""A round: a command disturbed some times, then let through; what it leaves must be what an undisturbed one leaves, logged once."""

import errno
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from kill_chain import ACCEPTED, OUT, Command, enter, log_of, place_next_to
from killing import CALLS, KILLED, failing_at, killed_at, start
from trees import tree

from gda.errors import MissingError, TryAgainError
from gda.io.atomic import TEMPORARY_SUFFIX
from gda.tracking.sqlite import ensure_database

KILLS = ("at a call", "at a moment", "after publishing")
MODES = (*KILLS, "stopped by a signal", "failing disk")
_MOST = 4  # disturbances in a row
_GRACE = 30.0  # seconds to stop in after a signal: what Kubernetes gives a pod
_EARLY = 0.8  # of the time an undisturbed command takes: later ones are faster, their files being in memory
_DISK = (errno.ENOSPC, errno.EROFS, errno.EIO)
_PATIENCE = 30.0  # seconds for what the processes of a killed command still hold
_LIMIT = 180.0  # seconds for a command, many times what any of them takes
_LOOK = 0.002  # seconds between two looks at a process
_QUERIES = {
    "runs": "select r.name, r.status, r.lifecycle_stage, t.value from runs r"
    " left join tags t on t.run_uuid = r.run_uuid and t.key = 'gda.digest' where r.status not in ('KILLED', 'FAILED')",
    "versions": "select v.name, v.version, t.value from model_versions v"
    " left join model_version_tags t on t.name = v.name and t.version = v.version and t.key = 'gda.digest'",
    "aliases": "select name, alias, version from registered_model_aliases",
}
_NEXT = ["recipes"]  # the next command of any kind, by which kept runs are logged


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What an undisturbed run leaves, and how long its way there is: in calls that make bytes last, and in seconds."""

    files: dict[str, str]
    logged: dict[str, list[Any]]
    calls: int
    calls_before_publishing: int
    seconds: float
    seconds_before_publishing: float


@dataclass(kw_only=True)
class Round:
    """How one ended; `faults` is empty where all is as it should be."""

    command: str
    mode: str
    times: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Grounds:
    """Where rounds are held: `chain` has every input, `database` is MLflow's without content, places are made in `root`."""

    root: Path
    chain: Path
    database: Path

    def place(self, command: Command, name: str) -> Path:
        """A new folder to run `command` in."""
        place = place_next_to(self.chain, self.root / name)
        if command.database:
            shutil.copy(self.database, place / "mlflow.db")
        return place


def make_database(path: Path) -> Path:
    """MLflow's tables without content; returns `path`."""
    child = start(lambda: ensure_database(f"sqlite:///{path}"))
    if _end(child, _LIMIT) != 0:
        raise RuntimeError(f"{path}: MLflow's database was not made")
    return path


def undisturbed(command: Command, grounds: Grounds) -> Expected:
    """Run a command once and see what it leaves; raises `RuntimeError` where it fails."""
    place = grounds.place(command, f"undisturbed {command.name}")
    calls = place / "calls"
    begun = time.monotonic()
    child = start(_counted(lambda: enter(command.under_test(), place), calls, place / OUT))
    published = _wait_until(child, (place / OUT).exists) or time.monotonic()
    status = _end(child, _LIMIT)
    ended = time.monotonic()
    if status or (fault := _logged_by_the_next(place)):
        raise RuntimeError(f"{command.name} ended with {status}: {fault if not status else log_of(place)}")
    made = calls.read_text().split()
    expected = Expected(
        files=files(place),
        logged=logged(place / "mlflow.db"),
        calls=len(made),
        calls_before_publishing=made.count("before"),
        seconds=ended - begun,
        seconds_before_publishing=published - begun,
    )
    shutil.rmtree(place)
    return expected


def hold(command: Command, expected: Expected, grounds: Grounds, *, number: int, mode: str) -> Round:
    """Disturb a command between once and four times in a row, let it through, and compare; its place stays where there are faults."""
    place = grounds.place(command, f"{command.name} {mode} {number}")
    chance = random.Random(f"{command.name} {mode} {number}")
    result = Round(command=command.name, mode=mode)
    for _ in range(chance.randint(1, _MOST)):
        disturb = {"stopped by a signal": _tell, "failing disk": _fail}.get(mode, _kill)
        status = disturb(command, expected, place, chance, mode)
        if status == 0:
            break  # it had come to its end
        result.times += 1
        if status not in _ENDS[mode]:
            result.faults.append(f"ended with {status}: {log_of(place)}")
        if (place / OUT).exists() and (wrong := _difference(expected.files, files(place), whole=not command.gradual)):
            result.faults.append(f"differs when killed: {wrong}")
    if fault := _let_through(lambda: enter(command.under_test(), place), place):
        result.faults.append(f"stuck: {fault}")
    elif fault := _logged_by_the_next(place):
        result.faults.append(f"stuck: the next command: {fault}")
    else:
        if wrong := _difference(expected.files, files(place)):
            result.faults.append(f"differs: {wrong}")
        if (found := logged(place / "mlflow.db")) != expected.logged:
            result.faults.append(f"logged {found}, not {expected.logged}: {log_of(place)}")
        if left := [path.name for path in place.glob(f".{OUT}*")] + [path.name for path in (place / ".gda").glob("unlogged/**/*.json")]:
            result.faults.append(f"left behind: {', '.join(left)}")
    if not result.faults:
        shutil.rmtree(place)
    return result


def files(place: Path) -> dict[str, str]:
    """What a command wrote in `place`, by path."""
    found = {}
    for name in (OUT, ACCEPTED):
        found |= {f"{name}/{path}": content for path, content in tree(place / name).items()}
    return found


def logged(database: Path) -> dict[str, list[Any]]:
    """What MLflow has: runs with name, status and digest, versions of models with name and digest, and aliases.

    Without runs of status KILLED or FAILED: an interrupted attempt to register is reported as one, and the version is another run's.
    """
    if not database.is_file():
        return {}
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        return {name: sorted(map(list, connection.execute(query)), key=str) for name, query in _QUERIES.items()}


_AGAIN, _ENVIRONMENT = TryAgainError.exit_code, MissingError.exit_code
# If a worker or the logging process is killed, the command reports that it should be tried again.
_ENDS = dict.fromkeys(KILLS, (-signal.SIGKILL, KILLED, _AGAIN)) | {
    "stopped by a signal": (_AGAIN, -signal.SIGTERM),  # the second before it has begun
    "failing disk": (_ENVIRONMENT, _AGAIN),
}


def _tell(command: Command, expected: Expected, place: Path, chance: random.Random, _: str) -> int:
    """The exit status of a command that got SIGTERM at some moment."""
    child = start(lambda: enter(command.under_test(), place))
    _wait_until(child, _after(chance.uniform(0, _EARLY * expected.seconds)))
    os.kill(child, signal.SIGTERM)
    return _end(child, _GRACE)


def _fail(command: Command, expected: Expected, place: Path, chance: random.Random, _: str) -> int:
    """The exit status of a command for which the disk failed once."""
    number = chance.choice(_DISK)
    error = OSError(number, os.strerror(number))
    return _end(start(failing_at(chance.randint(1, expected.calls), error, action=lambda: enter(command.under_test(), place))), _LIMIT)


def _kill(command: Command, expected: Expected, place: Path, chance: random.Random, mode: str) -> int:
    """The exit status of a command that was killed; 0 where it had come to its end before."""

    def action() -> None:
        enter(command.under_test(), place)

    late = mode == "after publishing"
    first = expected.calls_before_publishing + 1 if late else 1
    if mode == "at a call" or (late and expected.calls >= first and chance.random() < 0.5):
        number = chance.randint(first, max(first, expected.calls))
        return _end(start(killed_at(number, after=chance.random() < 0.5, action=action)), _LIMIT)
    child = start(action)
    if late:
        _wait_until(child, (place / OUT).exists)
        _wait_until(child, _after(chance.uniform(0, expected.seconds - expected.seconds_before_publishing)))
    else:
        _wait_until(child, _after(chance.uniform(0, _EARLY * expected.seconds)))
    os.kill(child, signal.SIGKILL)
    return _end(child, _LIMIT)


def _let_through(action: Callable[[], Any], place: Path) -> str:
    """Run to the end, again while it reports that others are still at work; returns what went wrong, or nothing."""
    patience = time.monotonic() + _PATIENCE
    while (status := _end(start(action), _LIMIT)) == _AGAIN and time.monotonic() < patience:
        time.sleep(0.5)
    return f"ended with {status}: {log_of(place)}" if status else ""


def _logged_by_the_next(place: Path) -> str:
    return _let_through(lambda: enter(_NEXT, place), place)


def _difference(expected: dict[str, str], found: dict[str, str], *, whole: bool = True) -> str:
    """Which files are other than expected; where it is not the `whole` yet, some may be missing, or there under a temporary name."""
    seen = found if whole else {name: content for name, content in found.items() if not name.endswith(TEMPORARY_SUFFIX)}
    other = sorted(name for name in (expected.keys() if whole else set()) | seen.keys() if expected.get(name) != seen.get(name))
    return f"{len(other)} files, {other[0]}: {found.get(other[0], 'missing')!r}, not {expected.get(other[0], 'there')!r}" if other else ""


def _counted(action: Callable[[], Any], calls: Path, out: Path) -> Callable[[], Any]:
    """`action`, which writes a word to `calls` for each of CALLS: whether it was made before or after `out` was there."""

    def wrapped() -> None:
        file = open(calls, "ab", buffering=0)  # noqa: SIM115 - the process ends with it open
        own_pid = os.getpid()
        real = {name: getattr(os, name) for name in CALLS}

        def counting(name: str) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                if os.getpid() == own_pid:  # its workers are not killed at their calls
                    file.write(b"after\n" if out.exists() else b"before\n")
                return real[name](*arguments, **options)

            return call

        for name in CALLS:
            setattr(os, name, counting(name))
        action()

    return wrapped


def _after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def _running(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _wait_until(child: int, reached: Callable[[], bool]) -> float | None:
    """Wait for something while a process runs; when it came, None where the process ended before."""
    while _running(child):
        if reached():
            return time.monotonic()
        time.sleep(_LOOK)
    return None


def _end(child: int, seconds: float) -> int:
    """The exit status of a process; that of SIGALRM where it took too long and was killed for it."""
    slow = _wait_until(child, _after(seconds)) is not None
    if slow:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return -signal.SIGALRM if slow else status


def rounds(commands: tuple[Command, ...]) -> Iterator[tuple[int, Command, str]]:
    """Every command in every mode, over and over: number, command, mode."""
    for number in count():
        turn, place = divmod(number, len(commands))
        yield number, commands[place], MODES[(turn + place) % len(MODES)]
