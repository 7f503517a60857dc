"""Merging without rewriting, and exports that other tools read."""

import json
import os
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torchvision

from gda.data.export import export_snapshot
from gda.data.images.codecs import PNG, Codec, decode, to_array
from gda.data.store.classes import make_classes
from gda.data.store.in_memory import load_images
from gda.data.store.merge import merge_snapshots
from gda.data.store.snapshot import Snapshot, commit_snapshot
from gda.data.store.verify import verify_snapshot
from gda.data.store.writer import ImageRecord, write_image_shard
from gda.data.test_split.ledger import read_ledger
from gda.errors import DataError, UsageError
from gda.io.shards import read_shard, write_shard

TWO = {"cat": 14, "hot_dog": 14}


@pytest.fixture
def parts(image_folder: Any, take: Any) -> list[Path]:
    """Two real snapshots of two classes with different pictures."""
    sources = [image_folder({f"cat/{name}": 14, f"hot_dog/{name}": 14}, name, start=100 * k) for k, name in enumerate(("one", "two"))]
    return [take(source, f"out-{source.name}", shard_size=5).output for source in sources]


@pytest.fixture
def run(tmp_path: Path, picture: Any) -> Any:
    """run("name", start, codec=..., guidance_scale=...) -> a synthetic set of six images of cat and hot_dog, as `sample` commits it."""

    def sample(name: str, start: int, codec: Codec = PNG, generator: str = "a" * 64, **settings: Any) -> Path:
        classes = make_classes(["cat", "hot_dog"])
        meta = {"prompt": "p", "guidance_scale": 1.5, "num_inference_steps": 8, "scheduler": "ddim", "generator_digest": generator}
        records = [
            ImageRecord(
                key=f"s{number}",
                rgb=picture(1000 + number),
                label=number % 2,
                class_name=classes[number % 2].name,
                meta=meta | settings | {"seed": 2**62 + number},
            )
            for number in range(start, start + 6)
        ]
        folder = tmp_path / name
        folder.mkdir()
        rows = write_image_shard(folder, name="train-000000.tar", split="train", records=records, codec=codec)
        provenance, plan = {"generator": generator, "classes_of": "r" * 64}, f"{start:064d}"
        commit_snapshot(folder, kind="synthetic", classes=classes, rows=rows, provenance=provenance, licence="x", plan_digest=plan)
        return folder

    return sample


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

    monkeypatch.setattr("gda.io.shards.os.link", no_link)
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


def test_merge_of_runs_in_several_formats(run: Any, tmp_path: Path) -> None:
    """Guards runs of other formats, plans and settings: bytes as they were, every record with its own settings, provenance by part."""
    paths = [
        run("one", 0),
        run("two", 6, Codec("webp"), guidance_scale=3.0),
        run("three", 12, Codec("jpeg", 90), generator="b" * 64, scheduler="ddpm"),
    ]
    merge_snapshots(paths, tmp_path / "all")
    merged, parts = Snapshot.open(tmp_path / "all"), [Snapshot.open(path) for path in paths]
    assert verify_snapshot(tmp_path / "all") == []
    assert [shard.sha256 for shard in merged.index.shards] == [part.index.shards[0].sha256 for part in parts]
    rows = merged.manifest().set_index("key")
    for part in parts:
        before = part.manifest().set_index("key")
        columns = ["seed", "prompt", "guidance_scale", "scheduler", "generator_digest", "sha256", "pixel_sha256", "label"]
        assert rows.loc[before.index, columns].equals(before[columns])
    assert merged.index.provenance == {
        "generator": f"{'a' * 64} | {'a' * 64} | {'b' * 64}",
        "classes_of": "r" * 64,
        "guidance_scale": "1.5 | 3.0 | 1.5",
        "scheduler": "ddim | ddim | ddpm",
        "merged": " ".join(part.digest for part in parts),
    }
    assert merged.index.plan_digest not in (None, *(part.index.plan_digest for part in parts))


