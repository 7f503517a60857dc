"""Stopped by a signal, a command says so (75), even where a library has made another error of the interruption."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from gda.cli.main import main
from gda.config.load import Config
from gda.data.images.pillow import faults_of_the_file
from gda.errors import DataError, TryAgainError
from gda.gate.inspection import Inspection
from gda.registry import gate
from gda.runtime.interruption import end_on_signals, stop_requested
from gda.runtime.reading import parser
from gda.steps.form import step_settings
from gda.steps.step import run_step

ROOT = Path(__file__).resolve().parents[3]


def swallowing(number: signal.Signals = signal.SIGTERM) -> None:
    """As a library that is not written in Python: stopped by a signal inside a call of it, it raises an error of its own."""
    try:
        os.kill(os.getpid(), number)
        time.sleep(5)
    except KeyboardInterrupt:
        raise ValueError("could not determine the shape") from None


def _parse() -> None:
    with parser("model.safetensors", "a whole file"):
        swallowing()


def _decode() -> None:
    with faults_of_the_file(b"", "a.png"):
        swallowing()


def _check() -> None:
    Inspection(subjects=None).attempt("FID", swallowing)  # type: ignore[arg-type]


@pytest.fixture
def listening() -> None:
    """This process is one that a command runs in."""
    end_on_signals()


@pytest.mark.parametrize("call", [_parse, _decode, _check])
def test_an_interruption_is_no_fault_of_a_file_and_no_verdict(listening: None, call: Callable[[], None]) -> None:
    """A sound file would be called damaged, an image left out, a set refused, because somebody ended the process."""
    with pytest.raises(KeyboardInterrupt):
        call()
    assert stop_requested()


def test_nor_a_reason_of_the_gate(listening: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A promotion would be refused for good by a decision that is written down."""
    monkeypatch.setattr(gate, "real_rivals", lambda *_: swallowing())
    with pytest.raises(KeyboardInterrupt):
        gate.decide(SimpleNamespace(), None, Config().promote, licence="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", [DataError, RuntimeError])
def test_a_command_says_that_it_was_interrupted(
    number: signal.Signals, kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 75 whatever came of the interruption on its way; a command that comes after it is not taken for an interrupted one."""

    def load(*_: object) -> None:
        try:
            swallowing(number)
        except ValueError:
            raise kind("model.safetensors: not a whole safetensors file") from None

    with monkeypatch.context() as patch:
        patch.setattr("gda.cli.main.load_config", load)
        assert main(["snapshot", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 75
    assert capsys.readouterr().err == "gda snapshot: interrupted; the same command continues where it stopped\n"
    assert main(["snapshot", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2


@pytest.mark.parametrize("command", [["-m", "gda", "recipes"], ["-c", "from gda.cli.main import program; program(['recipes'])"]])
def test_the_last_instants_of_a_program(command: list[str], tmp_path: Path) -> None:
    """Stopped after its work is done and before it has ended: an interruption, or its own exit code, and never a crash."""
    (tmp_path / "sitecustomize.py").write_text(_AT_THE_END)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    found = {}
    for when in ("before", "after"):
        ended = subprocess.run([sys.executable, *command], env={**environment, "WHEN": when}, capture_output=True, text=True, check=False)
        assert "Traceback" not in ended.stderr
        found[when] = ended.returncode
    assert found == {"before": 75, "after": 0}


# SIGTERM right before the program takes leave of signals, or right after.
_AT_THE_END = """
import os, signal, sys
def traced(frame, event, argument):
    if frame.f_code.co_name == "ignore_signals" and event == ("call" if os.environ["WHEN"] == "before" else "return"):
        os.kill(os.getpid(), signal.SIGTERM)
    return traced
sys.settrace(traced)
"""


def test_so_does_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that was cancelled leaves no reason that would be read as its failure."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.setattr("gda.steps.step.argv", lambda *_: swallowing())
    with pytest.raises(TryAgainError, match="snapshot: interrupted"):
        run_step("snapshot", inputs={}, settings=step_settings(Config())["snapshot"], data_root=str(tmp_path), code="1")
    assert not list(tmp_path.rglob("failure.json"))
