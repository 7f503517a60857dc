"""Replaced results: only this program's own and unchanged ones; they are replaced in one step, kept, and restored."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from killing import KILLED, in_child, killed_at
from trees import tree

from gda.artifacts.fingerprint import Fingerprint
from gda.errors import DataError, GdaError, UsageError
from gda.io.atomic import work_root, write_json
from gda.io.publish import publish
from gda.io.replacing import Own, begin, drop_unfinished
from gda.io.up_to_date import prepare, read_fingerprint

OWN = Own(stage="test", config={"seed": 1})


def fingerprint(a: int, *, seed: int = 1, stage: str = "test") -> Fingerprint:
    return Fingerprint(stage=stage, config={"a": a, "seed": seed})


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the result of `fingerprint(1)` is."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    made(tmp_path / "arm" / "1", fingerprint(1), own=None)
    return tmp_path / "arm" / "1"


def made(out: Path, wanted: Fingerprint, *, own: Own | None = OWN) -> bool:
    """Make the result of `wanted` at `out`, as a stage does; whether there was something to make."""
    workspace = begin(wanted, out, own)
    if not workspace.finished:
        (workspace.fresh_staging() / "weights.bin").write_text(f"of {wanted.config['a']}")
        publish(workspace, room=None if own is None else own.moved_away(workspace.out))
    return not workspace.finished


def holds(out: Path, a: int) -> bool:
    return read_fingerprint(out) == fingerprint(a) and (out / "weights.bin").read_text() == f"of {a}"


def test_another_fingerprint_takes_the_place_and_the_first_is_taken_back(out: Path) -> None:
    """Protects the way back: a replaced result is made only once, however often the two alternate."""
    assert [made(out, fingerprint(2)), holds(out, 2)] == [True, True]
    assert [made(out, fingerprint(2)), holds(out, 2)] == [False, True]
    assert [made(out, fingerprint(1)), holds(out, 1)] == [False, True]
    assert [made(out, fingerprint(2)), holds(out, 2)] == [False, True]
    assert {path.name for path in out.parent.iterdir()} == {"1"}
    assert list((work_root() / "work").iterdir()) == []
    prepare(fingerprint(2), out)  # every file as it was written


def test_nothing_is_replaced_unless_requested(out: Path) -> None:
    """Protects results of hours: another fingerprint is refused as before, with the difference."""
    with pytest.raises(UsageError, match=r"config\.a: 1 -> 2"):
        made(out, fingerprint(2), own=None)
    assert holds(out, 1)


def _text(name: str, text: str) -> Callable[[Path], object]:
    return lambda out: (out / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (_text("thesis.tex", "years"), UsageError, r"thesis\.tex: was not made by this command"),
        (_text(".notes", "years"), UsageError, r"\.notes: was not made by this command"),
        (lambda out: (out / "link").symlink_to(out.parent), UsageError, "link: was not made by this command"),
        (lambda out: (out / "deep").mkdir() or (out / "deep" / "x.txt").write_text("y"), UsageError, r"deep/x\.txt: was not made"),
        (_text("weights.bin", "other"), DataError, r"weights\.bin: damaged or exchanged"),
        (lambda out: (out / "weights.bin").unlink(), DataError, r"weights\.bin: not found"),
        (_text("fingerprint.json", "{"), DataError, r"fingerprint\.json: not valid JSON"),
        (lambda out: (out / "fingerprint.json").unlink(), UsageError, "exists and was not made by this command"),
        (
            lambda out: write_json(out / "fingerprint.json", {"stage": "test", "config": {"a": 1, "seed": 1}}),
            UsageError,
            "did not list its files",
        ),
        (lambda out: shutil.rmtree(out) or made(out, fingerprint(1, seed=2), own=None), UsageError, "is of seed 2, not 1"),
        (
            lambda out: shutil.rmtree(out) or made(out, fingerprint(1, stage="finetune"), own=None),
            UsageError,
            "is of stage finetune, not test",
        ),
    ],
)
def test_what_this_program_did_not_make_stays(out: Path, change: Callable[[Path], object], kind: type[GdaError], message: str) -> None:
    """Protects everything else that a folder may hold: the command ends with a message, before anything is made, and removes nothing."""
    change(out)
    before = tree(out.parent)
    with pytest.raises(kind, match=message):
        begin(fingerprint(2), out, OWN)
    with pytest.raises(kind, match=message):
        OWN.remove(out)
    assert tree(out.parent) == before
    assert not (work_root() / "replaced").exists()


def test_what_comes_in_while_the_new_one_is_made_stays(out: Path) -> None:
    """Protects files that a user adds during hours of training: they are looked for again before anything is moved."""
    workspace = begin(fingerprint(2), out, OWN)
    (workspace.staging / "weights.bin").write_text("of 2")
    (out / "thesis.tex").write_text("years")
    with pytest.raises(UsageError, match=r"thesis\.tex: was not made by this command"):
        publish(workspace, room=OWN.moved_away(out))
    assert (out / "thesis.tex").read_text() == "years"
    (out / "thesis.tex").unlink()
    publish(workspace, room=OWN.moved_away(out))
    assert holds(out, 2)


@pytest.mark.parametrize("after", [False, True])
def test_killed_anywhere_leaves_the_old_one_or_the_new_one(out: Path, after: bool) -> None:
    """Protects both: killed at any call, one of the two is there or on its way, and the same command makes the new one of it."""
    gone = 0
    for number in range(1, 200):
        made(out, fingerprint(1))
        shutil.rmtree(work_root() / "replaced", ignore_errors=True)
        status = in_child(killed_at(number, after=after, action=lambda: made(out, fingerprint(2))))
        if out.exists():
            assert holds(out, 1) or holds(out, 2)
        else:  # between two renames: both are whole in the work folder
            gone += 1
            assert len(list((work_root() / "replaced").glob("*/weights.bin"))) == 1
        made(out, fingerprint(2))
        assert holds(out, 2)
        assert {path.name for path in out.parent.iterdir()} == {"1"}
        if status == 0:
            break
        assert status == KILLED
    assert (number > 5, gone) == (True, 1)


def test_a_failure_at_the_last_rename_puts_the_old_one_back(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects the old one from a disk that fails, or an interruption, between the two renames."""
    workspace = begin(fingerprint(2), out, OWN)
    (workspace.staging / "weights.bin").write_text("of 2")
    real, errors = os.rename, [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")]

    def failing(source: Path, target: Path) -> None:
        if source == workspace.staging and not out.exists():
            raise errors[-1]
        real(source, target)

    monkeypatch.setattr(os, "rename", failing)
    for _ in range(2):
        with pytest.raises((KeyboardInterrupt, GdaError)):
            publish(workspace, room=OWN.moved_away(out))
        errors.pop()
        assert holds(out, 1)
    monkeypatch.undo()


def test_removed_and_taken_back(out: Path) -> None:
    """Protects a seed that is dropped from the configuration and added again: it is not made twice."""
    OWN.remove(out)
    assert list(out.parent.iterdir()) == []
    OWN.remove(out)  # nothing there is fine
    assert [made(out, fingerprint(1)), holds(out, 1)] == [False, True]


def test_what_was_kept_and_is_damaged_is_made_again(out: Path) -> None:
    """Protects from taking back what a failing disk has changed."""
    made(out, fingerprint(2))
    (kept,) = (work_root() / "replaced").iterdir()
    (kept / "weights.bin").write_text("of 3")
    assert [made(out, fingerprint(1)), holds(out, 1)] == [True, True]
    assert [made(out, fingerprint(2)), holds(out, 2)] == [False, True]


def test_across_file_systems(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects a work folder on another disk: replaced as well, though not kept, and killed processes leave nothing that is read."""
    real, work = os.rename, str(tmp_path / "work")

    def other_disk(source: str | Path, target: str | Path) -> None:
        if str(source).startswith(work) != str(target).startswith(work):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(source, target)

    monkeypatch.setattr(os, "rename", other_disk)
    for a in (2, 1):
        assert [made(out, fingerprint(a)), holds(out, a)] == [True, True]
    assert {path.name for path in out.parent.iterdir()} == {"1"}
    left = out.with_name(".1.77-ab.gda-tmp")
    shutil.copytree(out, left)
    drop_unfinished(out.parent)
    assert {path.name for path in out.parent.iterdir()} == {"1"}
