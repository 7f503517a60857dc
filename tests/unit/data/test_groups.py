"""Groups (patients, videos): one split each, kept in the manifest, and handed to the statistics as numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save

from gda.config.sections import Arm
from gda.data.checks.leaks import straddling_groups
from gda.data.export import export_snapshot
from gda.data.store.merge import merge_snapshots
from gda.data.store.predictions import Predictions, read_predictions, write_predictions
from gda.data.store.snapshot import Snapshot, commit_snapshot
from gda.data.store.verify import verify_snapshot
from gda.data.store.writer import write_image_shard
from gda.errors import DataError
from gda.io.checked import write_checked
from gda.io.manifest import read_manifest, write_manifest

SPLITS = ("train", "train", "train", "val", "test", "test")


@pytest.fixture
def grouped(image_folder: Any) -> Callable[..., Path]:
    """A folder with 36 images of cats and dogs, groups by a function of the image's number, and splits if requested."""

    def make(group: Callable[[int], str], *, name: str = "grouped", start: int = 0, splits: bool = True) -> Path:
        root: Path = image_folder({name: 36}, name, start)
        rows = [f"{name}/{n}.png,{('cat', 'dog')[n % 2]},{group(n)}" + (f",{SPLITS[n // 6]}" if splits else "") for n in range(36)]
        (root / "metadata.csv").write_text("\n".join(["file_name,label,patient" + (",split" if splits else ""), *rows]) + "\n")
        return root

    return make


