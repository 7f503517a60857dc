"""Progress off a terminal: never silent for longer than the interval, readable by people and by programs."""

import json
import logging
import sys
import time

import pytest

from gda.runtime import logs, parallel, progress
from gda.runtime.logs import set_up_logs
from gda.runtime.parallel import run_parallel
from gda.runtime.progress import Bar, duration, observed, reporting, tick

INTERVAL = 0.2


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDA_LOG_INTERVAL", str(INTERVAL))
    monkeypatch.delenv("GDA_LOG_FORMAT", raising=False)
    monkeypatch.delenv("GDA_LOG_LEVEL", raising=False)
    set_up_logs()


def _work(steps: int = 12, pause: float = 0.1) -> None:
    for step in range(steps):
        time.sleep(pause)
        tick(loss=1.0 / (step + 1), series="base", step=step + 1)


def test_lines_say_what_and_how_far(capsys: pytest.CaptureFixture[str]) -> None:
    """Protects whoever reads a log file: first what is worked on, then step, rate, loss and remaining time at each interval."""
    with reporting("finetune"), Bar(12, "finetune", unit="step", about="cpu, float32, 50 images"):
        _work()
    first, *others = capsys.readouterr().err.splitlines()
    assert first.endswith("finetune: 12 steps, cpu, float32, 50 images")
    assert 3 <= len(others) <= 7
    assert all(" of 12 steps, " in line and " per second, loss 0." in line and line.endswith(" s left") for line in others[1:])


def test_json_lines_have_the_numbers(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects log collectors: one object per line, with numbers as numbers."""
    monkeypatch.setenv("GDA_LOG_FORMAT", "json")
    with reporting("finetune"), Bar(12, "finetune", unit="step"):
        _work()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    last = lines[-1]
    assert last["stage"] == "finetune"
    assert last["unit"] == "step"
    assert last["total"] == 12
    assert 6 <= last["step"] <= 12
    assert 5 < last["rate"] < 11
    assert 0.1 < last["loss"] < 1.0
    assert last["level"] == "info"
    assert last["time"].endswith("Z")


def test_work_without_a_bar_is_not_silent(capsys: pytest.CaptureFixture[str]) -> None:
    """Protects against hours without a line where a stage does something that it cannot count."""
    with reporting("validate"):
        time.sleep(4.5 * INTERVAL)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 4
    assert all("validate: at work for " in line for line in lines)


def test_a_slow_step_is_reported_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Protects against silence within one long step."""
    with reporting("sample"), Bar(2, "sample", unit="image"):
        tick()
        time.sleep(3.5 * INTERVAL)
    assert sum("sample: 1 of 2 images" in line for line in capsys.readouterr().err.splitlines()) >= 2


@pytest.mark.parametrize("shown", [False, True], ids=["quiet", "terminal"])
def test_no_lines_when_quiet_or_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shown: bool) -> None:
    """Protects --quiet, and a person's terminal, where a bar says it."""
    if shown:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with reporting("finetune", shown=shown), Bar(6, "finetune", unit="step", shown=shown):
        _work(6)
    text = capsys.readouterr().err
    assert "finetune: 6 steps" not in text
    assert "at work" not in text
    assert ("finetune:" in text) == shown  # the bar itself


def _tick_thrice(x: int) -> int:
    for _ in range(3):
        tick(loss=0.5, series=f"seed {x}", step=1)
    return x


@pytest.mark.parametrize("spawned", [False, True], ids=["forked", "spawned"])
def test_ticks_of_workers_arrive(monkeypatch: pytest.MonkeyPatch, spawned: bool) -> None:
    """Protects the bars of stages with many processes, also of those that are spawned because there is a GPU."""
    monkeypatch.setattr(parallel, "_cuda_is_there", lambda: spawned)
    seen = []
    with observed(seen.append), Bar(12, "work", shown=False) as bar:
        assert run_parallel(_tick_thrice, [0, 1, 2, 3], workers=2) == [0, 1, 2, 3]
        deadline = time.monotonic() + 5
        while bar.done < 12 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert bar.done == 12
    assert {message["series"] for message in seen} == {f"seed {x}" for x in range(4)}
    assert bar.loss == 0.5


def test_a_loss_that_is_not_finite_is_left_out() -> None:
    """NaN is no JSON, and the stage reports it as its error."""
    seen = []
    with observed(seen.append), Bar(2, "work", shown=False):
        tick(loss=float("nan"), series="base", step=1)
    assert seen == [{"count": 1}]


def test_warnings_name_their_level(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects readers of a log from a warning that looks like progress; GDA_LOG_LEVEL hides what is below it."""
    log = logging.getLogger("gda.somewhere")
    log.warning("the checkpoint is damaged")
    assert capsys.readouterr().err.endswith(" warning: the checkpoint is damaged\n")
    monkeypatch.setenv("GDA_LOG_LEVEL", "error")
    set_up_logs()
    log.warning("the checkpoint is damaged")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("GDA_LOG_LEVEL", "loud")
    set_up_logs()
    assert logging.getLogger("gda").level == logging.INFO
    assert sum(isinstance(handler, logs._Stderr) for handler in logging.getLogger("gda").handlers) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min"), (185, "3 min 5 s"), (7800, "2 h 10 min"), (3600, "1 h"), (273600, "3 d 4 h")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    """Protects remaining times from rounding to 60 s or 24 h."""
    assert duration(seconds) == text


def test_an_interval_that_is_no_number_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects a job from a typing error in the environment."""
    monkeypatch.setenv("GDA_LOG_INTERVAL", "often")
    assert progress._interval() == progress.INTERVAL <= 30
