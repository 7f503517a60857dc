"""Reading snapshots: the loader into memory, opening the test split with its ledger, and invalid indexes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from relisted import relist

from gda.data.checks.leaks import cross_split_duplicates
from gda.data.store.classes import make_classes
from gda.data.store.in_memory import load_images
from gda.data.store.snapshot import Snapshot, commit_snapshot
from gda.data.store.verify import verify_snapshot
from gda.data.store.writer import ImageRecord, load_rows, save_rows, shard_name, write_image_shard
from gda.data.test_split.ledger import count_test_openings, ledger_path, read_ledger
from gda.data.test_split.opening import open_test
from gda.errors import DataError, UsageError
from gda.io.shards import read_shard

TWO = {"cat": 14, "hot_dog": 14}
CLASSES = make_classes(["a", "b"])


@pytest.fixture
def snapshot(image_folder: Any, take: Any) -> Snapshot:
    return Snapshot.open(take(image_folder(TWO), shard_size=4).output)


def synthetic_records(picture: Any, count: int = 6, start: int = 0) -> list[ImageRecord]:
    meta = {"prompt": "a", "negative_prompt": "", "guidance_scale": 1.5, "num_inference_steps": 8, "scheduler": "ddim"}
    return [
        ImageRecord(
            key=f"s{number}",
            rgb=picture(number, 8, 8),
            label=number % 2,
            class_name=CLASSES[number % 2].name,
            meta=meta | {"seed": 2**62 + number, "source_image": "", "generator_digest": "g" * 64},
        )
        for number in range(start, start + count)
    ]


def edit_index(path: Path, **changes: Any) -> None:
    content = json.loads((path / "snapshot.json").read_text())
    (path / "snapshot.json").write_text(json.dumps(content | changes))
    relist(path)


def test_images_are_those_of_the_source(tmp_path: Path, image_folder: Any, take: Any, picture: Any) -> None:
    """Guards the whole way from source pixels to tensor: values, labels, keys, order, types."""
    counts = {f"{split}/{name}": 3 for split in ("train", "val", "test") for name in ("a", "b")}
    images = load_images(Snapshot.open(take(image_folder(counts)).output), "train", size=10)
    assert images.images.dtype == torch.uint8
    assert images.images.shape == (6, 3, 10, 10)
    assert images.images.is_contiguous()
    assert images.labels.dtype == torch.int64
    assert images.classes == ("a", "b")
    expected = {picture(number)[:, 1:11].tobytes(): number // 3 for number in range(6)}
    for image, label in zip(images.images, images.labels.tolist(), strict=True):
        assert expected.pop(image.permute(1, 2, 0).numpy().tobytes()) == label
    assert expected == {}


def test_order_is_the_manifests(snapshot: Snapshot) -> None:
    """Guards code that joins predictions to the manifest by position."""
    images, rows = load_images(snapshot, "train", size=8), snapshot.manifest("train")
    assert images.keys == tuple(rows["key"])
    assert images.labels.tolist() == rows["label"].tolist()


def test_test_split_has_one_door(snapshot: Snapshot) -> None:
    """Guards the test set: the common loader refuses it, the door takes two purposes and writes each opening down."""
    with pytest.raises(UsageError, match="open_test"):
        load_images(snapshot, "test", size=8)
    with pytest.raises(UsageError, match="evaluate or leak_check"):
        open_test(snapshot, "tuning", size=8)
    assert read_ledger() == []
    images = open_test(snapshot, "evaluate", size=8)
    open_test(snapshot, "leak_check", size=8)
    assert images.keys == tuple(snapshot.manifest("test")["key"])
    of_test = snapshot.split_digest("test")
    assert [(line["digest"], line["purpose"]) for line in read_ledger()] == [(of_test, "evaluate"), (of_test, "leak_check")]


def test_opening_is_recorded_before_reading(snapshot: Snapshot) -> None:
    """Guards the ledger's completeness: an opening that fails half way is in it."""
    (snapshot.path / "test-000000.tar").write_bytes(b"")
    with pytest.raises(DataError, match="truncated"):
        open_test(snapshot, "evaluate", size=8)
    assert len(read_ledger()) == 1


def test_ledger_only_grows(snapshot: Snapshot) -> None:
    """Guards earlier entries against later ones."""
    ledger_path().write_text('{"digest": "d", "purpose": "evaluate"}\n')
    open_test(snapshot, "evaluate", size=8)
    assert [entry["digest"] for entry in read_ledger()] == ["d", snapshot.split_digest("test")]


