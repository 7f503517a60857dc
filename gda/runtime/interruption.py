"""Whether a signal has stopped this process.

The interruption is a `KeyboardInterrupt`, wherever the process is. In the middle of a library that is not written in Python it may come
out as an error of that library, which then says of a sound file that it is none. Code that turns errors into ours checks here first.
"""

import signal
import threading
from types import FrameType

_stopped = threading.Event()


def end_on_signals() -> None:
    """From now on SIGTERM and SIGINT interrupt this process; does nothing outside the first thread."""
    _stopped.clear()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, or somebody else's
            signal.signal(signal.SIGINT, _interrupt)


def ignore_signals() -> None:
    """From now on no signal interrupts this process: its work is done, and it only has to end."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def stop_requested() -> bool:
    """Whether a signal to end has come, whatever became of the exception that it raised."""
    return _stopped.is_set()


def require_not_stopped() -> None:
    """Raises `KeyboardInterrupt` where a signal to end has come."""
    if _stopped.is_set():
        raise KeyboardInterrupt


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    _stopped.set()
    raise KeyboardInterrupt
