"""Whether a signal has stopped this process.

The interruption is a `KeyboardInterrupt`. Inside a library that is not written in Python, it may surface as that library's own error,
for example that a sound file is damaged. Code that converts errors therefore checks here first.
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
    """From now on no signal interrupts this process: its work is done, and it only has to exit."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def stop_requested() -> bool:
    """Whether a signal to stop has arrived, even if its exception was caught."""
    return _stopped.is_set()


def require_not_stopped() -> None:
    """Raises `KeyboardInterrupt` if a signal to stop has arrived."""
    if _stopped.is_set():
        raise KeyboardInterrupt


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    _stopped.set()
    raise KeyboardInterrupt
