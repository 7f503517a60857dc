"""A set in which some images were replaced: kept images keep their bytes, and damage is not hidden."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from trees import tree

from gda.artifacts.snapshot import ClassInfo
from gda.data.store.replace import link_snapshot, replace_records
from gda.data.store.snapshot import Snapshot, commit_snapshot
from gda.data.store.verify import verify_snapshot
from gda.data.store.writer import ImageRecord, write_image_shard
from gda.errors import DataError
from gda.io.shards import read_shard

CLASSES = [ClassInfo(name=name, prompt_name=name) for name in ("a", "b")]


def shard(folder: Path, number: int, keys: str) -> pd.DataFrame:
    """A shard with an image for each letter, of either class in turn."""
    records = [
        ImageRecord(
            key=key,
            rgb=np.random.default_rng(ord(key)).integers(0, 256, (8, 8, 3), dtype=np.uint8),
            label=place % 2,
            class_name="ab"[place % 2],
            meta={"seed": ord(key), "prompt": "p"},
        )
        for place, key in enumerate(keys)
    ]
    return write_image_shard(folder, name=f"train-{number:06d}.tar", split="train", records=records)


@pytest.fixture
def given(tmp_path: Path) -> Snapshot:
    """Six images in three shards."""
    folder = tmp_path / "given"
    folder.mkdir()
    rows = pd.concat([shard(folder, number, keys) for number, keys in enumerate(("uv", "wx", "yz"))])
    commit_snapshot(folder, kind="synthetic", classes=CLASSES, rows=rows, provenance={"x": "y"}, licence="mit", plan_digest="p")
    return Snapshot.open(folder)


def test_images_are_exchanged(given: Snapshot, tmp_path: Path) -> None:
    """One shard stays as it is, one loses an image, one is removed, one is added; every kept record keeps its bytes."""
    (tmp_path / "new").mkdir()
    added = shard(tmp_path / "new", 3, "st")
    folder = tmp_path / "set"
    folder.mkdir()
    replace_records(given, {"w", "y", "z"}, [(tmp_path / "new" / "train-000003.tar", added)], folder, provenance={"replaced": "3"})
    made = Snapshot.open(folder)
    assert verify_snapshot(folder) == []
    assert made.manifest()["key"].tolist() == list("uvxst")
    assert [info.name for info in made.index.shards] == ["train-000000.tar", "train-000001.tar", "train-000003.tar"]
    assert (folder / "train-000000.tar").samefile(given.path / "train-000000.tar")
    kept = {record.key: record for record in read_shard(given.path / "train-000001.tar")}
    assert list(read_shard(folder / "train-000001.tar")) == [kept["x"]]
    assert (made.index.provenance, made.index.licence, made.index.plan_digest) == ({"x": "y", "replaced": "3"}, "mit", "p")
    assert set(made.manifest()["seed"]) == {ord(key) for key in "uvxst"}


def test_what_is_not_there_cannot_go(given: Snapshot, tmp_path: Path) -> None:
    """A key of another set is a mistake, and nothing is written."""
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="has no record 'q'"):
        replace_records(given, {"u", "q"}, [], tmp_path / "set", provenance={})
    assert tree(tmp_path / "set") == {}


@pytest.mark.parametrize("dropped", ["w", "z"])
def test_damage_is_not_covered_up(given: Snapshot, tmp_path: Path, dropped: str) -> None:
    """A shard that was altered is refused, whether it would be linked or written again."""
    path = given.path / "train-000001.tar"
    data = bytearray(path.read_bytes())
    place = data.index(b"IDAT") + 10
    data[place] ^= 1
    path.write_bytes(bytes(data))
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match=r"train-000001\.tar"):
        replace_records(given, {dropped}, [], tmp_path / "set", provenance={})


def test_the_same_set_under_another_name(given: Snapshot, tmp_path: Path) -> None:
    """Nothing is copied that can be linked, and it is the same set to the last byte."""
    (tmp_path / "again").mkdir()
    link_snapshot(given, tmp_path / "again")
    assert tree(tmp_path / "again") == tree(given.path)
    assert all((tmp_path / "again" / info.name).samefile(given.path / info.name) for info in given.index.shards)
