"""The first start of MLflow on SQLite: killed, or twice at once, there is a whole database or none; a broken one is named."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gda.cli.main import main
from gda.errors import ConfigError, GdaError, MissingError, TryAgainError
from gda.tracking import connect
from gda.tracking.sqlite import database_file, ensure_database

FIRST_START = "import sys; from gda.tracking.sqlite import ensure_database; ensure_database(sys.argv[1])"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "mlflow.db"
    ensure_database(f"sqlite:///{path}")
    return path


@pytest.fixture
def database(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return Path(shutil.copy(whole, tmp_path / "mlflow.db"))


def _start(path):
    return subprocess.Popen([sys.executable, "-c", FIRST_START, f"sqlite:///{path}"], stderr=subprocess.PIPE)


def test_killed_at_any_moment_it_leaves_nothing_or_all(tmp_path):
    """Once the migration has begun, kill -9 leaves no file of the database's name, and the next command makes it whole."""
    path = tmp_path / "mlflow.db"
    for more in (0.0, 0.6):
        process = _start(path)
        while not list(tmp_path.glob(".mlflow.db.*.gda-tmp")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(more)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not path.exists()
    ensure_database(f"sqlite:///{path}")
    ensure_database(f"sqlite:///{path}")
    assert [name for name in os.listdir(tmp_path) if name.endswith((".gda-tmp", "-journal"))] == []


def test_two_at_once_make_one(tmp_path):
    """Two first commands on one database both succeed."""
    both = [_start(tmp_path / "mlflow.db") for _ in range(2)]
    errors = [process.communicate()[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    ensure_database(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:///mlflow.db", "mlflow.db"),
        ("sqlite:////a/b.db", "/a/b.db"),
        ("sqlite+pysqlite:///m.db?timeout=5", "m.db"),
        ("sqlite:///file:m%20n.db?mode=rwc&uri=true", "m n.db"),
        ("sqlite:///file:///a/b.db?uri=true", "/a/b.db"),
        ("sqlite:///:memory:", None),
        ("sqlite://", None),
        ("http://host:1/x.db", None),
        ("postgresql://u:p@h/x", None),
    ],
)
def test_every_form_of_address_names_its_file(uri, path):
    """Relative, absolute, with a driver, a query or as a SQLite URI: the guard is on the file that MLflow opens."""
    assert database_file(uri) == (None if path is None else Path(path))


def test_a_relative_address_with_a_query_is_made_whole(tmp_path, monkeypatch, whole):
    """The guard works for the forms, not only reads them; MLflow finds the database that it made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///file:sub.db?mode=rwc&uri=true")
    connect().create_experiment("here")
    assert sqlite3.connect("sub.db").execute("select count(*) from experiments where name = 'here'").fetchone() == (1,)


def _edit(path, *statements):
    with sqlite3.connect(path) as opened:
        for statement in statements:
            opened.execute(statement)


RUN = "insert into runs (run_uuid, name, status, lifecycle_stage, experiment_id) values ('a', 'x', 'FINISHED', 'active', 0)"


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (["drop table alembic_version"], "remove the file"),
        (["drop table tags", "update alembic_version set version_num = 'cc1f77228345'"], "remove the file"),
        ([RUN, "update alembic_version set version_num = 'cc1f77228345'"], "mlflow db upgrade"),
        ([RUN, "update alembic_version set version_num = 'ffffffffffff'"], "install the MLflow that made it"),
        ([RUN, "drop table tags"], "lacks tables"),
    ],
)
def test_a_broken_database_is_named_with_the_way_out(database, statements, message):
    """Half made, of an older or a newer MLflow, or without a table: one line that names the file and the remedy, at once."""
    _edit(database, *statements)
    started = time.monotonic()
    with pytest.raises(MissingError, match=message) as raised:
        connect()
    assert str(database) in str(raised.value)
    assert time.monotonic() - started < 20  # MLflow itself goes on trying for 100 s


@pytest.mark.parametrize("content", [b"hello" * 1000, None])
def test_a_file_that_is_no_database_is_named(database, content):
    """Other bytes or a folder in its place are the environment's fault, exit code 5."""
    database.unlink()
    database.mkdir() if content is None else database.write_bytes(content)
    with pytest.raises(MissingError, match=r"mlflow.db: (is no whole|MLflow's database cannot be opened)"):
        connect()


@pytest.mark.parametrize("left", [b"", "no tables"])
def test_an_empty_file_is_a_first_start(database, left):
    """What an interrupted start of other programs leaves, nothing in it, is made whole."""
    database.unlink()
    if left == b"":
        database.touch()
    else:
        _edit(database, "create table t (a)", "drop table t")
    assert connect().search_experiments()[0].name == "Default"


def _killed_while_it_wrote(database):
    """What kill -9 leaves in the middle of a transaction: new pages in the database, and a journal that has the old ones."""
    written = database.with_name("written.db")
    shutil.copy(database, written)
    writer = sqlite3.connect(written, isolation_level=None)
    writer.execute("pragma cache_size = 5")
    writer.execute("begin")
    values = [(f"id{number}", "x" * 500) for number in range(2000)]
    writer.executemany(
        "insert into runs (run_uuid, name, status, lifecycle_stage, experiment_id) values (?, ?, 'RUNNING', 'active', 0)", values
    )
    shutil.copy(written, database)
    shutil.copy(f"{written}-journal", f"{database}-journal")
    writer.close()


def test_a_database_that_was_being_written_when_its_process_was_killed_is_whole(database):
    """SQLite undoes what was half written, provided that it may write; taken for a damaged one, it would cost its user all runs."""
    _edit(database, RUN)
    _killed_while_it_wrote(database)
    assert connect().search_experiments()[0].name == "Default"
    assert sqlite3.connect(database).execute("select run_uuid from runs").fetchall() == [("a",)]
    assert not database.with_name("mlflow.db-journal").exists()


def test_one_that_may_not_be_written_says_what_to_do(database, monkeypatch):
    """Where SQLite may not undo it, nothing is read, and no message says to move the database away."""
    import gda.tracking.sqlite as module

    _edit(database, RUN)
    _killed_while_it_wrote(database)
    connected = module.sqlite3.connect
    monkeypatch.setattr(module.sqlite3, "connect", lambda name, **kwargs: connected(name.replace("mode=rw", "mode=ro"), **kwargs))
    with pytest.raises(MissingError, match=r"make the file and its folder writable, so that SQLite can undo that by mlflow\.db-journal"):
        ensure_database(f"sqlite:///{database}")


def test_an_address_that_cannot_be_read_is_a_configuration_error(tmp_path, monkeypatch):
    """A typo in the address is exit code 2, and its password is not in the message."""
    monkeypatch.chdir(tmp_path)  # the file it names is relative
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite://u:s3cr3tpw@/[")
    with pytest.raises(GdaError) as raised:
        connect()
    assert isinstance(raised.value, ConfigError)
    assert "s3cr3tpw" not in str(raised.value)


def test_a_stage_keeps_its_result_where_the_database_is_broken(database, tmp_path, monkeypatch, capsys, small_images):
    """An older schema costs a stage nothing but a note, which names the remedy; upgraded, the run is logged by the next command."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / ".gda"))
    _edit(database, RUN, "update alembic_version set version_num = 'cc1f77228345'")
    assert main(["snapshot", str(small_images), "--out", "real", "--quiet"]) == 0
    assert "mlflow db upgrade" in capsys.readouterr().err
    _edit(database, "update alembic_version set version_num = 'dc11669786a5'")
    assert main(["snapshot", str(small_images), "--out", "real", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    client = connect()
    (run,) = client.search_runs([client.get_experiment_by_name("gda").experiment_id])
    assert run.info.run_name == "snapshot real"


def test_a_busy_database_may_be_tried_again(database):
    """A lock of another program passes by itself: 75."""
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("begin exclusive")
    import gda.tracking.sqlite as module

    connected = module.sqlite3.connect
    try:
        module.sqlite3.connect = lambda *args, **kwargs: connected(*args, **(kwargs | {"timeout": 0.1}))
        with pytest.raises(TryAgainError, match="busy"):
            ensure_database(f"sqlite:///{database}")
    finally:
        module.sqlite3.connect = connected
        other.close()
