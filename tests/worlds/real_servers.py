"""Real servers on loopback for tests: started once, on free ports, killed and started again, and ended with their children.

What a server needs in addition to the project's environment is kept in a cache outside of the repository; where it is absent, its tests are
skipped and say why. Only `make test-servers` fills the cache.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from filelock import FileLock
from real_stores import CACHE, S3, Postgres, may_install
from server_process import Server, free_port

ADMIN, PASSWORD = "admin", "loopback-admin-password"
# Without further dependencies: those are in the project's environment already, at the versions that it was tested with.
STORES = ("boto3==1.44.8", "botocore==1.44.8", "jmespath==1.1.0", "s3transfer==0.19.3", "psycopg==3.3.9", "psycopg-binary==3.3.9")


def store_modules() -> Path:
    """A folder with the Python packages that MLflow needs for PostgreSQL and S3; skips the test if they are missing."""
    folder = CACHE / f"stores-{sys.version_info.major}.{sys.version_info.minor}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        whole = folder / ".whole"
        if not whole.is_file() or whole.read_text() != " ".join(STORES):
            if not may_install():
                pytest.skip(f"MLflow's packages for PostgreSQL and S3 are not in {folder}: make test-servers installs them")
            shutil.rmtree(folder, ignore_errors=True)
            uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])) or "uv"
            command = [uv, "pip", "install", "-q", "--no-deps", "--python", sys.executable, "--target", str(folder), *STORES]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode:
                pytest.skip(f"MLflow's packages for PostgreSQL and S3 cannot be installed: {done.stderr[-200:]}")
            whole.write_text(" ".join(STORES))
    return folder


@dataclass(frozen=True)
class MlflowServer:
    """A running MLflow with accounts: `uri` is without credentials."""

    uri: str
    server: Server

    def as_admin(self, patch: pytest.MonkeyPatch) -> None:
        """Let this process use the administrator's account."""
        self.as_account(patch, ADMIN, PASSWORD)

    def as_account(self, patch: pytest.MonkeyPatch, user: str, password: str) -> None:
        """Let this process use an account, in environment variables as users do."""
        for name, value in (("TRACKING_URI", self.uri), ("TRACKING_USERNAME", user), ("TRACKING_PASSWORD", password)):
            patch.setenv(f"MLFLOW_{name}", value)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def add_account(self, user: str, password: str) -> None:
        """Make an account that may read everything and make new things."""
        self._call("2.0/mlflow/users/create", username=user, password=password)

    def grant(self, user: str, experiment: str, permission: str) -> None:
        """Set what an account may do with an experiment: DENY, READ, EDIT or MANAGE."""
        what = {"username": user, "resource_type": "experiment", "resource_id": experiment}
        requests.post(f"{self.uri}/api/3.0/mlflow/users/permissions/revoke", json=what, auth=(ADMIN, PASSWORD), timeout=60)
        self._call("3.0/mlflow/users/permissions/grant", permission=permission, **what)

    def _call(self, path: str, **content: str) -> None:
        answer = requests.post(f"{self.uri}/api/{path}", json=content, auth=(ADMIN, PASSWORD), timeout=60)
        assert answer.ok, answer.text


@contextmanager
def mlflow_serving(folder: Path, *, store: str, accounts: str, artifacts: str, **environment: str) -> Iterator[MlflowServer]:
    """An MLflow server over the databases `store` (runs and models) and `accounts`, and an artifact store."""
    port = free_port()
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {accounts}\nadmin_username = {ADMIN}\n"
        f"admin_password = {PASSWORD}\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 300\n"
    )
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--app-name", "basic-auth", "--backend-store-uri", store, "--artifacts-destination", artifacts]
    given = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "loopback",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    uri = f"http://127.0.0.1:{port}"
    others = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))}
    server = Server(command, f"{uri}/health", folder, others | given | environment)
    try:
        server.start()
        yield MlflowServer(uri, server)
    finally:
        server.kill()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """MLflow with accounts, on SQLite and a folder."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    runs, accounts = (f"sqlite:///{folder}/{name}.db" for name in ("runs", "auth"))
    with mlflow_serving(folder, store=runs, accounts=accounts, artifacts=str(folder / "artifacts")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL cluster; skips the test where PostgreSQL is not installed."""
    with Postgres.made() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 server; skips the test where there is no versitygw, or no file system that it can use."""
    with S3.serving(tmp_path_factory.mktemp("s3")) as store:
        yield store


@pytest.fixture(scope="session")
def mlflow_on_postgres(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres, s3: S3) -> Iterator[MlflowServer]:
    """MLflow with accounts as in production: both databases in PostgreSQL, artifacts in the bucket `mlflow`."""
    modules, folder = store_modules(), tmp_path_factory.mktemp("mlflow-on-postgres")
    runs, accounts = postgres.database("mlflow"), postgres.database("auth")
    s3.bucket("mlflow")
    keys = s3.environment() | {"PYTHONPATH": str(modules)}
    with mlflow_serving(folder, store=runs, accounts=accounts, artifacts="s3://mlflow/artifacts", **keys) as server:
        yield server
