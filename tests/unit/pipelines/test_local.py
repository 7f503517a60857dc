"""Running a pipeline on this machine: what the process looks like afterwards."""

import builtins
import logging
from pathlib import Path
from typing import Any

import pytest

from pipelines import local


@pytest.mark.parametrize("failing", [False, True])
def test_the_process_prints_and_logs_as_before(failing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The local runner's threads put back each other's `print` and handlers, so that every later line would be indented."""

    def indented(*_words: Any, **_how: Any) -> None:
        raise AssertionError("printed by what a step's thread left behind")

    def pipeline(**_arguments: Any) -> None:
        builtins.print = indented
        logging.getLogger().handlers.clear()
        logging.getLogger().setLevel(logging.CRITICAL)
        if failing:
            raise RuntimeError("a step failed")

    monkeypatch.setattr(local, "build", lambda *_arguments: pipeline)
    printing, logger = builtins.print, logging.getLogger()
    monkeypatch.setattr(builtins, "print", printing)
    handlers, level = logger.handlers[:], logger.level
    try:
        assert local.run_pipeline("augment", {}, data_root=tmp_path / "data", outputs=tmp_path / "pages") is not failing
        assert builtins.print is printing
        assert (logger.handlers, logger.level) == (handlers, level)
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)
