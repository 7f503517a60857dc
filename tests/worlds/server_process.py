"""A server as a process on loopback that tests start, kill and start again at the same address."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A server process with its children, which answers at `address`; its output goes to `folder`/server.log."""

    command: Sequence[str]
    address: str
    folder: Path
    environment: Mapping[str, str]
    process: subprocess.Popen | None = field(default=None, init=False)

    def start(self) -> None:
        """Start it and wait until it answers, whatever it answers."""
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        end = time.monotonic() + 180
        while not self._answers():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < end, f"{self.address} does not answer: {self.log()}"
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.address, timeout=5).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """End it and its children at once, with no chance to answer or to clean up; without effect where none runs."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    @contextmanager
    def down(self) -> Iterator[None]:
        """Killed while the body runs, and back after it."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    def log(self) -> str:
        """The end of what it printed."""
        return (self.folder / "server.log").read_text(errors="replace")[-3000:]
