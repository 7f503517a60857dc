"""Commands killed in every way leave in the end what undisturbed ones leave, logged once; run by test_kills.py, in a process of its own."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from kill_chain import OUT, TRIED, Command, run_in_child
from kill_rounds import MODES, Grounds, Round, hold, undisturbed
from kill_runner import make_grounds, num_kills, prepare, run_rounds, table

KILLS = 50
BY_NAME = {command.name: command for command in TRIED}


@pytest.fixture(scope="module")
def grounds(tmp_path_factory: pytest.TempPathFactory) -> Grounds:
    prepare()
    return make_grounds(tmp_path_factory.mktemp("kills") / "grounds")


@pytest.fixture(autouse=True)
def _in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_stage_is_tried() -> None:
    """Protects a stage that is added from being left out here."""
    from gda.flow import STAGE_NAMES

    assert {*STAGE_NAMES, "inputs", "reference", "merge", "export"} <= {command.words[0] for command in TRIED}
    assert any(not command.database for command in TRIED)


def test_nothing_differs_and_nothing_is_stuck(grounds: Grounds, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects every promise that the same command goes on after a kill: equal bytes, one run, one version, nothing left behind."""
    results = run_rounds(TRIED, grounds, kills=KILLS, done=[], reported=lambda _: None)
    with capsys.disabled():
        print(f"\n{table(results)}")
    assert [result for result in results if result.faults] == []
    assert num_kills(results) >= KILLS


def _rounds(command: Command, grounds: Grounds, *, mode: str, count: int) -> list[str]:
    """Faults of `count` rounds against what an undisturbed run left, which is made again."""
    expected = undisturbed(command, grounds)
    found = [hold(command, expected, grounds, number=1000 + number, mode=mode) for number in range(count)]
    return [fault for result in found for fault in result.faults]


def test_a_result_that_is_written_in_place_is_seen(grounds: Grounds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: files that appear one by one under the final name are named as other than the whole result."""

    def move(workspace: object, staging: Path, room: object) -> None:
        out = workspace.out  # type: ignore[attr-defined]
        out.mkdir(exist_ok=True)
        for path in sorted(staging.iterdir()):
            os.rename(path, out / path.name)
        staging.rmdir()

    monkeypatch.setattr("gda.io.publish._move_new", move)
    faults = _rounds(BY_NAME["snapshot"], grounds, mode="at a call", count=12)
    assert any(fault.startswith(("differs", "stuck")) for fault in faults)


def test_a_run_that_is_never_logged_is_seen(grounds: Grounds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without the look at what killed processes published, their runs are missing."""
    monkeypatch.setattr("gda.tracking.settle", lambda _: None)
    faults = _rounds(BY_NAME["snapshot"], grounds, mode="after publishing", count=8)
    assert any(fault.startswith("logged") for fault in faults)


def test_a_command_that_cannot_go_on_is_seen(grounds: Grounds) -> None:
    """Negative control: a command that fails after a kill is stuck."""
    command = BY_NAME["snapshot"]
    expected = undisturbed(command, grounds)
    fails = replace(command, words=("snapshot", "nowhere"))
    found = hold(fails, expected, grounds, number=2000, mode=MODES[0])
    assert any(fault.startswith("stuck: ended with") for fault in found.faults)
    assert "| stuck |" in table([found])


def test_rounds_go_on_where_they_ended(grounds: Grounds) -> None:
    """Rounds that were held are not held again; each is the same whichever process holds it."""
    commands = (BY_NAME["inputs"],)
    reported: list[Round] = []
    first = run_rounds(commands, grounds, kills=2, done=[], reported=reported.append)
    assert reported == first
    whole = run_rounds(commands, grounds, kills=num_kills(first) + 2, done=first, reported=reported.append)
    assert whole[: len(first)] == first
    assert len(whole) > len(first)
    assert run_rounds(commands, grounds, kills=1, done=whole, reported=reported.append) == whole


def test_an_output_that_is_there_is_whole(grounds: Grounds) -> None:
    """The healthy twin: undisturbed, a command leaves its output and is up to date when run again."""
    command = BY_NAME["sample"]
    place = grounds.place(command, "healthy")
    assert run_in_child(command.under_test(), place) == 0
    before = (place / OUT / "snapshot.json").stat().st_mtime_ns
    assert run_in_child(command.under_test(), place) == 0
    assert (place / OUT / "snapshot.json").stat().st_mtime_ns == before
