"""A disk that is full, read-only or failing: one clear error, nothing half-made, and the same command works once there is room."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gda.artifacts.fingerprint import Fingerprint
from gda.config.load import Config
from gda.config.sections import SnapshotConfig
from gda.data.store.verify import verify_snapshot
from gda.errors import MissingError
from gda.io import publish as publishing
from gda.io.atomic import write_bytes
from gda.io.publish import publish
from gda.io.shards import ShardRecord, write_shard
from gda.io.up_to_date import prepare
from gda.stages.snapshot import run

CODES = [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT]
RECORD = ShardRecord(key="k", extension="png", image=b"x", label=0)


@pytest.fixture(autouse=True)
def _work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / "source" / name).mkdir(parents=True)
        for number in range(14):
            rgb = np.random.default_rng([number, ord(name)]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(rgb).save(tmp_path / "source" / name / f"{number}.png")
    return tmp_path / "source"


def failing(code: int, at: int = 1) -> Callable[..., Any]:
    """A replacement of an `os` function that fails from the `at`-th call on."""
    count = 0

    def call(*_: Any, **__: Any) -> None:
        nonlocal count
        count += 1
        if count >= at:
            raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, call: str) -> None:
    """Guards `write_bytes`: the old content stays, no temporary is left, the message names file and cause."""
    write_bytes(tmp_path / "a", b"old")
    monkeypatch.setattr(publishing.os, call, failing(code))
    with pytest.raises(MissingError, match=rf"/a: cannot be written \({os.strerror(code)}\)"):
        write_bytes(tmp_path / "a", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


@pytest.mark.parametrize("code", CODES)
def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Guards `write_shard`: a shard that could not be flushed does not appear."""
    monkeypatch.setattr(publishing.os, "fsync", failing(code))
    with pytest.raises(MissingError, match=r"train-000000\.tar: cannot be written"):
        write_shard(tmp_path / "train-000000.tar", [RECORD])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at", [1, 3, 6, 9, 12])
def test_snapshot_on_a_full_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Guards the stage: full at any point it publishes nothing, and the same command succeeds once there is room."""
    config = Config(snapshot=SnapshotConfig(shard_size=4))
    with monkeypatch.context() as patch:
        patch.setattr(publishing.os, "fsync", failing(errno.ENOSPC, at))
        with pytest.raises(MissingError, match="No space left on device"):
            run(config, source=str(source), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run(config, source=str(source), out=tmp_path / "out")
    assert verify_snapshot(tmp_path / "out") == []


def test_copy_across_disks_fills_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards publishing to another file system that is full: the copy is taken away again, the work stays for the next try."""
    workspace = prepare(Fingerprint(stage="x", config={}), tmp_path / "here" / "out")
    (workspace.staging / "file").write_text("x")

    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(publishing.os, "rename", failing(errno.EXDEV))
        patch.setattr(publishing.shutil, "copy2", no_space)
        patch.setattr(publishing.shutil.copytree, "__kwdefaults__", None)
        patch.setattr(publishing.shutil.copytree, "__defaults__", (False, None, no_space, False, False))
        with pytest.raises(MissingError, match="No space left on device"):
            publish(workspace)
    assert list((tmp_path / "here").iterdir()) == []
    assert (publish(workspace) / "file").read_text() == "x"


def test_work_folder_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a work folder below a file: one line, no traceback."""
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "file" / "work"))
    with pytest.raises(MissingError, match="cannot be written"):
        prepare(Fingerprint(stage="x", config={}), tmp_path / "out")


def test_really_full_disk(tmp_path: Path) -> None:
    """Guards against a real device that is full, not only a pretended one."""
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("no /dev/full here")
    target = tmp_path / "train-000000.tar"
    with pytest.raises(MissingError, match="No space left"), publishing.storage_errors(target), open("/dev/full", "wb") as file:
        file.write(b"x" * 100_000)
