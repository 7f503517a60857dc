"""Exit codes of processes that we start become ours."""

import signal
import sys
from pathlib import Path

import pytest

from gda.errors import DataError, GdaError, MissingError, RefusedError, TryAgainError, UsageError
from gda.runtime.failed_processes import code_of_torchrun, error_of
from gda.steps import processes

CODES = [
    (1, GdaError), (2, UsageError), (3, DataError), (4, RefusedError), (5, MissingError), (75, TryAgainError), (7, GdaError),
    (-signal.SIGTERM, TryAgainError), (128 + signal.SIGTERM, TryAgainError), (-signal.SIGKILL, TryAgainError), (137, TryAgainError),
    (130, TryAgainError), (-signal.SIGBUS, MissingError), (-signal.SIGSEGV, GdaError), (139, GdaError), (134, GdaError),
]  # fmt: skip


@pytest.mark.parametrize(("code", "kind"), CODES)
def test_every_code_has_its_error(code: int, kind: type[GdaError]) -> None:
    """Guards anyone who acts on the code: bad data is not tried again, an interruption is, and a defect stays 1."""
    error = error_of(code, "what the child printed")
    assert type(error) is kind
    assert str(error) == "what the child printed"


def test_killed_for_memory_is_no_interruption() -> None:
    """Guards against trying for ever what cannot fit."""
    assert type(error_of(137, "x", out_of_memory=True)) is MissingError


def test_the_first_failure_of_torchrun_counts() -> None:
    """Guards against the code of a process that only followed; without any such line there is none."""
    lines = ["Failures:", "  exitcode  : 1 (pid: 5)", "Root Cause (first observed failure):", "  exitcode  : -9 (pid: 4)"]
    assert code_of_torchrun(lines) == -9
    assert code_of_torchrun(["torch...SignalException: Process 7 got signal: 15"]) == -15
    assert code_of_torchrun(["gda finetune: no"]) is None


@pytest.mark.parametrize(("code", "kind"), [(5, MissingError), (75, TryAgainError)])
def test_processes_under_torchrun(code: int, kind: type[GdaError], tmp_path: Path) -> None:
    """Guards the way from a process under the real torchrun to the step: its sentence and its code, though torchrun ends with 1."""
    script = tmp_path / "child.py"
    script.write_text(f"import sys\nprint('gda finetune: what is wrong', file=sys.stderr, flush=True)\nsys.exit({code})\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", str(script)]
    with pytest.raises(GdaError, match=r"^what is wrong$") as caught:
        processes._launch(command)
    assert type(caught.value) is kind
