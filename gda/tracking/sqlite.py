"""MLflow's SQLite database: made whole under a temporary name and renamed, so that a kill leaves nothing or all of it; checked before use.

MLflow migrates an empty database in place: a process that is killed meanwhile, or a second one, leaves a database that nothing can use.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from gda.errors import ConfigError, MissingError, TryAgainError
from gda.io.atomic import TEMPORARY_SUFFIX, sync, temporary_name
from gda.io.locks import locked
from gda.runtime.disks import storage_errors
from gda.tracking.secrets import masked

_WAIT = 600.0  # seconds for another process that makes the database, a matter of seconds on a quiet machine
_COUNTED = ("runs", "registered_models")


def database_file(uri: str) -> Path | None:
    """The file of a SQLite address in any form (relative, absolute, `file:` with a query); None for others and for memory.

    Raises `ConfigError` for an address that cannot be read.
    """
    if not uri.lower().startswith(("sqlite:", "sqlite+")):
        return None
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):
        raise ConfigError(f"MLFLOW_TRACKING_URI {masked(uri)!r}: accepted for SQLite: sqlite:///FILE, sqlite:////ABSOLUTE/FILE") from None
    name = url.database or ""
    if name.startswith("file:") and "uri" in url.query:
        name = unquote(name.removeprefix("file:").partition("?")[0])
        name = "/" + name.lstrip("/") if name.startswith("//") else name
    return None if name in ("", ":memory:") or url.query.get("mode") == "memory" else Path(name)


def ensure_database(uri: str) -> None:
    """Make sure that the SQLite database at `uri` is whole, making it where there is none; other addresses are left alone.

    Raises `MissingError` with the remedy for one that is broken, half made, of another MLflow, or not writable;
    `TryAgainError` when another process takes too long to make it.
    """
    path = database_file(uri)
    if path is None:
        return
    if _is_empty(path):
        _make(path, uri)
    else:
        _require_whole(path, uri)


def _make(path: Path, uri: str) -> None:
    if "mode=ro" in uri:
        raise MissingError(f"{path}: holds no MLflow database, and mode=ro in MLFLOW_TRACKING_URI keeps it from being made")
    busy = f"{path}: another process has been making MLflow's database for {_WAIT:.0f} s; run the same command again"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock"), busy=busy, wait=_WAIT):
        if not _is_empty(path):  # by the process that held the lock
            return _require_whole(path, uri)
        for left in path.parent.glob(f".{path.name}.*{TEMPORARY_SUFFIX}*"):  # of a killed process, since we hold the lock
            left.unlink(missing_ok=True)
        temporary = temporary_name(path)
        try:
            _migrate(temporary, path)
            with storage_errors(path):
                sync(temporary)
                os.replace(temporary, path)
                sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return None


def _migrate(temporary: Path, path: Path) -> None:
    """All tables of this MLflow, and its default experiment with artifacts next to `path`."""
    import logging

    from sqlalchemy.exc import OperationalError

    logging.getLogger("alembic").setLevel(logging.CRITICAL)
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    try:
        with storage_errors(path):
            temporary.touch(exist_ok=False)
        store = SqlAlchemyStore(f"sqlite:///{temporary.absolute()}", (path.resolve().parent / "mlruns").as_uri())
        store.engine.dispose()
    except OperationalError as error:
        raise MissingError(f"{path}: MLflow's database cannot be made ({error.orig}); make room or choose another place") from None


def _is_empty(path: Path) -> bool:
    """Whether there is no database, or one without tables, as an interrupted start of other programs leaves it."""
    try:
        if not path.exists() or path.stat().st_size == 0:
            return not path.is_dir()
    except OSError as error:
        raise MissingError(f"{path}: MLflow's database cannot be reached ({error.strerror})") from None
    return not _tables(path)


def _tables(path: Path) -> set[str]:
    return {str(name) for (name,) in _query(path, "select name from sqlite_master where type = 'table'")}


def _query(path: Path, statement: str) -> list[Any]:
    """Rows of a database. Raises `MissingError` for a file that is damaged or no database, `TryAgainError` for a locked one.

    It is opened for writing, because SQLite must first roll back what a killed process left half done.
    """
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=rw", uri=True, timeout=20)) as database:
            return database.execute(statement).fetchall()
    except sqlite3.DatabaseError as error:
        message = str(error)
        if "locked" in message:
            raise TryAgainError(f"{path}: MLflow's database is busy ({message}); run the same command again") from None
        if "readonly" in message:
            raise MissingError(
                f"{path}: a process was killed while it wrote to MLflow's database; make the file and its folder writable, so that SQLite "
                f"can undo that by {path.name}-journal"
            ) from None
        if "unable to open" in message:
            raise MissingError(f"{path}: MLflow's database cannot be opened ({_why_not(path)})") from None
        raise MissingError(
            f"{path}: is no whole SQLite database ({message}); restore it from a backup, or move it away: the next command makes a new one"
        ) from None


def _why_not(path: Path) -> str:
    if path.is_dir():
        return "it is a folder"
    return "it may not be read" if path.exists() and not os.access(path, os.R_OK) else "unable to open database file"


def _require_whole(path: Path, uri: str) -> None:
    import mlflow.store.model_registry.dbmodels.models  # registers its tables
    import mlflow.store.tracking.dbmodels.models
    import mlflow.store.workspace.dbmodels.models  # noqa: F401
    from mlflow.store.db.base_sql_model import Base

    tables = _tables(path)
    version = _query(path, "select version_num from alembic_version")[:1] if "alembic_version" in tables else []
    missing = set(Base.metadata.tables) - tables
    if not missing and version and str(version[0][0]) == _newest():
        return
    raise MissingError(f"{path}: {_what_is_wrong(path, uri, tables, str(version[0][0]) if version else None)}")


def _what_is_wrong(path: Path, uri: str, tables: set[str], version: str | None) -> str:
    import mlflow

    if version is not None and version not in _known_versions():
        return f"MLflow's database has a schema ({version}) that MLflow {mlflow.__version__} does not know; install the MLflow that made it"
    held = sum(_query(path, f"select count(*) from {table}")[0][0] for table in _COUNTED if table in tables)
    if held == 0:
        return (
            "MLflow's database schema is half made, as an interrupted first start leaves it, or of another MLflow, and it holds no run "
            "and no model; remove the file, the next command makes it again"
        )
    if version == _newest():
        return "MLflow's database lacks tables of its schema; restore it from a backup, or move it away: the next command makes a new one"
    return (
        f"MLflow's database schema is of an older MLflow, or was interrupted in an upgrade (out-of-date: {version}); "
        f"back it up, then run `mlflow db upgrade {masked(uri)}`"
    )


def _scripts() -> Any:
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    return ScriptDirectory.from_config(_get_alembic_config(db_url=""))


def _newest() -> str:
    return str(_scripts().get_current_head())


def _known_versions() -> set[str]:
    return {script.revision for script in _scripts().walk_revisions()}
