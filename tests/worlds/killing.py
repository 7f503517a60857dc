"""Processes that die or are stopped at chosen calls. Each is a fork, so that imports and loaded data cost nothing."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

KILLED = 99
# Every call by which bytes become lasting or visible.
CALLS = ("fsync", "rename", "replace", "link", "unlink")


def start(action: Callable[[], Any], codes: dict[type[BaseException], int] | None = None) -> int:
    """Run in a forked process and return its id; it exits with 0, with the code of an exception in `codes`, or with 1."""
    child = os.fork()
    if child:
        return child
    try:
        action()
    except BaseException as error:
        code = next((code for kind, code in (codes or {}).items() if isinstance(error, kind)), 1)
        if code == 1:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(code)
    os._exit(0)


def wait(child: int) -> int:
    """The exit status of a process of `start`; negative where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_child(action: Callable[[], Any]) -> int:
    """Run in a forked process; its exit status: 0 done, KILLED where it was killed."""
    return wait(start(action))


def killed_at(number: int, *, after: bool, action: Callable[[], Any]) -> Callable[[], Any]:
    """`action`, in which the process dies right before (or after) the `number`-th of CALLS, with no chance to clean up."""
    return _at(number, after=after, what=lambda: os._exit(KILLED), action=action)


def failing_at(number: int, error: OSError, *, action: Callable[[], Any]) -> Callable[[], Any]:
    """`action`, in which the `number`-th of CALLS raises `error` in place of what it does."""

    def fail() -> None:
        raise error

    return _at(number, after=False, what=fail, action=action)


def stopped_at(number: int, *, action: Callable[[], Any]) -> Callable[[], Any]:
    """`action`, in which the process stops right before the `number`-th of CALLS until it gets SIGCONT."""
    return _at(number, after=False, what=lambda: os.kill(os.getpid(), signal.SIGSTOP), action=action)


def _at(number: int, *, after: bool, what: Callable[[], Any], action: Callable[[], Any]) -> Callable[[], Any]:
    def wrapped() -> None:
        count = 0
        real = {name: getattr(os, name) for name in CALLS}

        def counting(name: str) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                here = count == number
                if here and not after:
                    what()
                try:
                    return real[name](*arguments, **options)
                finally:
                    if here and after:
                        what()

            return call

        for name in CALLS:
            setattr(os, name, counting(name))
        action()

    return wrapped
