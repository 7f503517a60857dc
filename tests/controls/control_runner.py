"""Takes out one safeguard after the other, in a copy of the project, and runs the tests that must notice.

`python tests/controls/control_runner.py [--row N ...]` prints a table; it exits with 1 where a named test still passes.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from control import ROOT, Control
from safeguards import CONTROLS

_ENDED = re.compile(r"^(?:FAILED|ERROR) (\S+?)(?:\[.*)?(?: - .*)?$", re.MULTILINE)
_TESTS_FAILED = 1  # pytest's exit code; others say that tests could not be run
_SECONDS = 120  # for a test: where a safeguard against a hang is out, the test hangs


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What came of a control: the tests that failed, and why it shows nothing, empty where it does."""

    control: Control
    failed: tuple[str, ...]
    problem: str
    seconds: float


def copied(place: Path) -> Path:
    """The project's files, as they are now, in a folder of their own."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    return place


def try_control(control: Control, project: Path) -> Tried:
    """Run the tests of `control` in the copy `project` without the safeguard, which is put back."""
    path, began = project / control.file, time.monotonic()
    whole = path.read_text("utf-8")
    path.write_text(control.edited(whole), "utf-8")
    try:
        done = subprocess.run(_command(control), cwd=project, env=_environment(project), capture_output=True, text=True, check=False)
    finally:
        path.write_text(whole, "utf-8")
    found = set(_ENDED.findall(done.stdout))
    failed = tuple(test for test in control.tests if test in found)
    problem = ""
    if done.returncode != _TESTS_FAILED:
        problem = (
            "all tests pass" if done.returncode == 0 else f"pytest ended with {done.returncode}: {done.stdout[-300:]}{done.stderr[-300:]}"
        )
    elif missed := [test for test in control.tests if test not in failed]:
        problem = f"still passes: {', '.join(missed)}"
    return Tried(control=control, failed=failed, problem=problem, seconds=time.monotonic() - began)


def _command(control: Control) -> list[str]:
    options = ["-q", "--tb=no", "-rfE", "--durations=0", "-p", "no:cacheprovider", "-p", "no:xdist", f"--timeout={_SECONDS}"]
    return [sys.executable, "-m", "pytest", *options, *control.tests]


def _environment(project: Path) -> dict[str, str]:
    """Processes that tests start must import the copy too, whatever is installed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "GDA_", "MLFLOW_"))}
    return {**kept, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def line(tried: Tried) -> str:
    """A line of the table."""
    message = tried.problem or f"seen by {', '.join(test.rsplit('::', 1)[1] for test in tried.failed)}"
    return f"{tried.control.row:>3}  {tried.seconds:>4.0f} s  {tried.control.what}: {message}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a safeguard can be taken out and a named test does not notice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", type=int, nargs="*", help="rows of docs/reliability.md; all of them by default")
    args = parser.parse_args(arguments)
    chosen = [control for control in CONTROLS if args.row is None or control.row in args.row]
    unseen = 0
    with tempfile.TemporaryDirectory() as place:
        project = copied(Path(place))
        for control in chosen:
            tried = try_control(control, project)
            unseen += bool(tried.problem)
            print(line(tried), flush=True)
    print(f"{len(chosen)} safeguards taken out, {unseen} of them unnoticed")
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main())
