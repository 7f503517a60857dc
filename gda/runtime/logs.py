"""Where messages go: stderr, as plain text or, with `--log-format json`, one JSON object per line."""

import json
import logging
import os
import sys
import time
from typing import TextIO

LOG_FORMATS = ("text", "json")
_FIELDS = ("stage", "step", "total", "unit", "rate", "loss", "remaining_seconds", "exit_code")


def set_up_logs(form: str | None = None) -> None:
    """Send gda's messages of level `GDA_LOG_LEVEL` (default info) and above to stderr; `form` is text or json, by default `GDA_LOG_FORMAT`.

    Child processes inherit the format. Calling it again changes the format alone.
    """
    if form is not None:
        os.environ["GDA_LOG_FORMAT"] = form
    logger = logging.getLogger("gda")
    level = os.environ.get("GDA_LOG_LEVEL", "info").upper()
    logger.setLevel(level if level in logging.getLevelNamesMapping() else "INFO")
    if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
        logger.addHandler(_Stderr())


def logs_are_json() -> bool:
    """Whether messages are JSON lines."""
    return os.environ.get("GDA_LOG_FORMAT") == "json"


def on_terminal() -> bool:
    """Whether a person reads stderr: then long work shows a bar, otherwise lines."""
    return not logs_are_json() and sys.stderr is not None and sys.stderr.isatty()


def last_message() -> float:
    """When the last message was written, on the clock `time.monotonic`."""
    return _Stderr.last


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to the stderr of the moment, so that redirecting it works."""

    last = 0.0

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        _Stderr.last = time.monotonic()
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        if logs_are_json():
            return _json_line(record)
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        stamp = "" if on_terminal() else time.strftime("%Y-%m-%d %H:%M:%S ", time.localtime(record.created))
        return f"{stamp}{level}{record.getMessage()}"


def _json_line(record: logging.LogRecord) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
    line = {"time": stamp, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
    return json.dumps(line | {name: value for name in _FIELDS if (value := getattr(record, name, None)) is not None})
