"""Publishing: one rename, create-only, and the same command finds what is there."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from trees import tree

from gda.artifacts.fingerprint import Fingerprint
from gda.errors import DataError, MissingError, TryAgainError, UsageError
from gda.io.atomic import commit_new, temporary_name, work_root, write_bytes, write_json
from gda.io.publish import exclusive, publish
from gda.io.up_to_date import Workspace, prepare, read_fingerprint

RECIPE = Fingerprint(stage="test", config={"a": 1}, inputs={"x": "0" * 64})
OTHER = Fingerprint(stage="test", config={"a": 2}, inputs={"x": "0" * 64})


@pytest.fixture(autouse=True)
def _work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))


def build(fingerprint: Fingerprint, out: Path, content: str = "hello") -> Workspace:
    workspace = prepare(fingerprint, out)
    (workspace.staging / "folder").mkdir(exist_ok=True)
    (workspace.staging / "folder" / "file.txt").write_text(content)
    return workspace


def test_publish_moves_everything_and_says_what_made_it(tmp_path: Path) -> None:
    """Guards the whole round: content, fingerprint, and no work left behind."""
    out = tmp_path / "deep" / "out"
    assert publish(build(RECIPE, out)) == out
    assert tree(out).keys() == {"folder/file.txt", "fingerprint.json"}
    assert read_fingerprint(out) == RECIPE
    assert list((work_root() / "work").iterdir()) == []


def test_same_fingerprint_is_finished(tmp_path: Path) -> None:
    """Guards reuse: the same command finds its result and makes no work folder."""
    publish(build(RECIPE, tmp_path / "out"))
    workspace = prepare(RECIPE, tmp_path / "out")
    assert workspace.finished
    assert not workspace.work.exists()


def test_other_fingerprint_is_refused_with_the_difference(tmp_path: Path) -> None:
    """Guards what a user has: output of another configuration is never replaced, and the message says what changed."""
    publish(build(RECIPE, tmp_path / "out"))
    with pytest.raises(UsageError, match=r"config\.a: 1 -> 2.*remove it or choose another --out"):
        prepare(OTHER, tmp_path / "out")


def test_foreign_content_is_refused(tmp_path: Path) -> None:
    """Guards folders and files that this program did not make."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("out", "file"):
        with pytest.raises(UsageError, match="not made by this command"):
            prepare(RECIPE, tmp_path / name)


def test_empty_folder_is_free(tmp_path: Path) -> None:
    """Guards users who make the output folder beforehand."""
    (tmp_path / "out").mkdir()
    publish(build(RECIPE, tmp_path / "out"))
    assert (tmp_path / "out" / "folder" / "file.txt").read_text() == "hello"


def test_broken_fingerprint_is_not_overwritten(tmp_path: Path) -> None:
    """Guards against taking a damaged output for a free or a finished one."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "fingerprint.json").write_text("{")
    with pytest.raises(UsageError, match=r"fingerprint\.json: not valid JSON"):
        prepare(RECIPE, tmp_path / "out")
    with pytest.raises(DataError, match=r"fingerprint\.json: not valid JSON"):
        read_fingerprint(tmp_path / "out")


def test_link_to_an_empty_folder_is_followed(tmp_path: Path) -> None:
    """Guards users who keep `data/` on another disk behind a link: the link stays, its target is filled."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    publish(build(RECIPE, tmp_path / "out"))
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "folder" / "file.txt").exists()


def test_lost_race_with_the_same_fingerprint_is_fine(tmp_path: Path) -> None:
    """Guards two equal commands at once: the second finds the first one's result and changes nothing."""
    workspace = build(RECIPE, tmp_path / "out", "second")
    (tmp_path / "out").mkdir()
    write_json(tmp_path / "out" / "fingerprint.json", {"stage": "test", "config": {"a": 1}, "inputs": {"x": "0" * 64}, "environment": {}})
    before = tree(tmp_path / "out")
    publish(workspace)
    assert tree(tmp_path / "out") == before


def test_publishing_twice_is_fine(tmp_path: Path) -> None:
    """Guards workers of one fingerprint that both see the last shard and both publish the shared folder."""
    workspace = build(RECIPE, tmp_path / "out")
    publish(workspace)
    publish(workspace)
    assert (tmp_path / "out" / "folder" / "file.txt").read_text() == "hello"