def test_a_group_in_two_splits_of_the_source_is_refused(grouped: Any, take: Any, tmp_path: Path) -> None:
    """Guards the test split: who names splits that tear patients apart would test on patients that were trained on."""
    root = grouped(lambda n: "p7" if n in (17, 20, 30) else f"q{n}")
    with pytest.raises(DataError, match=r"1 groups have images in more than one split: 'p7' \(test and train and val\)"):
        take(root, columns=("split", "patient"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["a", "b", "c", "d"])
def test_hashed_splits_never_tear_a_group(grouped: Any, take: Any, key: str) -> None:
    """Guards what the numbers of images say: whatever the key of the hash, all images of a patient are in one split."""
    root = grouped(lambda n: f"p{n // 2 % 9}", splits=False)
    rows = Snapshot.open(
        take(root, columns=(None, "patient"), split_key=key, val_fraction=0.3, test_fraction=0.3, on_leak="warn").output
    ).manifest()
    assert rows["group"].nunique() == 9
    assert straddling_groups(rows) == []
    assert rows.groupby("group").size().tolist() == [4] * 9


def test_groups_come_out_as_numbers(grouped: Any, take: Any) -> None:
    """Guards the statistics: test images have equal numbers exactly where they are of one group, in the manifest's order."""
    snapshot = Snapshot.open(take(grouped(lambda n: f"p{n // 3}"), columns=("split", "patient")).output)
    found, rows = snapshot.groups("test"), snapshot.manifest("test")
    assert found is not None
    assert (found.dtype, found.shape, len(set(found))) == (np.int32, (12,), 4)
    names = rows["group"].to_numpy()
    np.testing.assert_array_equal(found[:, None] == found, names[:, None] == names)
    assert Snapshot.open(take(grouped(lambda n: f"p{n}", name="x"), "plain", columns=("split", None)).output).groups("test") is None


def _commit(folder: Path, picture: Any, groups: list[str | None], split: str = "train", prefix: str = "k") -> Snapshot:
    from gda.data.store.classes import make_classes
    from gda.data.store.writer import ImageRecord

    folder.mkdir()
    start = sum(map(ord, split + prefix)) * 100
    records = [ImageRecord(key=f"{prefix}{n}", rgb=picture(start + n), label=n % 2, class_name="ab"[n % 2]) for n in range(len(groups))]
    rows = write_image_shard(folder, name=f"{split}-000000.tar", split=split, records=records).assign(group=groups)
    commit_snapshot(folder, kind="real", classes=make_classes(["a", "b"]), rows=rows, provenance={}, licence="x")
    return Snapshot.open(folder)


def test_an_image_of_no_group_is_one_by_itself(tmp_path: Path, picture: Any) -> None:
    """Guards against one large group of everybody who has none."""
    snapshot = _commit(tmp_path / "set", picture, ["z", None, "a", None, "z"])
    found = snapshot.groups("train")
    assert found is not None
    assert found.tolist() == [1, 2, 0, 3, 1]
    assert _commit(tmp_path / "none", picture, [None] * 4).groups("train") is None


def test_the_column_is_text_whatever_is_in_it(tmp_path: Path, picture: Any) -> None:
    """Guards the schema: without a single group it is text too, numbers are read as text, and without groups it is absent."""
    snapshot = _commit(tmp_path / "none", picture, [None] * 4)
    assert str(pq.read_schema(snapshot.path / "manifest.parquet").field("group").type) == "string"
    numbers = snapshot.manifest().drop(columns="group")
    assert "group" not in read_manifest(tmp_path, write_manifest(tmp_path, numbers, synthetic=False))
    table = pq.read_table(snapshot.path / "manifest.parquet").drop_columns("group")
    pq.write_table(table.append_column("group", [[7, 8, 7, 8]]), tmp_path / "manifest.parquet")
    from gda.io.shards import sha256_of

    assert read_manifest(tmp_path, sha256_of(tmp_path / "manifest.parquet"))["group"].tolist() == ["7", "8", "7", "8"]


def test_merging_keeps_groups_whole(tmp_path: Path, picture: Any) -> None:
    """Guards merged sets: groups of one name are one, and one that would be in two splits then is refused."""
    train = _commit(tmp_path / "train", picture, ["p1", "p2", "p1", "p2"])
    test = _commit(tmp_path / "test", picture, ["p3", "p2", "p3", "p4"], split="test", prefix="t")
    with pytest.raises(DataError, match=r"1 groups have images in more than one split: 'p2' \(test and train\)"):
        merge_snapshots([train.path, test.path], tmp_path / "merged")
    more = _commit(tmp_path / "more", picture, ["p1", "p9", "p9", "p1"], prefix="m")
    plain = Snapshot.open(merge_snapshots([train.path, more.path], tmp_path / "whole").output)
    assert plain.manifest()["group"].tolist() == ["p1", "p2", "p1", "p2", "p1", "p9", "p9", "p1"]


def test_verify_names_a_group_in_two_splits(tmp_path: Path, picture: Any) -> None:
    """Guards sets that were written before this was refused: they are read still, and `gda verify` says it."""
    train = _commit(tmp_path / "train", picture, ["p1", "p2", "p1", "p2"])
    test = _commit(tmp_path / "test", picture, ["p3", "p2", "p3", "p4"], split="test", prefix="t")
    (tmp_path / "both").mkdir()
    for shard in (train.path / "train-000000.tar", test.path / "test-000000.tar"):
        (tmp_path / "both" / shard.name).write_bytes(shard.read_bytes())
    rows = pd.concat([train.manifest(), test.manifest()])
    commit_snapshot(tmp_path / "both", kind="real", classes=train.classes, rows=rows, provenance={}, licence="x")
    assert Snapshot.open(tmp_path / "both").groups("test") is not None
    assert verify_snapshot(tmp_path / "both") == [f"{tmp_path / 'both'}: 1 groups have images in more than one split, first 'p2'"]


def test_exports_as_hf_keep_groups(tmp_path: Path, picture: Any) -> None:
    """Guards the way out and in again: the metadata says each image's group."""
    export_snapshot(_commit(tmp_path / "set", picture, ["p1", None, "p1", "p2"]).path, "hf", tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out/train/metadata.jsonl").read_text().splitlines()]
    assert [line["group"] for line in lines] == ["p1", None, "p1", "p2"]


def test_predictions_keep_groups(tmp_path: Path) -> None:
    """Guards the file between evaluate and promote: groups come back, also of one classifier alone; files without them are read."""
    labels, top = np.zeros(3, np.int32), {(Arm.REAL, 0): np.zeros((3, 1), np.int32), (Arm.MIXED, 0): np.zeros((3, 1), np.int32)}
    for groups in (None, np.array([0, 1, 0], np.int32)):
        write_predictions(tmp_path / "p.safetensors", Predictions(labels=labels, top=top, test_digest="d", groups=groups))
        found = read_predictions(tmp_path / "p.safetensors")
        for each in (found, found.only(Arm.REAL, 0)):
            assert (None if each.groups is None else each.groups.tolist()) == (None if groups is None else [0, 1, 0])


@pytest.mark.parametrize("groups", [np.zeros(2, np.int32), np.zeros(3, np.int64), np.zeros((3, 1), np.int32)])
def test_groups_of_another_shape_are_refused(tmp_path: Path, groups: np.ndarray) -> None:
    """Guards resampling against groups of other images."""
    tensors = {"labels": np.zeros(3, np.int32), "real/0": np.zeros((3, 1), np.int32), "groups": groups}
    write_checked(tmp_path / "p.safetensors", save(tensors, metadata={"test_digest": "d"}))
    with pytest.raises(DataError, match="do not fit together"):
        read_predictions(tmp_path / "p.safetensors")