def test_merge_of_equal_settings_says_them_once(run: Any, tmp_path: Path) -> None:
    """Guards against noise: values that all parts share are stated once, and settings that do not differ stay in the manifest."""
    merge_snapshots([run("one", 0), run("two", 6)], tmp_path / "all")
    provenance = Snapshot.open(tmp_path / "all").index.provenance
    assert provenance["generator"] == "a" * 64
    assert "guidance_scale" not in provenance


def test_merge_of_sampled_and_imported(run: Any, image_folder: Any, take: Any, tmp_path: Path) -> None:
    """Guards 63-bit seeds in a set where some records have none: no digit is lost, and absent ones stay absent, in every layout."""
    imported = take(image_folder({"cat": 2, "hot_dog": 2}, start=500), as_synthetic=True).output
    merge_snapshots([run("one", 0), imported], tmp_path / "all")
    merged = Snapshot.open(tmp_path / "all")
    assert [seed for seed in merged.manifest()["seed"] if seed is not None] == [2**62 + number for number in range(6)]
    assert merged.manifest()["seed"].isna().sum() == 4
    assert merged.index.provenance["source"] == "- | image folder"
    assert merged.index.provenance["scheduler"] == "ddim | -"
    assert merged.index.plan_digest is None
    export_snapshot(tmp_path / "all", "hf", tmp_path / "x")
    lines = [json.loads(line) for line in (tmp_path / "x" / "train" / "metadata.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [*(2**62 + number for number in range(6)), *[None] * 4]


def test_merge_finds_leaks_between_parts(image_folder: Any, take: Any, tmp_path: Path) -> None:
    """Guards the test split: a picture that is train in one part and test in another is an error."""
    counts = {f"{split}/{name}": 3 for split in ("train", "val", "test") for name in "ab"}
    parts = [take(image_folder(counts, "one"), "out-one").output]
    source = image_folder({f"{split}/{name}/x": 3 for split in ("train", "val", "test") for name in "ab"}, "two", start=50)
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
    with pytest.raises(DataError, match="damaged; `gda verify` names it"):
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


def test_npz_is_what_numpy_writes(parts: list[Path], tmp_path: Path) -> None:
    """Guards readers of the interchange format: images first, the arrays that `numpy.savez` would store, and nothing that a clock says."""
    export_snapshot(parts[0], "npz", tmp_path / "x")
    images = load_images(Snapshot.open(parts[0]), "train", size=10)
    with np.load(tmp_path / "x" / "train.npz", allow_pickle=False) as arrays:
        assert arrays.files == ["arr_0", "arr_1"]
        found = arrays["arr_0"]
        assert found.flags.c_contiguous
        assert arrays["arr_1"].dtype == np.int64
    stored = [decode(r.image, name="x") for shard in sorted(parts[0].glob("train-*.tar")) for r in read_shard(shard)]
    assert np.array_equal(found, np.stack([to_array(image) for image in stored]))
    assert len(found) == len(images.labels)
    export_snapshot(parts[0], "npz", tmp_path / "y")
    assert (tmp_path / "x" / "train.npz").read_bytes() == (tmp_path / "y" / "train.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "x" / "train.npz") as archive:
        assert {info.date_time[0] for info in archive.infolist()} == {1980}


def test_npz_keeps_class_names(parts: list[Path], take: Any, tmp_path: Path) -> None:
    """Guards the way back: labels of an exported array get their names again."""
    export_snapshot(parts[0], "npz", tmp_path / "x")
    again = Snapshot.open(take(tmp_path / "x" / "train.npz", "again", as_synthetic=True).output).manifest()
    before = Snapshot.open(parts[0]).manifest("train")
    assert sorted(zip(again["class"], again["pixel_sha256"])) == sorted(zip(before["class"], before["pixel_sha256"]))


@pytest.mark.parametrize("layout", ["imagefolder", "hf", "npz"])
def test_exports_do_not_grow_with_the_set(layout: Any, tmp_path: Path, picture: Any) -> None:
    """Guards memory: 160 images of 110 KB each never stand in memory together, though the whole is 18 MB."""
    folder = tmp_path / "large"
    folder.mkdir()
    classes = make_classes(["a"])
    rows = []
    for shard in range(4):
        records = [
            ImageRecord(key=f"k{shard}-{i}", rgb=picture(40 * shard + i, 192, 192), label=0, class_name="a", meta={"seed": i})
            for i in range(40)
        ]
        rows.append(write_image_shard(folder, name=f"train-{shard:06d}.tar", split="train", records=records))
    commit_snapshot(folder, kind="synthetic", classes=classes, rows=pd.concat(rows), provenance={}, licence="x")
    tracemalloc.start()
    try:
        export_snapshot(folder, layout, tmp_path / "x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6


@pytest.mark.parametrize("layout", ["imagefolder", "hf", "npz"])
def test_damaged_images_are_not_exported(layout: Any, parts: list[Path], tmp_path: Path) -> None:
    """Guards users of an export: a flipped bit in an image is an error that names it, not a file among others."""
    shard = parts[0] / "train-000001.tar"
    row = Snapshot.open(parts[0]).manifest().query("shard == 'train-000001.tar'").iloc[2]
    data = bytearray(shard.read_bytes())
    data[row["offset"] + 512 + 60] ^= 4
    shard.write_bytes(data)
    with pytest.raises(DataError, match=rf"train-000001\.tar: record '{row['key']}': checksum differs"):
        export_snapshot(parts[0], layout, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("layout", ["imagefolder", "hf", "npz"])
@pytest.mark.parametrize("change", ["fewer", "other", "relabelled"])
def test_shards_of_another_set_are_not_exported(change: str, layout: Any, parts: list[Path], tmp_path: Path) -> None:
    """Guards labels and counts: a sound shard that is not the manifest's, in whatever way, is an error."""
    shard = parts[0] / "train-000001.tar"
    records = list(read_shard(shard))
    if change == "fewer":
        records = records[:-1]
    elif change == "other":
        records = list(read_shard(parts[0] / "train-000000.tar"))
    else:
        records[1] = replace(records[1], label=1 - records[1].label)
    shard.unlink()
    write_shard(shard, records)
    with pytest.raises(DataError, match=r"train-000001\.tar: its records are not those of the manifest"):
        export_snapshot(parts[0], layout, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_npz_of_other_sizes_than_the_manifest_states(run: Any, tmp_path: Path) -> None:
    """Guards the array's layout: pixels of another size would shift every image after them."""
    folder = run("one", 0)
    index, rows = Snapshot.open(folder).index, Snapshot.open(folder).manifest().assign(width=10, height=12)
    commit_snapshot(folder, kind="synthetic", classes=index.classes, rows=rows, provenance={}, licence="x")
    with pytest.raises(DataError, match="record 's0' is not of the size that the manifest states"):
        export_snapshot(folder, "npz", tmp_path / "x")


def test_export_writes_the_ledger(parts: list[Path], tmp_path: Path) -> None:
    """Guards the count of test openings: handing out the test images is one."""
    export_snapshot(parts[0], "imagefolder", tmp_path / "x")
    assert [entry["purpose"] for entry in read_ledger()] == ["export"]


def test_bad_exports(parts: list[Path], image_folder: Any, take: Any, tmp_path: Path, picture: Any) -> None:
    """Guards against unknown layouts and against an array of images of several sizes."""
    from PIL import Image

    with pytest.raises(UsageError, match="imagefolder, npz, hf"):
        export_snapshot(parts[0], "zip", tmp_path / "x")
    source = image_folder({f"{split}/{name}": 3 for split in ("train", "val", "test") for name in "ab"}, "sizes")
    Image.fromarray(picture(77, 20, 20)).save(source / "train" / "a" / "large.png")
    mixed = take(source, "mixed").output
    with pytest.raises(DataError, match=r"2 sizes; an \.npz needs one, set snapshot\.image_size"):
        export_snapshot(mixed, "npz", tmp_path / "x")
    assert not (tmp_path / "x").exists()
