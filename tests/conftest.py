"""What every test process does first."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from process_state import process_as_found
from real_servers import mlflow_on_postgres, mlflow_server, postgres, s3
from sizes import NIGHTLY
from small_images import small_images

__all__ = ["mlflow_on_postgres", "mlflow_server", "postgres", "s3", "small_images"]  # fixtures


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that only `make nightly` runs, with that reason."""
    for item in items:
        if "nightly" in item.keywords and not NIGHTLY:
            item.add_marker(pytest.mark.skip(reason="slow and seldom fails: make nightly runs it"))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Do not name a test by bytes: compression may write the time into them, and processes that share the tests must agree on names."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="module", autouse=True)
def _process_as_found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests of one module leave no state for the next module, in any order: processes take modules as they become free.

    The ledger of test splits is the module's own, never that of anyone who runs the tests.
    """
    with process_as_found() as changed:
        os.environ["GDA_LEDGER"] = str(tmp_path_factory.mktemp("ledgers") / "0.jsonl")
        yield
    assert not changed, changed


@pytest.fixture(autouse=True)
def _own_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test counts its own openings of test splits, next to those of its module's fixtures."""
    monkeypatch.setenv("GDA_LEDGER", str(Path(os.environ["GDA_LEDGER"]).with_name(f"{next(_NUMBERS)}.jsonl")))


_NUMBERS = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def _autograd_before_anything_is_compiled() -> None:
    """Let autograd detect that there is no device, before compilation pretends that there is one.

    The first backward pass of a process counts devices, and starts a thread for each; after a `torch.compile` it counts one, and
    from then on no forked process may train. Tests fork, whatever ran before them.
    """
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without a C++ compiler, and nothing compiled before on it.

    By torch's own patching: pytest's would leave the setting hidden from whichever test of the process requests it next.
    """
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    with config.patch({"cpp.cxx": (None, "/nonexistent/g++")}):
        yield
