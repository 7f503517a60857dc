"""A step tries again by itself what may pass: servers do not retry a step for its exit code."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gda.errors import DataError, GdaError, TryAgainError, UsageError
from gda.steps import retries, step
from gda.steps.retries import RETRIES, retrying


class OtherError(GdaError):
    """As a child's error that is passed on, of no class of ours."""

    exit_code = 75


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses, which are not waited for."""
    pauses: list[float] = []
    monkeypatch.delenv(RETRIES, raising=False)
    monkeypatch.setattr(retries.time, "sleep", pauses.append)
    return pauses


def _failing(times: int, error: Exception) -> tuple[Callable[[], str], list[int]]:
    tries: list[int] = []

    def work() -> str:
        tries.append(len(tries))
        if len(tries) <= times:
            raise error
        return "done"

    return work, tries


@pytest.mark.parametrize("error", [TryAgainError("MLflow is away"), OtherError("a process was interrupted")], ids=["ours", "passed on"])
def test_what_may_pass_is_tried_again(error: GdaError, slept: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """A server that is away for a while costs a pause, not the run; each try is reported with its reason."""
    work, tries = _failing(2, error)
    assert retrying("promote", work) == "done"
    assert (len(tries), slept) == (3, [30.0, 60.0])
    assert capsys.readouterr().out.splitlines()[0] == f"promote: {error}; trying again in 30 s"


def test_tries_are_bounded(slept: list[float]) -> None:
    """What does not pass ends the step with its own exit code, after a quarter of an hour."""
    work, tries = _failing(100, TryAgainError("away"))
    with pytest.raises(TryAgainError, match="away") as ended:
        retrying("promote", work)
    assert (len(tries), sum(slept), ended.value.exit_code) == (6, 930.0, 75)


@pytest.mark.parametrize("error", [DataError("damaged"), GdaError("a defect"), ValueError("a defect"), KeyboardInterrupt()], ids=repr)
def test_what_does_not_pass_is_not_tried_again(error: Exception, slept: list[float]) -> None:
    """Wrong data, a defect of ours and a step that is being ended are no waiting matter."""
    work, tries = _failing(1, error)
    with pytest.raises(type(error)):
        retrying("validate", work)
    assert (len(tries), slept) == (1, [])


@pytest.mark.parametrize(("text", "number"), [("0", 1), ("1", 2), ("7", 8), ("", 6)])
def test_the_number_of_tries_is_a_setting(text: str, number: int, slept: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The ConfigMap gda-tracking says how often, and no pause is longer than ten minutes."""
    monkeypatch.setenv(RETRIES, text)
    work, tries = _failing(100, TryAgainError("away"))
    with pytest.raises(TryAgainError):
        retrying("promote", work)
    assert len(tries) == number
    assert max(slept, default=0) <= 600


@pytest.mark.parametrize("text", ["-1", "many", "21", "1.5", "²", "9" * 5000], ids=lambda text: text[:4])
def test_a_number_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error does not become "for ever", nor "never": exit code 2 and what is accepted."""
    monkeypatch.setenv(RETRIES, text)
    with pytest.raises(UsageError, match=f"{RETRIES} {text[:30]}: accepted: 0 to 20"):
        retrying("promote", lambda: "done")


def test_every_step_of_a_run_does_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> None:
    """The one function that runs the steps tries again, and leaves the reason of a step that did not pass where the report finds it."""
    monkeypatch.setenv(RETRIES, "1")
    monkeypatch.setattr(step.Place, "at", classmethod(lambda cls, data_root: cls(root=Path(data_root))))
    tries: list[str] = []

    def run(request: step.StepRequest, *_: object) -> step.Step:
        tries.append(request.name)
        raise TryAgainError("the store is away")

    monkeypatch.setattr(step, "_run", run)
    with pytest.raises(TryAgainError):
        step.run_step("snapshot", inputs={}, settings="{}", data_root=str(tmp_path), code="1")
    assert (tries, slept) == (["snapshot", "snapshot"], [30.0])
    (failure,) = tmp_path.glob("steps/snapshot/*/failure.json")
    assert "the store is away" in failure.read_text("utf-8")
