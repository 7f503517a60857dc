"""A disk that cannot be used is exit 5 wherever it shows, whatever library met it; our own defects stay exit 1."""

import errno
import os
import pickle
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from gda.cli.main import main
from gda.errors import MissingError, TryAgainError
from gda.io.locks import locked
from gda.runtime.disks import UNUSABLE, storage_errors, storage_problem


def _sqlite(name: str, text: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorname = name
    return error


def _caused() -> Exception:
    try:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.parquet")
        except OSError as error:
            raise RuntimeError("could not write the table") from error
    except RuntimeError as error:
        return error


HIDDEN: dict[str, Exception] = {
    "safetensors": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "safetensors, read-only": SafetensorError("Error while serializing: I/O error: Read-only file system (os error 30)"),
    "numpy": OSError("1048576 requested and 4096 written"),
    "Pillow": OSError("encoder error -2 when writing image file"),
    "arrow": OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
    "torch": RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    "shutil": shutil.Error([("a", "b", f"[Errno {errno.EDQUOT}] {os.strerror(errno.EDQUOT)}: 'b'")]),
    "sqlite, full": _sqlite("SQLITE_FULL", "database or disk is full"),
    "sqlite, failing": _sqlite("SQLITE_IOERR_WRITE", "disk I/O error"),
    "sqlite, read-only": _sqlite("SQLITE_READONLY", "attempt to write a readonly database"),
    "a cause": _caused(),
}
DEFECTS = {
    "no number": OSError("something else"),
    "a file that is not there": FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
    "a broken file": SafetensorError("Error while deserializing header: header too large"),
    "a full list": RuntimeError("No space left on device"),
    "sqlite, our SQL": _sqlite("SQLITE_ERROR", "no such table: runs"),
    "ours": KeyError("x"),
}


@pytest.mark.parametrize("code", sorted(UNUSABLE | {errno.EACCES}))
def test_every_number_of_a_disk_that_cannot_be_used(code: int) -> None:
    """Guards the rim: one sentence with the file and the system's reason."""
    problem = storage_problem(OSError(code, os.strerror(code), "some/file"))
    assert isinstance(problem, MissingError)
    assert str(problem).startswith(f"some/file: storage cannot be used ({os.strerror(code)})")


@pytest.mark.parametrize("name", HIDDEN)
def test_what_libraries_hide_is_found(name: str, tmp_path: Path) -> None:
    """Guards libraries that raise errors of their own, after a trip between processes too, at the rim and where a file is named."""
    assert isinstance(storage_problem(HIDDEN[name]), MissingError)
    if name != "a cause":  # causes do not survive pickling
        assert isinstance(storage_problem(pickle.loads(pickle.dumps(HIDDEN[name]))), MissingError) or "sqlite" in name
    with pytest.raises((MissingError, RuntimeError), match=r"cannot be written|could not write"), storage_errors(tmp_path / "file"):
        raise HIDDEN[name]


@pytest.mark.parametrize("name", DEFECTS)
def test_anything_else_stays_what_it_is(name: str, tmp_path: Path) -> None:
    """The healthy twin: a broken file and a defect are not taken for a full disk."""
    assert storage_problem(DEFECTS[name]) is None
    with pytest.raises(type(DEFECTS[name])), storage_errors(tmp_path / "file"):
        raise DEFECTS[name]


def test_a_busy_database_may_be_tried_again() -> None:
    """Guards two commands that log at once."""
    assert isinstance(storage_problem(_sqlite("SQLITE_BUSY", "database is locked")), TryAgainError)


@pytest.mark.parametrize(
    ("error", "code"), [(HIDDEN["safetensors"], 5), (HIDDEN["numpy"], 5), (DEFECTS["ours"], 1), (DEFECTS["no number"], 1)]
)
def test_the_command_line_maps_it(
    error: Exception, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards every command at once: wherever in it the disk fails, it ends with 5 and one line; a defect with 1."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("gda.lineage.read_fingerprint", fail)
    (tmp_path / "fingerprint.json").write_text("{}")
    assert main(["lineage", str(tmp_path)]) == code
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert ("internal error" in message) == (code == 1)


def test_numpy_on_a_disk_that_is_full(tmp_path: Path) -> None:
    """Guards the words by which a real full device is known: /dev/full refuses every write."""
    with (
        pytest.raises(MissingError, match="cannot be written"),
        storage_errors(tmp_path / "a.npy"),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        np.zeros(100_000).tofile(file)


class TestLocks:
    """`locked` excludes a second process, and only while the first holds the lock."""

    def test_the_second_is_refused(self, tmp_path: Path) -> None:
        """Guards two commands for one piece of work: the second ends with the message, and gets the lock once the first is done."""
        with locked(tmp_path / "deep/a.lock", busy="x: busy"):
            with pytest.raises(TryAgainError, match=r"^x: busy$"), locked(tmp_path / "deep/a.lock", busy="x: busy"):
                pass
            with locked(tmp_path / "deep/b.lock", busy="y: busy"):
                pass
        with locked(tmp_path / "deep/a.lock", busy="x: busy"):
            pass

    def test_a_killed_holder_leaves_none_behind(self, tmp_path: Path) -> None:
        """Guards the next command after kill -9: the file stays, the lock does not."""
        child = os.fork()
        if child == 0:
            with locked(tmp_path / "a.lock", busy="busy"):
                os.kill(os.getpid(), 9)
        os.waitpid(child, 0)
        assert (tmp_path / "a.lock").is_file()
        with locked(tmp_path / "a.lock", busy="busy"):
            pass

    @pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
    def test_a_file_system_without_locks(self, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Guards network file systems: exit 5 with what to do, never work without a lock."""
        monkeypatch.setattr("fcntl.flock", _failing(code))
        with (
            pytest.raises(MissingError, match=r"a\.lock: this file system has no locks \(.*\); set GDA_WORK_DIR"),
            locked(tmp_path / "a.lock", busy="b"),
        ):
            pytest.fail("worked without a lock")

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
    def test_a_disk_that_fails(self, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Guards the lock file itself on a disk that cannot be used."""
        monkeypatch.setattr("fcntl.flock", _failing(code))
        with pytest.raises(MissingError, match=r"a\.lock: cannot be written"), locked(tmp_path / "a.lock", busy="b"):
            pytest.fail("worked without a lock")


def _failing(code: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail
