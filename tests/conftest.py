"""What every test process does first."""

import builtins
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from real_servers import mlflow_on_postgres, mlflow_server, postgres, s3
from small_images import small_images

__all__ = ["mlflow_on_postgres", "mlflow_server", "postgres", "s3", "small_images"]  # fixtures

_OF_THE_PROCESS = ("GDA_WORK_DIR", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes give a test no name: compression may write the time into them, and processes that share the tests must agree on names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="module", autouse=True)
def _process_as_found() -> Iterator[None]:
    """A pipeline step sets its process up for good, here for the tests of its module; libraries must leave printing and logging alone."""
    environment = {name: os.environ.get(name) for name in _OF_THE_PROCESS}
    printing, handlers = builtins.print, logging.getLogger().handlers[:]
    yield
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    changed = builtins.print is not printing or logging.getLogger().handlers[: len(handlers)] != handlers
    builtins.print = printing
    assert not changed, "a test left print or the root logger changed"


@pytest.fixture(scope="session", autouse=True)
def _autograd_before_anything_is_compiled() -> None:
    """Let autograd find out that there is no device before compilation pretends one.

    The first backward pass of a process counts devices, and starts a thread for each; after a `torch.compile` it counts one, and
    from then on no forked process may train. Tests fork, whatever ran before them.
    """
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without a C++ compiler, and nothing compiled before on it.

    By torch's own patching: pytest's would leave the setting hidden from whichever test of the process asks for it next.
    """
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    with config.patch({"cpp.cxx": (None, "/nonexistent/g++")}):
        yield
