"""Folders that are written again in place: by one process at a time, and without temporary files of killed ones."""

import os
from pathlib import Path

import pytest

from gda.errors import MissingError, TryAgainError
from gda.io.atomic import temporary_name, write_bytes
from gda.io.rewriting import rewriting


@pytest.fixture(autouse=True)
def _work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))


def test_what_a_killed_writer_left_goes(tmp_path: Path) -> None:
    """Protects folders that others read or version from files of no meaning; all that has a name stays."""
    folder = tmp_path / "out"
    with rewriting(folder):
        write_bytes(folder / "a.json", b"{}")
    temporary_name(folder / "a.json").write_bytes(b"{")
    (folder / ".hidden").write_bytes(b"")
    with rewriting(folder):
        assert sorted(os.listdir(folder)) == [".hidden", "a.json"]


def test_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects a writer's temporary files from the sweep of another; another folder is not kept waiting."""
    monkeypatch.setattr("gda.io.rewriting._WAIT", 0.05)
    with rewriting(tmp_path / "out"):
        with pytest.raises(TryAgainError, match="out: another process is writing it"), rewriting(tmp_path / "out"):
            pass
        with rewriting(tmp_path / "other"):
            pass


def test_a_file_in_its_place_is_named(tmp_path: Path) -> None:
    """What cannot be written is the environment's fault, exit code 5."""
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(MissingError, match="out"), rewriting(tmp_path / "out"):
        pass
