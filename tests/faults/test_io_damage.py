"""Damage on disk: every cut, every flipped bit, everything missing is found and named."""

import contextlib
import json
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gda.data.store.classes import make_classes
from gda.data.store.in_memory import load_images
from gda.data.store.snapshot import Snapshot, commit_snapshot
from gda.data.store.verify import verify_snapshot
from gda.data.store.writer import ImageRecord, shard_name, write_image_shard
from gda.errors import DataError
from gda.io.shards import TAR_BLOCK, read_shard, sha256_of

CLASSES = make_classes(["a", "b"])
SHARD = "train-000000.tar"


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """Two shards of four images, 8x8 noise."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    rows = []
    for number in range(2):
        records = [
            ImageRecord(key=f"k{number}{i}", rgb=_noise(10 * number + i), label=i % 2, class_name=CLASSES[i % 2].name) for i in range(4)
        ]
        rows.append(write_image_shard(folder, name=shard_name("train", number), split="train", records=records))
    commit_snapshot(folder, kind="real", classes=CLASSES, rows=pd.concat(rows), provenance={}, licence="x")
    assert verify_snapshot(folder) == []
    return folder


def _noise(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def test_every_cut_at_a_block_is_found(snapshot: Path) -> None:
    """Guards readers against shards cut at a block boundary, which tar readers may accept with images missing: each is refused."""
    path = snapshot / SHARD
    whole = path.read_bytes()
    for cut in range(0, len(whole), TAR_BLOCK):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"train-000000\.tar"):
            list(read_shard(path))
        problems = verify_snapshot(snapshot)
        assert len(problems) >= 2
        assert all(SHARD in problem for problem in problems)
        with pytest.raises(DataError, match=r"train-000000\.tar"):
            load_images(Snapshot.open(snapshot), "train", size=8)


def test_any_cut_between_blocks_is_found(snapshot: Path) -> None:
    """Guards against cuts anywhere else."""
    path = snapshot / SHARD
    whole = path.read_bytes()
    for cut in random.Random(0).sample(range(len(whole)), 40):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError):
            list(read_shard(path))


def test_any_flipped_bit_is_found(snapshot: Path) -> None:
    """Guards content: a flipped bit anywhere fails verification naming the shard, and no loader gives a changed image."""
    path = snapshot / SHARD
    whole = path.read_bytes()
    expected = load_images(Snapshot.open(snapshot), "train", size=8)
    # The last byte of a header's checksum field is read by nobody: only the checksum of the whole shard can tell.
    for position in (155, *random.Random(1).sample(range(len(whole)), 60)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        problems = verify_snapshot(snapshot)
        assert problems
        assert all(SHARD in problem for problem in problems)
        with contextlib.suppress(DataError):  # damage in bytes that no image depends on may pass the loader, a changed image may not
            found = load_images(Snapshot.open(snapshot), "train", size=8)
            assert (found.images == expected.images).all()
            assert found.keys == expected.keys


def test_flipped_image_bit_names_the_record(snapshot: Path) -> None:
    """Guards repair: a bit inside an image names its shard and its record."""
    path = snapshot / SHARD
    rows = Snapshot.open(snapshot).manifest()
    row = rows[rows["key"] == "k02"].iloc[0]
    data = bytearray(path.read_bytes())
    data[row["offset"] + TAR_BLOCK + 60] ^= 4
    path.write_bytes(data)
    problems = verify_snapshot(snapshot)
    assert any("'k02': checksum differs" in problem and SHARD in problem for problem in problems)
    assert not any("k00" in problem for problem in problems)
    with pytest.raises(DataError, match=r"train-000000\.tar: record 'k02': checksum differs"):
        load_images(Snapshot.open(snapshot), "train", size=8)


def test_flipped_padding_names_the_record(snapshot: Path) -> None:
    """Guards the bytes between members: damage there is found while reading, though no image depends on it."""
    path = snapshot / SHARD
    offset = Snapshot.open(snapshot).manifest()["offset"].tolist()[1]
    data = bytearray(path.read_bytes())
    data[offset - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train-000000\.tar: 'k00\.json': damaged padding"):
        list(read_shard(path))


@pytest.mark.parametrize("name", ["snapshot.json", "manifest.parquet", SHARD])
def test_missing_file(snapshot: Path, name: str) -> None:
    """Guards the commit rule: without index, manifest or a shard nothing opens, and the message names the file."""
    (snapshot / name).unlink()
    with pytest.raises(DataError, match=name):
        Snapshot.open(snapshot)
    assert any(name in problem for problem in verify_snapshot(snapshot))


@pytest.mark.parametrize("name", ["snapshot.json", "manifest.parquet"])
def test_cut_index_or_manifest(snapshot: Path, name: str) -> None:
    """Guards against half-written index files."""
    data = (snapshot / name).read_bytes()
    for cut in range(0, len(data), max(1, len(data) // 9)):
        (snapshot / name).write_bytes(data[:cut])
        with pytest.raises(DataError, match=name):
            Snapshot.open(snapshot)


def test_swapped_shards(snapshot: Path) -> None:
    """Guards against two sound shards under each other's name."""
    shutil.move(snapshot / SHARD, snapshot / "x")
    shutil.move(snapshot / "train-000001.tar", snapshot / SHARD)
    shutil.move(snapshot / "x", snapshot / "train-000001.tar")
    problems = verify_snapshot(snapshot)
    assert any("record 'k00' is missing" in problem for problem in problems)
    with pytest.raises(DataError, match="not where the manifest places it"):
        load_images(Snapshot.open(snapshot), "train", size=8)


