"""Complaints of MLflow and its stores: one error each, with remedy and exit code; no defect of ours, and no secret shown."""

import json
import logging
import re
import sqlite3

import pytest
import requests
from mlflow.exceptions import MlflowException, RestException

from gda.cli.main import main
from gda.errors import ConfigError, MissingError, TryAgainError
from gda.tracking import connect, masked, mlflow_errors
from gda.tracking.complaints import complaint_of, explained

SERVER = "https://alice:s3cr3tpw@mlflow.example/?token=t0k3n"


def _http(status, text=""):
    return MlflowException(f"API request to endpoint /api/2.0/x failed with error code {status} != 200. Response body: '{text}'")


def _answer(code, message):
    return RestException({"error_code": code, "message": message})


def _cloud(name, text, **fields):
    return type(name, (Exception,), {"__module__": "botocore.exceptions", **fields})(text)


def _artifact(status, text):
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status} Client Error: {text}", response=response)


def _sql(name, text):
    """What PostgreSQL's driver says, as MLflow repeats it."""
    return MlflowException(f"(psycopg.errors.{name}) {text}")


def _proxied(status, code, text):
    """What a server that passes artifacts on says of its own store."""
    answer = json.dumps({"error_code": code, "message": f"Failed to list artifacts in s3://b/a: {text}"})
    return _artifact(status, f"X for url: https://mlflow.example/api/2.0/mlflow-artifacts. Response text: {answer}")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (_http(401, "You are not authenticated."), MissingError, "MLFLOW_TRACKING_USERNAME"),
        (_http(403, "Permission denied"), MissingError, "does not permit"),
        (_answer("PERMISSION_DENIED", "no"), MissingError, "does not permit"),
        (_http(403, "Invalid Host header - possible DNS rebinding attack detected"), MissingError, "--allowed-hosts"),
        (_http(404, "<html>"), ConfigError, "no MLflow server"),
        (
            MlflowException("API request to endpoint was successful but the response body was not in a valid JSON format"),
            ConfigError,
            "login",
        ),
        (_http(413, "too large"), MissingError, "no room"),
        (_http(507, "x"), MissingError, "full"),
        (_http(429, "slow down"), TryAgainError, "could not be reached"),
        (_http(503, "x"), TryAgainError, "fails to answer (503: x)"),
        (_answer("INTERNAL_ERROR", "boom"), TryAgainError, "fails to answer (500"),
        (MlflowException("Caused by ResponseError('too many 500 error responses')"), TryAgainError, "its artifact store"),
        (_answer("RESOURCE_LIMIT_EXCEEDED", "quota of models reached"), MissingError, "quota"),
        (_answer("REQUEST_LIMIT_EXCEEDED", "too fast"), TryAgainError, "could not be reached"),
        (_artifact(403, "Forbidden"), MissingError, "does not permit"),
        (_artifact(400, "Bad Request"), MissingError, "refuses"),
        (_proxied(401, "UNAUTHENTICATED", "The request signature does not match"), MissingError, "refuses the account of the server"),
        (_proxied(401, "UNAUTHENTICATED", "The request signature does not match"), MissingError, "(Failed to list artifacts in s3://b/a:"),
        (_proxied(403, "PERMISSION_DENIED", "Access Denied"), MissingError, "refuses the account of the server"),
        (_proxied(404, "RESOURCE_DOES_NOT_EXIST", "The specified bucket does not exist."), MissingError, "no such bucket"),
        (requests.ConnectionError("Connection refused"), TryAgainError, "could not be reached"),
        (requests.Timeout("Read timed out."), TryAgainError, "could not be reached"),
        (requests.exceptions.SSLError("certificate verify failed: self-signed"), MissingError, "MLFLOW_TRACKING_SERVER_CERT_PATH"),
        (MlflowException("Detected out-of-date database schema (found version a, but expected b)"), MissingError, "mlflow db upgrade"),
        (MlflowException("The experiment 1 must be in the 'active' state. Current state is deleted."), MissingError, "restore"),
        (MlflowException("Invalid model name 'a/b'. Names cannot contain '/' or ':'."), ConfigError, "'a/b'"),
        (sqlite3.OperationalError("database or disk is full"), MissingError, "room"),
        (sqlite3.OperationalError("database is locked"), TryAgainError, "busy"),
        (
            _sql("UniqueViolation", "duplicate key value ... (typname)=(alembic_version) already exists.\n[SQL: CREATE"),
            TryAgainError,
            "another process",
        ),
        (_sql("DuplicateTable", 'relation "runs" already exists\n\n[SQL: CREATE TABLE'), TryAgainError, "another process"),
        (OSError(122, "Disk quota exceeded"), MissingError, "room"),
        (FileNotFoundError(2, "No such file or directory", "/old/mlruns/1"), MissingError, "/old/mlruns/1"),
        (PermissionError(13, "Permission denied", "/old"), MissingError, "/old"),
        (ModuleNotFoundError("No module named 'psycopg'", name="psycopg"), MissingError, "'psycopg'"),
        (_cloud("NoCredentialsError", "Unable to locate credentials"), MissingError, "AWS_ACCESS_KEY_ID"),
        (_cloud("ClientError", "An error occurred (AccessDenied) when calling PutObject"), MissingError, "refuses this account"),
        (_cloud("ClientError", "An error occurred (NoSuchBucket)"), MissingError, "bucket"),
        (_cloud("EndpointConnectionError", "Could not connect to the endpoint"), TryAgainError, "could not be reached"),
    ],
)
def test_a_complaint_has_its_error_and_remedy(monkeypatch, error, kind, message):
    """75 is for what may pass by itself alone; what stays until somebody acts is 5 or 2, in one line and without secrets."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    complaint = complaint_of(error)
    assert type(complaint) is kind, complaint
    assert message in str(complaint)
    assert "\n" not in str(complaint)
    assert not any(secret in str(complaint) for secret in ("alice", "s3cr3tpw", "t0k3n"))


@pytest.mark.parametrize(
    "error", [KeyError("schema"), TypeError("quota"), AssertionError("certificate"), ZeroDivisionError(), ValueError("x")]
)
def test_a_defect_of_ours_passes_through(error):
    """Errors of our own code are no complaints, whatever their words: they are exit code 1."""
    with pytest.raises(type(error)), mlflow_errors():
        raise error


_HUNG_UP = MlflowException("Caused by ProtocolError('Connection aborted.', ConnectionResetError(104, 'Connection reset by peer'))")


@pytest.mark.parametrize(
    ("upload", "listing", "kind", "message"),
    [
        (_http(500, "x"), _proxied(404, "RESOURCE_DOES_NOT_EXIST", "The specified bucket does not exist."), MissingError, "no such bucket"),
        (_HUNG_UP, _proxied(404, "RESOURCE_DOES_NOT_EXIST", "The specified bucket does not exist."), MissingError, "no such bucket"),
        (_HUNG_UP, None, TryAgainError, "could not be reached"),
        (_http(500, "x"), _http(500, "y"), TryAgainError, "(500: y)"),
        (_http(500, "x"), None, TryAgainError, "(500: x)"),
        (_http(403, "x"), AssertionError("not called"), MissingError, "does not permit"),
        (requests.Timeout("Read timed out."), AssertionError("not called"), TryAgainError, "could not be reached"),
        (KeyError("ours"), AssertionError("not called"), KeyError, "ours"),
    ],
)
def test_an_upload_that_fails_is_explained_by_a_listing(upload, listing, kind, message):
    """A server that passes artifacts on answers 500 to an upload, or hangs up, and the reason to a listing; only then it is requested."""

    def probe():
        if listing is not None:
            raise listing

    with pytest.raises(kind, match=re.escape(message)), mlflow_errors(), explained(probe):
        raise upload


@pytest.mark.parametrize(
    ("uri", "kind", "message"),
    [
        ("./mlruns", ConfigError, "migrate-filestore"),
        ("foo://host", ConfigError, "accepted"),
        ("s3://bucket/runs", ConfigError, "accepted"),
        ("uc://x", ConfigError, "accepted"),
        ("http://[bad", ConfigError, "accepted"),
        ("mysql://u:s3cr3tpw@127.0.0.1:9/x", MissingError, "MySQLdb"),
        ("http://127.0.0.1:9", TryAgainError, "could not be reached"),
        ("sqlite:////proc/none/x.db", MissingError, "/proc/none"),
    ],
)
def test_addresses_as_mlflow_itself_complains_of_them(tmp_path, monkeypatch, uri, kind, message):
    """The words that are looked for are those that this MLflow says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(kind) as raised, mlflow_errors():
        connect().get_experiment_by_name("x")
    assert type(raised.value) is kind
    assert message in str(raised.value)
    assert "s3cr3tpw" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "https://alice:s3cr3tpw@host/path",
        "postgresql://u:s3cr3tpw@h/db?sslmode=require",
        "postgresql://u:p@s3cr3tpw/x@h/db",
        "https://host/?token=s3cr3tpw&a=1",
        "https://host/#access_token=s3cr3tpw",
        "s3://b/x?X-Amz-Signature=s3cr3tpw",
        "Authorization: Basic s3cr3tpws3cr3tpw",
        "{'Authorization': 'Bearer s3cr3tpw'}",
        "AWS_SECRET_ACCESS_KEY=s3cr3tpw",
        '{"db_password": "s3cr3tpw"}',
        "the value s3cr3tpw-of-the-environment",
    ],
)
def test_secrets_are_masked(monkeypatch, text):
    """One function for addresses, headers, JSON, assignments and what the environment holds as a secret."""
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cr3tpw-of-the-environment")
    assert "s3cr3tpw" not in masked(text)


