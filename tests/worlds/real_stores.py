"""PostgreSQL and S3 as real programs: where they are found, how they are started, stopped and filled."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock
from server_process import Server, free_port

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gda-tests"
KEY, SECRET, REGION = "loopback-key", "loopback-secret-of-s3", "us-east-1"
VERSITYGW = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"


def may_install() -> bool:
    """Whether a test may build and install what it lacks: `make test-servers` sets this."""
    return os.environ.get("GDA_TEST_INSTALL") == "1"


@dataclass(frozen=True)
class Postgres:
    """A cluster of its own in `folder`, on loopback, without passwords."""

    programs: Path
    folder: Path
    port: int

    @classmethod
    @contextmanager
    def made(cls) -> Iterator["Postgres"]:
        """A running cluster, ended and removed after; skips the test where PostgreSQL is not installed."""
        programs = _postgres_programs()
        folder = Path(tempfile.mkdtemp(prefix="gda-postgres-"))  # not pytest's, which no other user may enter
        try:
            if os.geteuid() == 0:  # PostgreSQL refuses root
                shutil.chown(folder, "postgres")
            cluster = cls(programs, folder, free_port())
            cluster._run("initdb", "-D", f"{folder}/data", "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync")
            cluster.start()
            yield cluster
        finally:
            if (folder / "data/postmaster.pid").exists():
                cluster.stop("immediate")
            shutil.rmtree(folder, ignore_errors=True)

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-w", "-t", "120", "-l", f"{self.folder}/log", "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it: `immediate` as in a crash, `fast` in order."""
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-w", "-t", "120", "-m", mode, "stop")

    @contextmanager
    def down(self) -> Iterator[None]:
        """Crashed while the body runs, and back after it."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def database(self, name: str) -> str:
        """The address of a new, empty database."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", name)
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *arguments: str) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        with tempfile.TemporaryFile("w+") as output:  # no pipe: the server would keep it open
            command = [*user, str(self.programs / program), *arguments]
            code = subprocess.run(command, cwd="/", stdout=output, stderr=output, timeout=300, check=False).returncode
            output.seek(0)
            assert code == 0, f"{program}: {output.read()[-2000:]}"


def _postgres_programs() -> Path:
    """The folder of PostgreSQL's programs, of the newest where there are several."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    named = shutil.which("initdb")
    if not found and named is None:
        pytest.skip("PostgreSQL is not installed: no initdb in /usr/lib/postgresql/*/bin or PATH")
    if os.geteuid() == 0:
        here = subprocess.run(["runuser", "-u", "postgres", "--", "test", "-x", tempfile.gettempdir()], cwd="/", check=False)
        if here.returncode:
            pytest.skip(f"PostgreSQL cannot run as root, and there is no user postgres who may enter {tempfile.gettempdir()}")
    return found[-1].parent if found else Path(str(named)).resolve().parent


@dataclass(frozen=True)
class S3:
    """versitygw over a folder: a bucket is a folder in `data`, an object a file in it."""

    data: Path
    server: Server

    @classmethod
    @contextmanager
    def serving(cls, folder: Path) -> Iterator["S3"]:
        """A running store in `folder`; skips the test where there is no versitygw, or no file system that it can use."""
        program = _versitygw()
        try:
            os.setxattr(folder, "user.gda", b"1")
        except OSError as error:
            pytest.skip(f"versitygw keeps metadata in user attributes, which the file system of {folder} has not ({error.strerror})")
        for name in ("data", "iam", "versions"):
            (folder / name).mkdir()
        where = f"127.0.0.1:{free_port()}"
        command = [str(program), "--port", where, "--region", REGION, "--iam-dir", f"{folder}/iam", "posix"]
        command += ["--versioning-dir", f"{folder}/versions", f"{folder}/data"]
        keys = {"ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET}
        server = Server(command, f"http://{where}", folder, dict(os.environ) | keys)
        try:
            server.start()
            yield cls(folder / "data", server)
        finally:
            server.kill()

    def bucket(self, name: str) -> Path:
        """Make a bucket; returns the folder of its objects."""
        (self.data / name).mkdir()
        return self.data / name

    @contextmanager
    def without(self, bucket: str) -> Iterator[None]:
        """A bucket that is gone while the body runs."""
        elsewhere = self.data.with_name(bucket)
        (self.data / bucket).rename(elsewhere)
        try:
            yield
        finally:
            elsewhere.rename(self.data / bucket)

    @contextmanager
    def with_other_keys(self) -> Iterator[None]:
        """Other credentials than those of `environment`, while the body runs."""
        known = self.server.environment
        self.server.kill()
        self.server.environment = dict(known) | {"ROOT_SECRET_KEY": "another-secret"}
        self.server.start()
        try:
            yield
        finally:
            self.server.kill()
            self.server.environment = known
            self.server.start()

    def environment(self) -> dict[str, str]:
        """What a client of it needs in its environment; it tries twice at most."""
        return {
            "MLFLOW_S3_ENDPOINT_URL": self.server.address,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "2",
        }


def _versitygw() -> Path:
    """The program, from PATH or the cache, where `make test-servers` builds it once; skips the test where it is in neither."""
    if named := shutil.which("versitygw"):
        return Path(named)
    name, version = VERSITYGW.rsplit("/", 1)[-1].split("@")
    program = CACHE / f"{name}-{version}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(program.with_suffix(".lock")):
        if not program.is_file():
            _build(program, name)
    return program


def _build(program: Path, name: str) -> None:
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if not may_install() or go is None:
        why = "go, which builds it, is not installed" if go is None else "make test-servers builds it, in minutes"
        pytest.skip(f"{name} is neither in PATH nor in {CACHE}: {why}")
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        command = [go, "install", VERSITYGW]
        done = subprocess.run(
            command, cwd=folder, env=dict(os.environ) | {"GOBIN": folder}, capture_output=True, text=True, timeout=1500, check=False
        )
        if done.returncode:
            pytest.skip(f"{name} cannot be built: {done.stderr[-300:]}")
        os.replace(Path(folder, name), program)
