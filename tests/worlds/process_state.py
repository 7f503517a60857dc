"""State that one test may leave behind for the next in the same process, and how it is restored."""

import builtins
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gda.runtime import interruption

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGPROF)


@contextmanager
def process_as_found() -> Iterator[list[str]]:
    """Put back what whole commands set for the life of a process: environment, directory, signals and what came of them, MLflow's server.

    In the end the list names what was changed that nothing may change: printing, the root logger, torch's settings, an MLflow run that is
    still active.
    """
    environment, place = dict(os.environ), os.getcwd()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    before = _fixed()
    changed: list[str] = []
    yield changed
    _forget_mlflow(changed)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(place)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    interruption._stopped.clear()
    for name, value in _fixed().items():
        if value != before[name]:
            changed.append(f"{name}: {before[name]!r} became {value!r}")
    builtins.print = before["print"]


def _fixed() -> dict[str, Any]:
    return {
        "print": builtins.print,
        "the root logger": logging.getLogger().handlers[:],
        "torch's default dtype": torch.get_default_dtype(),
        "torch's gradients": torch.is_grad_enabled(),
        "torch's deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch's precision of products": torch.get_float32_matmul_precision(),
    }


def _forget_mlflow(changed: list[str]) -> None:
    mlflow = sys.modules.get("mlflow")
    if mlflow is None:
        return
    while (run := mlflow.active_run()) is not None:
        changed.append(f"an MLflow run is still active: {run.info.run_name}")
        mlflow.end_run()
    mlflow.set_tracking_uri(None)
