"""A real MLflow server with accounts: what it refuses is named with its remedy, and kept runs are logged by the account that may."""

import pytest

from gda.cli.main import main
from gda.errors import ConfigError, MissingError
from gda.tracking import connect, ensure_experiment, mlflow_errors


@pytest.fixture
def place(mlflow_server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / ".gda"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"of-{tmp_path.name}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return tmp_path


def test_an_unknown_account_costs_a_note_and_then_nothing(place, mlflow_server, monkeypatch, small_images, capsys):
    """401: the result is kept and the variables are named; with the password the next command logs it, once."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-p4ssw0rd")
    assert main(["snapshot", str(small_images), "--out", "real", "--quiet"]) == 0
    message = capsys.readouterr().err
    assert "MLFLOW_TRACKING_PASSWORD" in message
    assert "wrong-p4ssw0rd" not in message
    mlflow_server.as_admin(monkeypatch)
    for _ in range(2):
        assert main(["doctor"]) == 0
    client = connect()
    (run,) = client.search_runs([ensure_experiment(client)])
    assert (run.info.run_name, run.info.status) == ("snapshot real", "FINISHED")


def test_credentials_in_the_address_work_and_are_not_shown(place, mlflow_server, monkeypatch, small_images, capsys):
    """User and password may be part of the address; they are in no output and in nothing that MLflow keeps."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri.replace("//", "//admin:loopback-admin-password@"))
    assert main(["snapshot", str(small_images), "--out", "real"]) == 0
    assert main(["doctor"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "loopback-admin-password" not in printed.out
    client = connect()
    (run,) = client.search_runs([ensure_experiment(client)])
    assert "loopback-admin-password" not in str(run.to_dictionary())


def test_what_is_no_mlflow_server_is_a_wrong_address(place, mlflow_server, monkeypatch):
    """Another path of the same host answers 404: exit code 2."""
    mlflow_server.as_admin(monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{mlflow_server.uri}/elsewhere")
    with pytest.raises(ConfigError, match="no MLflow server"), mlflow_errors():
        connect().get_experiment_by_name("x")


def test_tls_where_the_server_has_none_is_named(place, mlflow_server, monkeypatch):
    """https to a server of http passes never: exit code 5 with the remedy, not try again."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri.replace("http:", "https:"))
    with pytest.raises(MissingError, match="TLS"), mlflow_errors():
        connect().get_experiment_by_name("x")
