"""Where runs are recorded: address, experiment and client. MLflow is imported only when a client is made."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from gda.errors import MissingError
from gda.tracking.complaints import mlflow_errors
from gda.tracking.secrets import masked
from gda.tracking.sqlite import database_file, ensure_database

DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"
DEFAULT_EXPERIMENT = "gda"
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # A server that is away should be noticed in seconds, not after MLflow's default of several minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or SQLite in the working directory. It may hold secrets: `shown_uri` is for printing."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI


def shown_uri() -> str:
    """`tracking_uri()` without user, password and tokens."""
    return masked(tracking_uri())


def experiment_name() -> str:
    """`MLFLOW_EXPERIMENT_NAME`, or `gda`."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT


def connect() -> Any:
    """An MLflow client for `tracking_uri()`, with telemetry off and pickled models refused; a new SQLite database is made whole first.

    Raises `ConfigError` for an address that MLflow does not take, `MissingError` for a database that cannot be used.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    with mlflow_errors():
        for uri in {tracking_uri(), os.environ.get("MLFLOW_REGISTRY_URI") or tracking_uri()}:
            ensure_database(uri)
        from mlflow import MlflowClient

        # After the import, which sets levels of its own. They print tracebacks, which hold addresses with their passwords.
        for name in ("mlflow", "alembic", "sqlalchemy", "urllib3"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        return MlflowClient(tracking_uri=tracking_uri())


@contextmanager
def default_server() -> Iterator[None]:
    """Inside, MLflow's functions that take no client, such as `mlflow.pyfunc.load_model`, work at `tracking_uri()`.

    MLflow keeps the address in the process and in its environment; both are restored afterwards.
    """
    import mlflow

    found, here = os.environ.get("MLFLOW_TRACKING_URI"), tracking_uri()
    try:
        mlflow.set_tracking_uri(here)
        yield
    finally:
        mlflow.set_tracking_uri(None)  # forgets it, and the variable with it
        if found is not None:
            os.environ["MLFLOW_TRACKING_URI"] = found


def ensure_experiment(client: Any) -> str:
    """The id of the experiment `experiment_name()`, which is created if missing.

    Raises `MissingError` if it was deleted, or keeps its artifacts at the project's former path.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(experiment_name())
    if found is None:
        try:
            return str(client.create_experiment(experiment_name(), artifact_location=_artifact_location()))
        except MlflowException:  # another process created it in between
            found = client.get_experiment_by_name(experiment_name())
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise MissingError(
            f"MLflow's experiment {found.name!r} is deleted; restore it with `mlflow experiments restore --experiment-id "
            f"{found.experiment_id}`, or set MLFLOW_EXPERIMENT_NAME to another"
        )
    _require_here(found)
    return str(found.experiment_id)


def _artifact_location() -> str | None:
    """`mlruns` next to a SQLite file; a server chooses its own place."""
    database = database_file(tracking_uri())
    return (database.resolve().parent / "mlruns").as_uri() if database is not None else None


def _require_here(experiment: Any) -> None:
    """Artifacts of a SQLite store lie at the absolute path at which it was made: a project that moved would write to the old one."""
    database, location = database_file(tracking_uri()), _local(experiment.artifact_location)
    if database is None or location is None:
        return
    parts = location.parts
    project = Path(*parts[: parts.index("mlruns")]) if "mlruns" in parts[1:] else location.parent
    other = project / database.name
    if project.is_dir() and not (other.is_file() and not other.samefile(database)):
        return
    raise MissingError(
        f"MLflow's experiment {experiment.name!r} keeps its artifacts in {location}, but {database} was moved or copied from there; "
        f"move it back, make {project} a link to {database.resolve().parent}, or set MLFLOW_EXPERIMENT_NAME to a new experiment"
    )


def _local(location: str) -> Path | None:
    parts = urlsplit(location)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(location) if not parts.scheme and Path(location).is_absolute() else None
