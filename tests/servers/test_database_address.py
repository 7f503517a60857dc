"""A PostgreSQL database as MLFLOW_TRACKING_URI itself, without a server of MLflow before it."""

import pytest
from killing import start, wait
from real_servers import store_modules

from gda.errors import TryAgainError
from gda.tracking import connect, ensure_experiment, mlflow_errors

pytestmark = pytest.mark.servers


@pytest.fixture
def address(postgres, tmp_path, monkeypatch):
    """An empty database, which nobody else uses."""
    monkeypatch.syspath_prepend(str(store_modules()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tests")
    uri = postgres.database(tmp_path.name.replace("-", "_"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def _use():
    with mlflow_errors():
        ensure_experiment(connect())


def test_the_first_to_use_an_empty_database_makes_it(address):
    """Commands that meet in an empty database: one makes the tables, the others end well or may be tried again, and then it works."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  before the processes part, so that they start together

    commands = [start(_use, {TryAgainError: 75}) for _ in range(3)]
    codes = [wait(command) for command in commands]
    assert set(codes) <= {0, 75}
    assert 0 in codes
    _use()
