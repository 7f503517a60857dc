"""The sample of `make kills`, in a process of its own: a process that ran other tests has their threads, and must not fork rounds."""

import os
import subprocess
import sys
from pathlib import Path

ALONE = Path(__file__).with_name("kills_alone.py")
ROOT = ALONE.parents[2]


def test_kills_alone() -> None:
    """Protects every promise that the same command goes on after a kill; see the tests of the file, which print what went wrong."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "GDA_", "MLFLOW_"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", str(ALONE)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
