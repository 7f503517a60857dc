"""Kill a writer at every write that matters: nothing half-made is ever under the final name, and the same command goes on."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import KILLED, in_child, killed_at, start, wait
from PIL import Image
from trees import tree

from gda.artifacts.fingerprint import Fingerprint
from gda.config.load import Config
from gda.config.sections import SnapshotConfig
from gda.data.store.snapshot import Snapshot
from gda.data.store.verify import verify_snapshot
from gda.errors import TryAgainError
from gda.io.publish import exclusive
from gda.io.up_to_date import prepare
from gda.stages.snapshot import run

CONFIG = Config(snapshot=SnapshotConfig(shard_size=4))


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            (tmp_path / "source" / split / name).mkdir(parents=True)
            for number in range(3):
                rgb = np.random.default_rng([number, len(split), len(name), ord(name), ord(split[0])]).integers(
                    0, 256, (8, 8, 3), dtype=np.uint8
                )
                Image.fromarray(rgb).save(tmp_path / "source" / split / name / f"{number}.png")
    return tmp_path / "source"


@pytest.mark.parametrize("after", [False, True])
def test_snapshot_killed_anywhere(source: Path, tmp_path: Path, after: bool) -> None:
    """Guards the commit: after a kill at any of these calls `out` is absent or whole, and a re-run gives identical bytes."""
    run(CONFIG, source=str(source), out=tmp_path / "reference")
    expected = tree(tmp_path / "reference")
    for number in range(1 + after, 1000, 2):
        out = tmp_path / f"out{number}"
        status = in_child(killed_at(number, after=after, action=lambda out=out: run(CONFIG, source=str(source), out=out)))
        if out.exists():
            assert verify_snapshot(out) == []
            assert tree(out) == expected
        if status == 0:
            break
        assert status == KILLED
        if number % 4 == 1 + after:  # finishing after each kill would take long; leftovers of several kills are the harder case anyway
            run(CONFIG, source=str(source), out=out)
            assert tree(out) == expected
    assert number > 20
    assert not list(tmp_path.glob(".out*"))


def test_merge_killed_before_its_rename(source: Path, tmp_path: Path) -> None:
    """Guards merge: killed anywhere, the parts are untouched and the name is free or whole."""
    from gda.data.store.merge import merge_snapshots

    parts = [run(CONFIG, source=str(source), out=tmp_path / "one", as_synthetic=False).output]
    for path in list(source.rglob("*.png")):
        rgb = np.asarray(Image.open(path)).copy()
        rgb[0, 0] ^= 1
        Image.fromarray(rgb).save(path.with_name(f"x{path.name}"))
        path.unlink()
    parts.append(run(CONFIG, source=str(source), out=tmp_path / "two").output)
    before = [tree(part) for part in parts]
    for number in range(1, 1000, 3):
        out = tmp_path / f"out{number}"
        status = in_child(killed_at(number, after=False, action=lambda out=out: merge_snapshots(parts, out)))
        assert not out.exists() or verify_snapshot(out) == []
        if status == 0:
            break
    assert number > 9
    assert [tree(part) for part in parts] == before
    assert verify_snapshot(merge_snapshots(parts, tmp_path / "last").output) == []


def test_lock_dies_with_its_process(source: Path, tmp_path: Path) -> None:
    """Guards the re-run after a kill: a dead process keeps nobody out, a living one does."""
    workspace = prepare(Fingerprint(stage="x", config={}), tmp_path / "x")

    def hold_and_die() -> None:
        with exclusive(workspace):
            os._exit(KILLED)

    assert in_child(hold_and_die) == KILLED
    with exclusive(workspace):
        assert in_child(lambda: _expect_busy(workspace)) == 0


def _expect_busy(workspace: Any) -> None:
    with pytest.raises(TryAgainError), exclusive(workspace):
        pass


def test_two_processes_at_once(source: Path, tmp_path: Path) -> None:
    """Guards two equal commands started together: one makes the snapshot, the other waits its turn or finds it; none breaks it."""
    snapshot = lambda: run(CONFIG, source=str(source), out=tmp_path / "out")  # noqa: E731
    statuses = [wait(child) for child in [start(snapshot, {TryAgainError: 75}) for _ in range(3)]]
    assert set(statuses) <= {0, 75}
    assert 0 in statuses
    assert verify_snapshot(tmp_path / "out") == []
    assert Snapshot.open(tmp_path / "out").digest == run(CONFIG, source=str(source), out=tmp_path / "out").digest