def test_a_killed_work_that_goes_on_is_one_opening(snapshot: Snapshot) -> None:
    """Guards the count that a report states: an interrupted evaluation is one look, another evaluation or purpose is another."""
    for work in ("w1", "w1", "w2", None, None):
        open_test(snapshot, "evaluate", size=8, work=work)
    open_test(snapshot, "leak_check", size=8, work="w3")
    assert len(read_ledger()) == 6
    assert count_test_openings(snapshot.split_digest("test"), "evaluate") == 4
    assert count_test_openings("another", "evaluate") == 0


def test_split_without_images(tmp_path: Path, picture: Any) -> None:
    """Guards against an empty tensor where a split was expected."""
    rows = write_image_shard(tmp_path, name=shard_name("train", 0), split="train", records=synthetic_records(picture))
    commit_snapshot(tmp_path, kind="synthetic", classes=CLASSES, rows=rows, provenance={}, licence="x")
    with pytest.raises(DataError, match="split 'val' holds no images"):
        load_images(Snapshot.open(tmp_path), "val", size=8)


def test_synthetic_columns_survive(tmp_path: Path, picture: Any) -> None:
    """Guards provenance: 63-bit seeds, prompts and settings are in the manifest unchanged; extra columns are kept."""
    rows = write_image_shard(tmp_path, name=shard_name("train", 0), split="train", records=synthetic_records(picture)).assign(score=0.5)
    index = commit_snapshot(
        tmp_path, kind="synthetic", classes=CLASSES, rows=rows, provenance={"generator": "g"}, licence="x", plan_digest="p" * 64
    )
    found = Snapshot.open(tmp_path).manifest()
    assert found["seed"].tolist() == [2**62 + number for number in range(6)]
    assert found["guidance_scale"].tolist() == [1.5] * 6
    assert found["score"].tolist() == [0.5] * 6
    assert index.plan_digest == "p" * 64
    assert verify_snapshot(tmp_path) == []
    assert next(read_shard(tmp_path / "train-000000.tar")).meta["seed"] == 2**62


def test_sampled_images_are_marked(tmp_path: Path, picture: Any, take: Any, image_folder: Any) -> None:
    """Guards real sets against our own images: a generator's image is refused as a real picture."""
    write_image_shard(tmp_path, name="train-000000.tar", split="train", records=synthetic_records(picture, 1))
    source = image_folder(TWO)
    (source / "cat" / "sampled.png").write_bytes(next(read_shard(tmp_path / "train-000000.tar")).image)
    with pytest.raises(DataError, match=r"cat/sampled\.png: is marked as synthetic"):
        take(source)


def test_sidecars_say_which_shards_are_done(tmp_path: Path, picture: Any) -> None:
    """Guards resuming: rows come back equal; a missing, cut or stale sidecar, or a changed tar, counts as not done."""
    sidecar, shard = tmp_path / "rows.json", tmp_path / "train-000000.tar"
    rows = write_image_shard(tmp_path, name=shard.name, split="train", records=synthetic_records(picture))
    assert load_rows(sidecar, shard) is None
    save_rows(sidecar, shard, rows)
    found = load_rows(sidecar, shard)
    assert found is not None
    pd.testing.assert_frame_equal(found[rows.columns], rows)
    content = sidecar.read_bytes()
    sidecar.write_bytes(content[: len(content) // 2])
    assert load_rows(sidecar, shard) is None
    sidecar.write_bytes(content)
    shard.write_bytes(shard.read_bytes()[:-512])
    assert load_rows(sidecar, shard) is None
    shard.unlink()
    assert load_rows(sidecar, shard) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows.iloc[:0], "no images to commit"),
        (lambda rows: rows.assign(shard="train-000009.tar"), "do not belong together"),
        (lambda rows: rows.assign(key="same"), "occurs twice"),
        (lambda rows: rows.assign(label=5), "label 5 is not class"),
        (lambda rows: rows.assign(pixel_sha256="x"), "64 hex digits"),
    ],
)
def test_rows_must_fit_their_tars(tmp_path: Path, picture: Any, change: Any, message: str) -> None:
    """Guards the commit: contradicting rows leave no snapshot.json, so nothing is a snapshot."""
    rows = write_image_shard(tmp_path, name=shard_name("train", 0), split="train", records=synthetic_records(picture))
    with pytest.raises(DataError, match=message):
        commit_snapshot(tmp_path, kind="synthetic", classes=CLASSES, rows=change(rows), provenance={}, licence="x")
    assert not (tmp_path / "snapshot.json").exists()


