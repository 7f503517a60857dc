"""Real servers on loopback for tests: MLflow with accounts, PostgreSQL, S3. Started once, on free ports, and stopped with their children.

What a server needs beside the project's environment is kept in a cache outside of the repository; where it cannot be had, its tests are
skipped and say why.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gda-tests"
ADMIN, PASSWORD = "admin", "loopback-admin-password"
KEY, SECRET = "AKIALOOPBACKTESTKEY0", "loopback-secret-key"
# Without dependencies: those are in the project's environment already, at the versions that it was tested with.
MODULES = {"accounts": ("Flask-WTF", "WTForms"), "postgres": ("psycopg", "psycopg-binary")}
MODULES["s3"] = ("boto3", "botocore", "s3transfer", "jmespath")
VERSITYGW = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def extra_modules(name: str) -> Path:
    """A folder with the Python packages that `MODULES` lists; skips the test where they cannot be installed."""
    folder = CACHE / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    if not (folder / ".whole").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "uv", "pip", "install", "-q", "--no-deps", "--target", str(folder), *MODULES[name]]
        if shutil.which("uv"):
            command = ["uv", *command[3:]]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"the Python packages {', '.join(MODULES[name])} cannot be installed: {error}")
        if done.returncode:
            pytest.skip(f"the Python packages {', '.join(MODULES[name])} cannot be installed: {done.stderr[-200:]}")
        (folder / ".whole").touch()
    return folder


@contextmanager
def serving(command: Sequence[str], address: str, *, folder: Path, **environment: str) -> Iterator[None]:
    """Run a server until `address` answers, and end it with all its children after; its output goes to `folder`/server.log."""
    with open(folder / "server.log", "ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _await(process, address, folder / "server.log")
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # workers, which outlive their parent
            process.wait()


def _await(process: subprocess.Popen, address: str, log: Path, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # it answers
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{address} did not answer within {seconds} s: {log.read_text()[-2000:]}")


@dataclass(frozen=True)
class MlflowServer:
    """A running server with accounts: `uri` is without credentials."""

    uri: str
    folder: Path

    def as_admin(self, patch: pytest.MonkeyPatch) -> None:
        """Let this process use the administrator's account."""
        self.as_account(patch, ADMIN, PASSWORD)

    def as_account(self, patch: pytest.MonkeyPatch, user: str, password: str) -> None:
        """Let this process use an account, in environment variables as users do."""
        for name, value in (("TRACKING_URI", self.uri), ("TRACKING_USERNAME", user), ("TRACKING_PASSWORD", password)):
            patch.setenv(f"MLFLOW_{name}", value)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    def add_account(self, patch: pytest.MonkeyPatch, user: str, password: str) -> None:
        """Make an account that may read and make what is its own."""
        with patch.context() as inner:
            self.as_admin(inner)
            from mlflow.server.auth.client import AuthServiceClient

            AuthServiceClient(self.uri).create_user(user, password)


@contextmanager
def mlflow_serving(folder: Path, *, store: str, artifacts: str, modules: Sequence[str], **environment: str) -> Iterator[MlflowServer]:
    """An MLflow server with accounts over a store and an artifact store; `modules` are names of `MODULES`."""
    port = free_port()
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\nadmin_username = {ADMIN}\n"
        f"admin_password = {PASSWORD}\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 300\n"
    )
    paths = [str(extra_modules(name)) for name in ("accounts", *modules)]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--app-name", "basic-auth", "--backend-store-uri", store, "--artifacts-destination", artifacts]
    given = {
        "PYTHONPATH": os.pathsep.join(paths),
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "loopback",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    uri = f"http://127.0.0.1:{port}"
    with serving(command, f"{uri}/health", folder=folder, **given, **environment):
        yield MlflowServer(uri, folder)


@contextmanager
def postgres_serving(folder: Path) -> Iterator[str]:
    """The address of a PostgreSQL database `mlflow`; skips the test where Debian's package is not installed."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    port, data = free_port(), folder / "data"
    user: list[str] = []
    if os.geteuid() == 0:  # it refuses to run as root
        user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(folder, "postgres")

    def call(*command: str) -> None:
        done = subprocess.run([*user, *command], cwd="/", capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr + done.stdout

    call(f"{programs[-1]}/initdb", "-D", str(data), "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    call(f"{programs[-1]}/pg_ctl", "-D", str(data), "-w", "-l", f"{folder}/log", "-o", options, "start")
    try:
        call(f"{programs[-1]}/createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "mlflow")
        yield f"postgresql://postgres@127.0.0.1:{port}/mlflow"
    finally:
        call(f"{programs[-1]}/pg_ctl", "-D", str(data), "-m", "immediate", "stop")


def versitygw() -> Path:
    """The program, built once; skips the test where Go or its module proxy is not there."""
    program = CACHE / "versitygw"
    if not program.is_file():
        go = shutil.which("go")
        if go is None:
            pytest.skip("Go, which builds the S3 server versitygw, is not installed")
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            done = subprocess.run(
                [go, "install", VERSITYGW], env=os.environ | {"GOBIN": scratch}, capture_output=True, text=True, timeout=1500, check=False
            )
            if done.returncode:
                pytest.skip(f"versitygw cannot be built: {done.stderr[-200:]}")
            os.replace(Path(scratch, "versitygw"), program)
    return program


@contextmanager
def s3_serving(folder: Path, *buckets: str) -> Iterator[str]:
    """The address of an S3 server with these buckets, for the keys `KEY` and `SECRET`."""
    port = free_port()
    for name in ("iam", "versions", *(f"data/{bucket}" for bucket in buckets)):
        (folder / name).mkdir(parents=True)
    command = [str(versitygw()), "--port", f"127.0.0.1:{port}", "--region", "us-east-1", "--iam-dir", str(folder / "iam"), "posix"]
    command += ["--versioning-dir", str(folder / "versions"), str(folder / "data")]
    address = f"http://127.0.0.1:{port}"
    with serving(command, address, folder=folder, ROOT_ACCESS_KEY=KEY, ROOT_SECRET_KEY=SECRET):
        yield address


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """MLflow with accounts, on SQLite and a folder."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    with mlflow_serving(folder, store=f"sqlite:///{folder}/runs.db", artifacts=str(folder / "artifacts"), modules=()) as server:
        yield server


@pytest.fixture(scope="session")
def mlflow_on_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """MLflow with accounts, on PostgreSQL and S3, as a cluster has it."""
    program = versitygw()
    assert program.is_file()
    root = Path(tempfile.mkdtemp(prefix="gda-servers-"))  # not under pytest's folder, which another account may not enter
    root.chmod(0o755)
    parts = {name: root / name for name in ("postgres", "s3", "mlflow")}
    for part in parts.values():
        part.mkdir()
    keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
    try:
        with postgres_serving(parts["postgres"]) as store, s3_serving(parts["s3"], "mlflow") as s3:
            place = {"MLFLOW_S3_ENDPOINT_URL": s3, "AWS_EC2_METADATA_DISABLED": "true"} | keys
            artifacts = "s3://mlflow/artifacts"
            with mlflow_serving(parts["mlflow"], store=store, artifacts=artifacts, modules=("postgres", "s3"), **place) as server:
                yield server
    finally:
        shutil.rmtree(root, ignore_errors=True)