def test_lost_race_with_something_else(tmp_path: Path) -> None:
    """Guards a name that was taken meanwhile: nothing of it is touched, and the user may try again."""
    workspace = build(RECIPE, tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other").write_text("kept")
    with pytest.raises(TryAgainError, match="holds something else"):
        publish(workspace)
    assert [(path.name, path.read_text()) for path in (tmp_path / "out").iterdir()] == [("other", "kept")]
    assert (workspace.staging / "folder" / "file.txt").exists()


def test_across_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a work folder on another disk: copied next to the final name, then renamed, no copy left."""
    real = os.rename

    def other_disk(source: str | Path, target: str | Path) -> None:
        if str(source).startswith(str(tmp_path / "work")):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(source, target)

    monkeypatch.setattr(os, "rename", other_disk)
    publish(build(RECIPE, tmp_path / "here" / "out"))
    assert tree(tmp_path / "here").keys() == {"out/folder/file.txt", "out/fingerprint.json"}
    assert (tmp_path / "here/out/folder/file.txt").read_text() == "hello"


def test_temporaries_of_killed_writers_are_not_published(tmp_path: Path) -> None:
    """Guards the output against half-written files of an earlier, killed run."""
    workspace = build(RECIPE, tmp_path / "out")
    (workspace.staging / "folder" / ".x.tar.12-ab.gda-tmp").write_text("half")
    publish(workspace)
    assert tree(tmp_path / "out").keys() == {"folder/file.txt", "fingerprint.json"}


def test_a_file_under_way_when_another_process_publishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a published folder from a slower worker of the same fingerprint, which opens a file after the sweep and before the rename."""
    workspace, real = build(RECIPE, tmp_path / "out"), os.rename

    def just_too_late(source: Path, target: Path) -> None:
        temporary_name(workspace.staging / "folder" / "late").write_bytes(b"half")
        real(source, target)

    monkeypatch.setattr(os, "rename", just_too_late)
    publish(workspace, keep_work=True)
    assert tree(tmp_path / "out").keys() == {"folder/file.txt", "fingerprint.json"}
    assert len(list(workspace.work.glob(".late.*"))) == 1


def test_a_work_folder_that_goes_as_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the start of a command as another one of the same fingerprint ends: the folder was there, and a moment later it is not."""
    work, real = prepare(RECIPE, tmp_path / "out").work, os.mkdir

    def gone_when_looked_at(path: Path, mode: int = 0o777) -> None:
        try:
            real(path, mode)
        except FileExistsError:
            shutil.rmtree(work)
            raise

    monkeypatch.setattr(os, "mkdir", gone_when_looked_at)
    assert prepare(RECIPE, tmp_path / "out").work.is_dir()
    shutil.rmtree(work)
    work.write_text("a file in the way")
    monkeypatch.setattr(os, "mkdir", real)
    with pytest.raises(MissingError, match="File exists"):
        prepare(RECIPE, tmp_path / "out")


def test_staging_survives_and_can_be_emptied(tmp_path: Path) -> None:
    """Guards both ways to go on after a kill: resume from what is there, or start over."""
    build(RECIPE, tmp_path / "out")
    again = prepare(RECIPE, tmp_path / "out")
    assert (again.staging / "folder" / "file.txt").exists()
    assert list(again.fresh_staging().iterdir()) == []


def test_work_can_be_kept(tmp_path: Path) -> None:
    """Guards `keep_work`: sweep points stay for the next run."""
    workspace = build(RECIPE, tmp_path / "out")
    (workspace.work / "point").write_text("1")
    publish(workspace, keep_work=True)
    assert (workspace.work / "point").exists()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """Guards a work folder against two processes that would both write to it."""
    workspace = prepare(RECIPE, tmp_path / "out")
    with exclusive(workspace), pytest.raises(TryAgainError, match="another process"), exclusive(workspace):
        pass
    with exclusive(workspace):
        publish(build(RECIPE, tmp_path / "out"))
    with pytest.raises(TryAgainError, match="another process"), exclusive(workspace):
        pass


def test_write_bytes_replaces_whole_files(tmp_path: Path) -> None:
    """Guards small files: the new content entirely, no temporary, equal JSON for equal content."""
    write_bytes(tmp_path / "a.json", b"x" * 100)
    write_json(tmp_path / "a.json", {"b": 1, "a": 2})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 2,\n  "b": 1\n}\n'
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "b.json", {"b": float("nan")})


@pytest.mark.parametrize("links", [True, False])
def test_commit_new_never_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """Guards create-only for single files, on file systems with and without hard links."""
    if not links:
        monkeypatch.setattr(os, "link", _no_links)
    for content, expected in (("first", True), ("second", False)):
        (tmp_path / "t").write_text(content)
        assert commit_new(tmp_path / "t", tmp_path / "a") is expected
    assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()} == {"a": "first"}


def _no_links(source: object, target: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_work_folder_says_its_fingerprint(tmp_path: Path) -> None:
    """Guards people who look into the work folder to see what an unfinished run was."""
    workspace = prepare(RECIPE, tmp_path / "out")
    assert json.loads((workspace.work / "fingerprint.json").read_text())["config"] == {"a": 1}
    assert workspace.work.name == RECIPE.digest[:32]
