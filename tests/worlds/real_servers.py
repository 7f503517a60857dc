"""Real servers on loopback for tests: MLflow with accounts. Started once, on free ports, and stopped with their children.

What a server needs beside the project's environment is kept in a cache outside of the repository; where it cannot be had, its tests are
skipped and say why.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
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
# Without dependencies: those are in the project's environment already, at the versions that it was tested with.
MODULES = {"accounts": ("Flask-WTF", "WTForms")}


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
        uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])) or "uv"
        command = [uv, "pip", "install", "-q", "--no-deps", "--python", sys.executable, "--target", str(folder), *MODULES[name]]
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


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """MLflow with accounts, on SQLite and a folder."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    with mlflow_serving(folder, store=f"sqlite:///{folder}/runs.db", artifacts=str(folder / "artifacts"), modules=()) as server:
        yield server
