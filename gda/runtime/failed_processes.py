"""The exit code of a process as the error that it stands for, so that the parent process ends with the same code."""

import re
import signal
from collections.abc import Callable, Iterable

from gda.errors import DataError, GdaError, MissingError, RefusedError, TryAgainError, UsageError

FAILURE_VARIABLE = "GDA_FAILURE_FILE"  # environment: where a command that `gda run` started leaves its error and exit code
_KINDS: tuple[type[GdaError], ...] = (UsageError, DataError, RefusedError, MissingError, TryAgainError)
_DOCUMENTED = {kind.exit_code: kind for kind in _KINDS}
# Sent from outside: by an operator, a scheduler that wants the machine back, or a session that ends.
_FROM_OUTSIDE = frozenset({signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP})
# A mapped file whose disk is full, and a file beyond the limit of its size.
_OF_STORAGE = frozenset({signal.SIGBUS, signal.SIGXFSZ})
# How torchrun reports the first of its processes that failed, in the last such line of what it writes, and its own end by a signal.
_OF_TORCHRUN = re.compile(r"exitcode\s*:\s*(-?\d+)")
_TORCHRUN_ENDED = re.compile(r"SignalException: .*got signal: (\d+)")


def error_of(code: int, message: str, *, otherwise: Callable[[str], GdaError] = GdaError, out_of_memory: bool = False) -> GdaError:
    """The error of a process that ended with `code`: as `subprocess` gives it (-15) or a shell (143); 1 and the unknown are `otherwise`.

    A process stopped from outside (SIGTERM, SIGKILL, SIGINT, SIGHUP) is a `TryAgainError`; one killed for memory, a `MissingError`.
    """
    if out_of_memory:
        return MissingError(message)
    number = -code if code < 0 else code - 128 if 128 < code < 128 + signal.NSIG else None
    if number in _FROM_OUTSIDE:
        return TryAgainError(message)
    if number in _OF_STORAGE:
        return MissingError(message)
    kind: Callable[[str], GdaError] = _DOCUMENTED.get(code, otherwise)
    return kind(message)


def code_of_torchrun(lines: Iterable[str]) -> int | None:
    """The exit code of the process that failed first, as torchrun reports it (its own is 1); None if it reports none."""
    found = None
    for line in lines:
        if match := _OF_TORCHRUN.search(line):
            found = int(match[1])
        elif match := _TORCHRUN_ENDED.search(line):
            found = -int(match[1])
    return found
