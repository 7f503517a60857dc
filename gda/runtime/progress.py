"""Progress of long work: a bar on a terminal; elsewhere a line at the start and at least every 30 seconds."""

import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from gda.runtime.logs import last_message, on_terminal

INTERVAL = 20.0  # seconds; `GDA_LOG_INTERVAL` overrides it
_log = logging.getLogger(__name__)
_sender: "Connection[Any, Any] | None" = None
_open: "Bar | None" = None
_observers: list[Callable[[dict[str, Any]], None]] = []


class Bar:
    """What a user sees of `total` units of work, fed by `tick` from this process or from workers. Bars do not nest.

    On a terminal it is a bar with rate and remaining time. Elsewhere a line says at the start what is worked on, with `about` (device,
    precision, images), and further lines at least every `INTERVAL` seconds how far it is. `shown=False` shows nothing.
    """

    def __init__(self, total: int, label: str, *, unit: str = "it", shown: bool = True, about: str = "") -> None:
        from tqdm import tqdm

        self.total, self.label, self.unit, self.about = total, label, unit, about
        self.done, self.loss, self._shown = 0, math.nan, shown
        self._started = False
        self._first: float | None = None  # when the first unit was done: what came before is not part of the rate
        self._bar = tqdm(total=total, desc=label, unit=unit, disable=not (shown and on_terminal()), dynamic_ncols=True, leave=False)

    def __enter__(self) -> "Bar":
        global _sender, _open
        receiver, _sender = Pipe(duplex=False)
        _open = self
        self._reader = threading.Thread(target=self._follow, args=(receiver,), daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        global _sender, _open
        assert _sender is not None
        _sender.close()
        self._reader.join(timeout=5)
        _sender = _open = None
        self._bar.close()

    def report(self) -> None:
        """Write how far the work is, as a line."""
        self._start()
        _log.info("%s: %s", self.label, self._progress(), extra=self._fields())

    def _follow(self, receiver: "Connection[Any, Any]") -> None:
        with receiver:
            while True:
                try:
                    message = json.loads(receiver.recv_bytes())
                except (EOFError, OSError):
                    return
                self._take(message)

    def _start(self) -> None:
        """Write what is worked on, once: not before the first unit is done, so that work that is refused at once leaves one line."""
        if self.about and self._shown and not self._started and not on_terminal():
            self._started = True
            _log.info("%s: %s, %s", self.label, self._units(self.total), self.about, extra=self._fields())

    def _take(self, message: dict[str, Any]) -> None:
        self._start()
        if self._first is None:
            self._first, self._before = time.monotonic(), self.done + message["count"]
        self.done += message["count"]
        self._bar.update(message["count"])
        if (loss := message.get("loss")) is not None:
            # A moving average over about twenty steps: single losses jump.
            self.loss = loss if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * loss
            self._bar.set_postfix(loss=f"{self.loss:.4g}", refresh=False)
        for observer in _observers:
            observer(message)

    def _progress(self) -> str:
        rate, seconds = self._rate(), self._remaining()
        parts = [f"{self.done:,} of {self._units(self.total)}"]
        parts += [f"{rate:.3g} per second"] if rate else []
        parts += [f"loss {self.loss:.4g}"] if not math.isnan(self.loss) else []
        parts += [f"{duration(seconds)} left"] if seconds is not None else []
        return ", ".join(parts)

    def _rate(self) -> float:
        elapsed = 0.0 if self._first is None else time.monotonic() - self._first
        return (self.done - self._before) / elapsed if elapsed > 0 and self.done > self._before else 0.0

    def _remaining(self) -> float | None:
        return (self.total - self.done) / rate if (rate := self._rate()) else None

    def _units(self, count: int) -> str:
        return f"{count:,} {self.unit}" + ("" if count == 1 or self.unit == "it" else "es" if self.unit.endswith("s") else "s")

    def _fields(self) -> dict[str, Any]:
        rate, seconds = self._rate(), self._remaining()
        return {
            "stage": self.label.split()[0],
            "step": self.done,
            "total": self.total,
            "unit": self.unit,
            "rate": round(rate, 4) or None,
            "loss": None if math.isnan(self.loss) else self.loss,
            "remaining_seconds": None if seconds is None else round(seconds),
        }


def tick(count: int = 1, *, loss: float | None = None, series: str = "", step: int | None = None) -> None:
    """Advance the open `Bar`, if there is one, by `count`; callable from workers.

    `loss` is the training loss of step `step` of the network called `series`.
    """
    if _sender is not None and count > 0:
        message: dict[str, Any] = {"count": count}
        message |= {"loss": loss, "series": series, "step": step} if loss is not None and math.isfinite(loss) else {}
        # One write of less than PIPE_BUF bytes, which is atomic: many processes share the pipe.
        _sender.send_bytes(json.dumps(message).encode())


def sender() -> "Connection[Any, Any] | None":
    """The end of the open bar's pipe, for a worker that was spawned and inherits nothing; see `send_to`."""
    return _sender


def send_to(connection: "Connection[Any, Any] | None") -> None:
    """Have `tick` in this process feed the bar of the process that gave `connection`."""
    global _sender
    _sender = connection


@contextmanager
def observed(observer: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Inside, `observer` gets every message of `tick`: count, and where there is a loss its series and step."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


@contextmanager
def reporting(label: str, *, shown: bool = True) -> Iterator[None]:
    """Inside, no `INTERVAL` passes without a line off a terminal: that of the open bar, or how long `label` has been at work."""
    stop, began = threading.Event(), time.monotonic()

    def watch() -> None:
        interval = _interval()
        while not stop.wait(min(1.0, interval / 4)):
            if time.monotonic() - max(last_message(), began) >= interval:
                if (bar := _open) is not None and bar._shown:
                    bar.report()
                else:
                    _log.info("%s: at work for %s", label, duration(time.monotonic() - began), extra={"stage": label})

    if not shown or on_terminal():
        yield
        return
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def duration(seconds: float) -> str:
    """A duration as people say it: 42 s, 3 min 5 s, 2 h 10 min, 3 d 4 h."""
    whole = round(seconds)
    for size, unit, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def _interval() -> float:
    try:
        return max(0.05, float(os.environ.get("GDA_LOG_INTERVAL", INTERVAL)))
    except ValueError:
        return INTERVAL