@pytest.mark.parametrize("text", ["sqlite:///mlflow.db", "https://host:5000/path", "tokenizer: clip", "compass=3", "classes: cat, dog"])
def test_what_is_no_secret_stays(text):
    """A mask over everything would hide the address that a message is about."""
    assert masked(text) == text


def test_the_current_folder_is_no_password(monkeypatch):
    """Shells call it PWD; every message with a path would lose its beginning."""
    monkeypatch.setenv("PWD", "/home/ada/birds")
    monkeypatch.setenv("DB_PWD", "s3cr3tpw")
    assert masked("/home/ada/birds/data/real: damaged") == "/home/ada/birds/data/real: damaged"
    assert masked("s3cr3tpw was refused") == "*** was refused"


def test_doctor_prints_the_address_without_secrets(monkeypatch, capsys, tmp_path):
    """User, password and token are not printed; host and experiment are."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "https://mlflow.example" in printed
    assert not any(secret in printed for secret in ("alice", "s3cr3tpw", "t0k3n"))


def test_libraries_log_no_addresses(monkeypatch, tmp_path):
    """MLflow and its database layer log tracebacks, in which addresses have their passwords."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    connect()
    assert all(not logging.getLogger(name).isEnabledFor(logging.ERROR) for name in ("mlflow", "sqlalchemy", "urllib3"))