def test_same_rows_same_files(tmp_path: Path, picture: Any) -> None:
    """Guards bytes of index and manifest: the order in which workers hand in their rows does not show."""
    for name, order in (("one", 1), ("two", -1)):
        (tmp_path / name).mkdir()
        rows = [
            write_image_shard(tmp_path / name, name=shard_name("train", k), split="train", records=synthetic_records(picture, 3, 3 * k))
            for k in range(2)
        ]
        commit_snapshot(tmp_path / name, kind="synthetic", classes=CLASSES, rows=pd.concat(rows[::order]), provenance={}, licence="x")
    for file in ("snapshot.json", "manifest.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": [{"name": "train-/../../x.tar", "split": "train", "count": 1, "sha256": "0" * 64}]}, "is not a shard name"),
        ({"shards": [{"name": "val-000000.tar", "split": "train", "count": 1, "sha256": "0" * 64}]}, "is not a shard name of split train"),
        ({"shards": []}, "counts differ"),
        ({"counts": {"train": {"cat": 1, "hot_dog": 1}}}, "class counts differ"),
        ({"classes": [{"name": "../up", "prompt_name": "up"}]}, "class name '../up'"),
        ({"classes": [{"name": "cat", "prompt_name": "cat"}, {"name": "cat", "prompt_name": "dog"}]}, "repeat"),
        ({"schema_version": 2}, "schema_version"),
        ({"unknown": 1}, "unknown"),
        ({"manifest_sha256": "0" * 64}, "manifest was damaged or replaced"),
    ],
)
def test_index_is_not_trusted(snapshot: Snapshot, changes: dict[str, Any], message: str) -> None:
    """Guards against a snapshot.json that contradicts its files or leads out of its folder."""
    edit_index(snapshot.path, **changes)
    with pytest.raises(DataError, match=message):
        Snapshot.open(snapshot.path)
    assert any(message in problem for problem in verify_snapshot(snapshot.path))


def test_split_digests(snapshot: Snapshot) -> None:
    """Guards test_digest: equal for equal rows, different between splits and from the whole."""
    digests = {snapshot.split_digest(split) for split in snapshot.splits}
    assert len(digests | {snapshot.digest}) == 4
    assert snapshot.split_digest("test") == Snapshot.open(snapshot.path).split_digest("test")


def test_manifest_is_a_copy(snapshot: Snapshot) -> None:
    """Guards an opened snapshot against callers that add columns."""
    rows = snapshot.manifest()
    rows["key"] = "x"
    assert snapshot.manifest()["key"].is_unique


def test_duplicates_are_paired_once() -> None:
    """Guards the count of leaks: a picture twice in train and once in val and test gives two pairs, others none."""
    rows = pd.DataFrame(
        {
            "key": list("abcdef"),
            "split": ["train", "train", "val", "test", "test", "val"],
            "pixel_sha256": ["x", "x", "x", "x", "y", "z"],
        }
    )
    assert cross_split_duplicates(rows) == [("a", "c"), ("a", "d")]


def test_io_and_data_need_no_torch() -> None:
    """Guards start-up time: only the loader into memory imports torch."""
    import subprocess
    import sys

    modules = "gda.stages.snapshot, gda.data.store.verify, gda.data.store.merge, gda.data.export, gda.io.shards, gda.io.publish"
    code = f"import {modules}, sys; print([name for name in ('torch', 'webdataset', 'mlflow', 'matplotlib') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_resizing_is_antialiased(image_folder: Any, take: Any, tmp_path: Path) -> None:
    """Guards the loader against aliasing: a fine chequerboard becomes even grey, not a coarse pattern."""
    from PIL import Image

    board = np.indices((32, 32)).sum(axis=0) % 2 * 255
    source = image_folder({f"{split}/{name}": 1 for split in ("train", "val", "test") for name in "ab"})
    Image.fromarray(np.repeat(board[..., None], 3, axis=2).astype(np.uint8)).save(source / "train" / "a" / "0.png")
    images = load_images(Snapshot.open(take(source).output), "train", size=8).images[:1]  # of class a
    assert images[:, :, 2:6, 2:6].float().sub(127.5).abs().max() < 12
