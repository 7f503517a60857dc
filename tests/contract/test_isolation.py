"""State that a module of tests leaves behind never reaches the next module."""

import builtins
import os
import signal
from pathlib import Path

import mlflow
import pytest
import torch
from process_state import process_as_found

from gda.runtime.interruption import end_on_signals, stop_requested


def test_what_commands_set_is_put_back(tmp_path: Path, monkeypatch) -> None:
    """Whole commands and MLflow set up their process; tests run after others, in an order that no two runs share."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    place, handler = os.getcwd(), signal.getsignal(signal.SIGTERM)
    with process_as_found() as changed:
        os.environ["GDA_WORK_DIR"] = "elsewhere"
        os.chdir(tmp_path)
        end_on_signals()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/other.db")
    assert changed == []
    assert "GDA_WORK_DIR" not in os.environ
    assert not stop_requested(), "whatever the next test reads would end its process"
    assert (os.getcwd(), signal.getsignal(signal.SIGTERM)) == (place, handler)
    assert mlflow.get_tracking_uri() == os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:9"


def test_what_nothing_may_change_is_named(monkeypatch) -> None:
    """A library that prints otherwise, or a global setting of torch, is a defect of the test or of the product."""
    monkeypatch.setattr(builtins, "print", print)  # restored in any case
    with process_as_found() as changed:
        builtins.print = lambda *_, **__: None
        torch.use_deterministic_algorithms(True)
    torch.use_deterministic_algorithms(False)
    assert [text.split(":")[0] for text in changed] == ["print", "torch's deterministic algorithms"]
