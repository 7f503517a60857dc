"""Merging without rewriting, and exports that other tools read."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision

from gda.data.export import export_snapshot
from gda.data.ledger import read_ledger
from gda.data.merge import merge_snapshots
from gda.data.resident import load_images
from gda.data.snapshot import Snapshot
from gda.data.verify import verify_snapshot
from gda.errors import DataError, UsageError

TWO = {"cat": 14, "hot_dog": 14}


@pytest.fixture
def parts(image_folder: Any, take: Any) -> list[Path]:
    """Two real snapshots of two classes with different pictures."""
    sources = [image_folder({f"cat/{name}": 14, f"hot_dog/{name}": 14}, name, start=100 * k) for k, name in enumerate(("one", "two"))]
    return [take(source, f"out-{source.name}", shard_size=5).output for source in sources]


def test_merge_keeps_every_shard(parts: list[Path], tmp_path: Path) -> None:
    """Guards the union: sound, every image once, shards are the same files under new numbers."""
    outcome = merge_snapshots(parts, tmp_path / "all")
    merged, snapshots = Snapshot.open(tmp_path / "all"), [Snapshot.open(path) for path in parts]
    assert verify_snapshot(tmp_path / "all") == []
    assert outcome.digest == merged.digest
    assert set(merged.manifest()["key"]) == {key for snapshot in snapshots for key in snapshot.manifest()["key"]}
    inodes = {os.stat(path / shard.name).st_ino for path, part in zip(parts, snapshots, strict=True) for shard in part.index.shards}
    assert {os.stat(tmp_path / "all" / shard.name).st_ino for shard in merged.index.shards} == inodes


def test_merge_copies_where_links_fail(parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards file systems without hard links."""

    def no_link(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("gda.data.merge.os.link", no_link)
    merge_snapshots(parts, tmp_path / "all")
    assert verify_snapshot(tmp_path / "all") == []


def test_merge_is_repeatable(parts: list[Path], tmp_path: Path) -> None:
    """Guards identity: the order of the parts changes files but not content, and the same command finds its result."""
    first = merge_snapshots(parts, tmp_path / "all")
    assert merge_snapshots(parts, tmp_path / "all").reused
    assert merge_snapshots(parts[::-1], tmp_path / "other").digest == first.digest


def test_what_cannot_be_merged(parts: list[Path], image_folder: Any, take: Any, tmp_path: Path) -> None:
    """Guards against unions that make no sense: one part, the same part twice, other classes, another kind."""
    other = take(image_folder({"cat": 14, "dog": 14}, "three", start=300), "out-three").output
    synthetic = take(image_folder({"cat": 2, "hot_dog": 2}, "four", start=400), "out-four", as_synthetic=True).output
    for bad, error, message in (
        (parts[:1], UsageError, "at least two"),
        ([parts[0], parts[0]], DataError, "key .* is in .*out-one and .*out-one"),
        ([parts[0], other], DataError, r"classes or prompt names differ .*dog, hot_dog"),
        ([parts[0], synthetic], DataError, "is synthetic, but .* is real"),
    ):
        with pytest.raises(error, match=message):
            merge_snapshots(bad, tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_merge_finds_leaks_between_parts(image_folder: Any, take: Any, tmp_path: Path) -> None:
    """Guards the test split: a picture that is train in one part and test in another is an error."""
    counts = {f"{split}/a": 3 for split in ("train", "val", "test")}
    parts = [take(image_folder(counts, "one"), "out-one").output]
    source = image_folder({f"{split}/a/x": 3 for split in ("train", "val", "test")}, "two", start=50)
    (source / "test" / "a" / "x" / "leak.png").write_bytes((tmp_path / "one" / "train" / "a" / "0.png").read_bytes())
    parts.append(take(source, "out-two").output)
    with pytest.raises(DataError, match="1 pictures are in more than one split"):
        merge_snapshots(parts, tmp_path / "all")


def test_merge_notices_damage(parts: list[Path], tmp_path: Path) -> None:
    """Guards the union against a part that rotted since it was made."""
    shard = next(iter(parts[1].glob("train-*.tar")))
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match="damaged; `gda verify` says which"):
        merge_snapshots(parts, tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_export_to_class_folders(parts: list[Path], tmp_path: Path) -> None:
    """Guards torchvision users: same classes, same labels, same pixels, split by split."""
    export_snapshot(parts[0], "imagefolder", tmp_path / "x")
    folder = torchvision.datasets.ImageFolder(str(tmp_path / "x" / "train"))
    images = load_images(Snapshot.open(parts[0]), "train", size=10)
    assert folder.classes == list(images.classes)
    expected = dict(zip(images.keys, images.labels.tolist(), strict=True))
    assert {Path(path).stem: label for path, label in folder.samples} == expected


def test_export_to_hugging_face_and_back(parts: list[Path], tmp_path: Path, take: Any) -> None:
    """Guards the Hugging Face layout: reading it again gives the same pictures, labels and splits."""
    export_snapshot(parts[0], "hf", tmp_path / "x")
    again = Snapshot.open(take(tmp_path / "x", "again").output).manifest()
    before = Snapshot.open(parts[0]).manifest()
    columns = ["pixel_sha256", "label", "split"]
    assert sorted(again[columns].values.tolist()) == sorted(before[columns].values.tolist())


def test_export_to_npz_and_back(parts: list[Path], tmp_path: Path) -> None:
    """Guards the .npz of evaluators: one file a split, uint8 NHWC, labels in step."""
    export_snapshot(parts[0], "npz", tmp_path / "x")
    with np.load(tmp_path / "x" / "val.npz", allow_pickle=False) as arrays:
        rows = Snapshot.open(parts[0]).manifest("val")
        assert arrays["arr_0"].dtype == np.uint8
        assert arrays["arr_0"].shape == (len(rows), 10, 12, 3)
        assert arrays["arr_1"].tolist() == rows["label"].tolist()


def test_export_writes_the_ledger(parts: list[Path], tmp_path: Path) -> None:
    """Guards the count of test openings: handing out the test images is one."""
    export_snapshot(parts[0], "imagefolder", tmp_path / "x")
    assert [entry["purpose"] for entry in read_ledger()] == ["export"]


def test_bad_exports(parts: list[Path], image_folder: Any, take: Any, tmp_path: Path, picture: Any) -> None:
    """Guards against unknown layouts and against an array of images of several sizes."""
    from PIL import Image

    with pytest.raises(UsageError, match="imagefolder, npz, hf"):
        export_snapshot(parts[0], "zip", tmp_path / "x")
    source = image_folder({f"{split}/a": 3 for split in ("train", "val", "test")}, "sizes")
    Image.fromarray(picture(77, 20, 20)).save(source / "train" / "a" / "large.png")
    mixed = take(source, "mixed").output
    with pytest.raises(DataError, match=r"2 sizes; an \.npz needs one, set snapshot\.image_size"):
        export_snapshot(mixed, "npz", tmp_path / "x")
    assert not (tmp_path / "x").exists()
