"""Runs a format's reader over many mutated files, in a process with little memory and little time, and counts how each ended.

`python tests/fuzz/fuzz_runner.py [--inputs 5000] [--only NAME ...] [--keep FOLDER]` prints a table; it exits with 1 where a reader let
anything but a `GdaError` through, took more than 5 s, took 2 GiB, or where fewer than a fifth of the files could be read.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

from fuzz_formats import Format, formats
from fuzz_mutations import neighbours
from hypothesis import HealthCheck, Phase, given, seed, settings

from gda.errors import GdaError
from gda.runtime.parallel import single_threaded

SECONDS, MEMORY = 5.0, 2 << 30
_STUCK = 60.0  # seconds without a sign of life after which a process is killed: it hangs outside Python
LEAST_PARSED = 0.2


class HangError(BaseException):
    """A reader took more than its time."""


@dataclass(kw_only=True)
class Count:
    """How the files of one format ended; `escapes` by what escaped, with the file that was kept of the first of them."""

    name: str
    inputs: int = 0
    parsed: int = 0
    hangs: int = 0
    slowest: float = 0.0  # seconds of CPU
    peak: int = 0  # bytes
    escapes: dict[str, int] = field(default_factory=dict)

    @property
    def fine(self) -> bool:
        """Whether nothing escaped, hung or grew, and enough could be read."""
        enough = self.inputs and self.parsed / self.inputs >= LEAST_PARSED
        return bool(enough and not self.escapes and not self.hangs and self.slowest <= SECONDS and self.peak < MEMORY)

    def row(self) -> str:
        """A line of the table."""
        share = 100 * self.parsed / max(1, self.inputs)
        escapes = sum(self.escapes.values())
        return f"{self.name:<46} {self.inputs:>7} {share:>8.1f} {escapes:>8} {self.hangs:>6} {self.slowest:>9.2f} {self.peak / 2**20:>9.0f}"


HEADER = f"{'format':<46} {'inputs':>7} {'parsed %':>8} {'escapes':>8} {'hangs':>6} {'slowest s':>9} {'peak MiB':>9}"


def run_limited(form: Format, inputs: int, *, number: int = 0, keep: Path | None = None) -> Count:
    """`inputs` files of a format in a forked process of its own, killed where it shows no sign of life."""
    with tempfile.TemporaryDirectory() as place:
        result, folder = Path(place) / "count.json", Path(place) / "world"
        folder.mkdir()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
                    _limit()
                    _count(form, inputs, number, folder, result, keep)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        status = _follow(child, result)
        count = Count(**json.loads(result.read_text())) if result.is_file() else Count(name=form.name)
        if status:
            _keep(folder / form.file, keep, form, "ended")
            name = "hang" if status == -signal.SIGKILL else f"process ended with {status}"
            count.escapes[name] = count.escapes.get(name, 0) + 1
        return count


def _follow(child: int, result: Path) -> int:
    last, since = None, time.monotonic()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        stamp = result.stat().st_mtime_ns if result.is_file() else 0
        if stamp != last:
            last, since = stamp, time.monotonic()
        elif time.monotonic() - since > _STUCK:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.05)


def _limit() -> None:
    single_threaded()
    warnings.simplefilter("ignore")
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    for kind in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(kind, _hang)


def _hang(_signal: int, _frame: FrameType | None) -> None:
    raise HangError


def _count(form: Format, inputs: int, number: int, folder: Path, result: Path, keep: Path | None) -> None:
    form.world(folder)
    for data in form.seeds:  # what libraries import when first used is no part of a file's time; and every seed must be valid
        (folder / form.file).write_bytes(data)
        form.read(folder)
    count = Count(name=form.name)
    reported = 0.0

    @seed(number)
    @settings(max_examples=inputs, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(neighbours(form.seeds, form.harsh, form.gentle))
    def one(data: bytes) -> None:
        nonlocal reported
        (folder / form.file).write_bytes(data)
        if time.monotonic() - reported > 1:
            reported = time.monotonic()
            result.write_text(json.dumps(asdict(count)))
        _read(form, folder, count, keep)

    one()
    count.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result.write_text(json.dumps(asdict(count)))


def _read(form: Format, folder: Path, count: Count, keep: Path | None) -> None:
    count.inputs += 1
    began = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 6 * SECONDS)  # waiting counts too, but other processes' turns on this CPU do not
    try:
        form.read(folder)
        count.parsed += 1
    except GdaError:
        pass
    except HangError:
        count.hangs += 1
        _keep(folder / form.file, keep, form, f"hang-{count.hangs}")
    except Exception as error:
        name = _named(error)
        if name not in count.escapes:
            _keep(folder / form.file, keep, form, f"escape-{len(count.escapes)}")
        count.escapes[name] = count.escapes.get(name, 0) + 1
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    count.slowest = max(count.slowest, time.process_time() - began)


def _named(error: Exception) -> str:
    """What escaped, and from which line of ours."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/gda/" in frame.filename]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    return f"{type(error).__name__} at {where}: {str(error)[:80]}"


def _keep(file: Path, keep: Path | None, form: Format, what: str) -> None:
    if keep is not None and file.is_file():
        keep.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, keep / f"{form.name.replace('/', '_').replace(' ', '-')}.{what}.{file.name}")


def main() -> int:
    """Print the table; 1 where a format is not fine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=5000, help="files per format")
    parser.add_argument("--only", nargs="*", help="formats whose name begins with one of these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files that escaped or hung")
    args = parser.parse_args()
    print(HEADER, flush=True)
    fine = True
    for form in formats():
        if args.only and not any(form.name.startswith(name) for name in args.only):
            continue
        count = run_limited(form, args.inputs, number=args.seed, keep=args.keep)
        print(count.row(), flush=True)
        for name, times in count.escapes.items():
            print(f"    {times} x {name}", flush=True)
        fine = fine and count.fine
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