def test_stray_shard(snapshot: Path) -> None:
    """Guards readers that glob for tars: one that the index does not name is reported."""
    shutil.copy(snapshot / SHARD, snapshot / "train-000007.tar")
    assert verify_snapshot(snapshot) == [f"{snapshot / 'train-000007.tar'}: not named by snapshot.json"]


def forge(snapshot: Path, records: list[ImageRecord]) -> None:
    """Replace the first shard by other records, and its checksum in the index as well."""
    (snapshot / SHARD).unlink()
    write_image_shard(snapshot, name=SHARD, split="train", records=records)
    index = json.loads((snapshot / "snapshot.json").read_text())
    index["shards"][0]["sha256"] = sha256_of(snapshot / SHARD)
    (snapshot / "snapshot.json").write_text(json.dumps(index))


def _records(numbers: Iterable[int], label_shift: int = 0, noise: int = 0) -> list[ImageRecord]:
    """Those of the first shard for numbers 0 to 3."""
    return [ImageRecord(key=f"k0{i}", rgb=_noise(noise + i), label=(i + label_shift) % 2, class_name=CLASSES[i % 2].name) for i in numbers]


@pytest.mark.parametrize(
    ("records", "problem", "count"),
    [
        (_records(range(4), noise=50), "checksum differs from the manifest", 4),
        (_records(range(4), label_shift=1), "the manifest has", 4),
        (_records([3, 1, 2, 0]), "the manifest has", 2),
        (_records(range(3)), "record 'k03' is missing", 1),
    ],
)
def test_forged_checksums_do_not_help(snapshot: Path, records: list[ImageRecord], problem: str, count: int) -> None:
    """Guards against a replaced shard whose checksum was replaced as well: other pixels, labels, order or count still show."""
    forge(snapshot, records)
    assert [problem in line and SHARD in line for line in verify_snapshot(snapshot)] == [True] * count


def test_forged_pixel_hash(snapshot: Path) -> None:
    """Guards the leak checks, which compare pixel hashes: one that is not the image's is found."""
    rows = Snapshot.open(snapshot).manifest()
    rows.loc[0, "pixel_sha256"] = "0" * 64
    commit_snapshot(snapshot, kind="real", classes=CLASSES, rows=rows, provenance={}, licence="x")
    assert verify_snapshot(snapshot) == [f"{snapshot / SHARD}: record 'k00': pixels differ from the manifest"]


def test_digest_is_checked(snapshot: Path) -> None:
    """Guards identity: an index that claims another content digest is found out."""
    index = json.loads((snapshot / "snapshot.json").read_text())
    index["digest"] = "0" * 64
    (snapshot / "snapshot.json").write_text(json.dumps(index))
    assert any("content digest" in problem for problem in verify_snapshot(snapshot))
