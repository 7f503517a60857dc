"""The snapshot stage: identity, quarantine, duplicates, marks, reuse."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from trees import tree

from gda.artifacts.outcome import Outcome
from gda.data.images.codecs import SYNTHETIC_MARK, decode, encode_png
from gda.data.store.snapshot import Snapshot
from gda.data.store.verify import verify_snapshot
from gda.errors import DataError, TryAgainError, UsageError
from gda.io.shards import read_shard

TWO = {"cat": 14, "hot_dog": 14}


def test_same_source_same_bytes(image_folder: Any, take: Any, tmp_path: Path) -> None:
    """Guards identity: the same images elsewhere, with other file times, give the same files to the last byte."""
    first = take(image_folder(TWO))
    shutil.copytree(tmp_path / "source", tmp_path / "moved")
    os.utime(tmp_path / "moved" / "cat" / "0.png", (1, 1))
    second = take(tmp_path / "moved", "out2")
    assert tree(first.output) == tree(second.output)
    assert verify_snapshot(first.output) == []


def test_worker_count_does_not_matter(image_folder: Any, take: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards identity across machines: one core or several, one chunk or many."""
    source = image_folder(TWO)
    first = take(source)
    monkeypatch.setattr("gda.data.ingest.ingest._CHUNK", 3)
    monkeypatch.setattr("gda.data.ingest.ingest._WAVE", 7)
    monkeypatch.setattr("gda.runtime.parallel.available_cpus", lambda: 3)
    assert tree(first.output) == tree(take(source, "out2").output)


def test_shard_size_is_not_identity(image_folder: Any, take: Any) -> None:
    """Guards the digest: how images are packed changes files, not content."""
    source = image_folder(TWO)
    one, many = take(source), take(source, "out2", shard_size=3)
    assert one.digest == many.digest
    assert len(Snapshot.open(many.output).index.shards) > len(Snapshot.open(one.output).index.shards)
    assert verify_snapshot(many.output) == []


@pytest.mark.parametrize("change", ["pixel", "label", "class name", "split"])
def test_digest_covers_content(image_folder: Any, take: Any, change: str, picture: Any, tmp_path: Path) -> None:
    """Guards the digest: a changed pixel, label, class name or split is another data set."""
    counts = {f"{split}/{name}": 3 for split in ("train", "val", "test") for name in ("cat", "hot_dog")}
    first = take(image_folder(counts)).digest
    root = image_folder(counts, "other")
    if change == "pixel":
        rgb = picture(0)
        rgb[0, 0, 0] ^= 1
        Image.fromarray(rgb).save(root / "train" / "cat" / "0.png")
    elif change == "label":
        os.rename(root / "train" / "cat" / "0.png", root / "train" / "hot_dog" / "9.png")
    elif change == "class name":
        for split in ("train", "val", "test"):
            os.rename(root / split / "cat", root / split / "lion")
    else:
        os.rename(root / "train" / "cat" / "0.png", root / "val" / "cat" / "9.png")
    assert take(root, "out2").digest != first


def test_finished_output_is_reused(image_folder: Any, take: Any) -> None:
    """Guards the second run of one command: it does nothing and says so; a changed image or setting is refused."""
    source = image_folder(TWO)
    first = take(source)
    before = tree(first.output)
    again = take(source)
    assert again.reused
    assert again.digest == first.digest
    with pytest.raises(UsageError, match=r"config\.shard_size: 1000 -> 5"):
        take(source, shard_size=5)
    (source / "cat" / "0.png").write_bytes((source / "cat" / "1.png").read_bytes())
    with pytest.raises(UsageError, match=r"inputs\.source"):
        take(source)
    assert tree(first.output) == before


def test_damaged_leftovers_are_not_used(image_folder: Any, take: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the run after a crash: files that an unfinished run left in the work folder are made again, not trusted."""
    source = image_folder(TWO)

    def interrupted(_: object) -> None:
        raise TryAgainError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr("gda.io.publish.publish", interrupted)
        with pytest.raises(TryAgainError):
            take(source)
    leftovers = list((tmp_path / "work").rglob("*.tar"))
    assert len(leftovers) == 3
    for path in leftovers:
        path.write_bytes(b"damaged")
    assert verify_snapshot(take(source).output) == []


def test_image_size_and_codec(image_folder: Any, take: Any) -> None:
    """Guards what is stored: PNG, RGB, of the configured size, with the name of the source file."""
    outcome = take(image_folder(TWO), image_size=8)
    shard = next(iter(outcome.output.glob("train-*.tar")))
    for record in read_shard(shard):
        assert record.extension == "png"
        assert decode(record.image, name="x").size == (8, 8)
        assert record.meta["source"].split("/")[0] == Snapshot.open(outcome.output).classes[record.label].name


def test_image_size_moves_no_image(image_folder: Any, take: Any) -> None:
    """Guards comparisons of resolutions: the split is decided by the original pixels."""
    source = image_folder(TWO)
    small, large = (Snapshot.open(take(source, f"out{size}", image_size=size).output).manifest() for size in (8, 10))
    assert dict(zip(small["key"], small["split"], strict=True)) == dict(zip(large["key"], large["split"], strict=True))


BAD = {
    "text.png": b"this is text",
    "zero.jpg": b"",
    "truncated.jpg": b"JPEG",
    "bomb.png": b"BOMB",
    "animated.webp": b"ANIMATED",
}


def write_bad(folder: Path, picture: Any) -> None:
    for name, data in BAD.items():
        (folder / name).write_bytes(data)
    Image.fromarray(picture(7, 64, 64)).save(folder / "whole.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:-300])
    (folder / "whole.jpg").unlink()
    Image.new("1", (9000, 9000)).save(folder / "bomb.png")
    frames = [Image.fromarray(picture(i)) for i in (1, 2)]
    frames[0].save(folder / "animated.webp", save_all=True, append_images=frames[1:])


def test_unreadable_images_are_refused_above_the_limit(image_folder: Any, take: Any, picture: Any, tmp_path: Path) -> None:
    """Guards the gate on bad images: count, limit and the first files with their reasons, in one line."""
    source = image_folder(TWO)
    write_bad(source / "cat", picture)
    with pytest.raises(
        DataError, match=r"5 of 33 images .*max_bad_fraction 0.1 allows: cat/animated\.webp \(animated.* and 2 more"
    ) as caught:
        take(source, max_bad_fraction=0.1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_unreadable_images_are_quarantined_below_it(image_folder: Any, take: Any, picture: Any) -> None:
    """Guards against silent drops: each file left out is listed with its reason, and the rest is sound."""
    source = image_folder(TWO)
    write_bad(source / "cat", picture)
    outcome = take(source, max_bad_fraction=0.2)
    reasons = {item["file"]: item["reason"] for item in Snapshot.open(outcome.output).index.quarantined}
    assert set(reasons) == {f"cat/{name}" for name in BAD}
    assert reasons["cat/zero.jpg"] == "zero bytes"
    assert reasons["cat/text.png"].startswith("not an image")
    assert "pixels" in reasons["cat/bomb.png"]
    assert "5 left out" in outcome.summary
    assert verify_snapshot(outcome.output) == []


def test_class_whose_images_are_all_bad(image_folder: Any, take: Any) -> None:
    """Guards against a class that vanishes into quarantine."""
    source = image_folder(TWO | {"zebra": 1})
    (source / "zebra" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="class 'zebra' has no training images"):
        take(source, max_bad_fraction=0.5)


def test_nothing_usable(image_folder: Any, take: Any) -> None:
    """Guards against an empty snapshot, even where every bad image is allowed."""
    source = image_folder({"cat": 2, "dog": 2})
    for path in source.rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="no usable images"):
        take(source, max_bad_fraction=1.0)


def test_duplicates_fall_together(image_folder: Any, take: Any, tmp_path: Path) -> None:
    """Guards keyed splits: copies of a picture, whatever their names and codecs, are on one side."""
    source = image_folder(TWO)
    for index in range(14):
        Image.open(source / "cat" / f"{index}.png").save(source / "cat" / f"copy{index}.bmp")
    rows = Snapshot.open(take(source).output).manifest()
    assert rows.groupby("pixel_sha256")["split"].nunique().max() == 1
    assert rows.duplicated("pixel_sha256").sum() == 14


def test_duplicates_across_own_splits_are_refused(image_folder: Any, take: Any, tmp_path: Path) -> None:
    """Guards users' own splits: a training picture in test is an error that shows count and pairs."""
    source = image_folder({f"{split}/{name}": 6 for split in ("train", "val", "test") for name in ("a", "b")})
    for index in range(5):
        Image.open(source / "train" / "a" / f"{index}.png").save(source / "test" / "a" / f"leak{index}.bmp")
    with pytest.raises(DataError, match=r"5 pictures are in more than one split: .*\.png \(train\).*\(and 2 more\)") as caught:
        take(source)
    assert "leak" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_marked_images_are_not_real(image_folder: Any, take: Any, picture: Any) -> None:
    """Guards the real set against synthetic images that found their way back into it."""
    source = image_folder(TWO)
    (source / "cat" / "0.png").write_bytes(encode_png(picture(0), {SYNTHETIC_MARK: "abc"}))
    with pytest.raises(DataError, match=r"cat/0\.png: is marked as synthetic.*--as synthetic"):
        take(source, max_bad_fraction=1.0)


def test_import_as_synthetic(image_folder: Any, take: Any, picture: Any) -> None:
    """Guards sets sampled elsewhere: all train, kind synthetic, every image marked from then on."""
    source = image_folder(TWO)
    (source / "cat" / "0.png").write_bytes(encode_png(picture(0), {SYNTHETIC_MARK: "abc"}))
    snapshot = Snapshot.open(take(source, as_synthetic=True).output)
    assert snapshot.index.kind == "synthetic"
    assert snapshot.splits == ("train",)
    assert "seed" in snapshot.manifest().columns
    marks = [decode(record.image, name="x").info[SYNTHETIC_MARK] for record in read_shard(snapshot.path / "train-000000.tar")]
    assert sorted(marks) == ["abc"] + ["unknown"] * 27


def test_synthetic_sets_have_one_split(image_folder: Any, take: Any) -> None:
    """Guards against test images that would be trained on because the whole set was called synthetic."""
    with pytest.raises(DataError, match="a synthetic set has one split"):
        take(image_folder({"train/a": 3, "val/a": 3, "test/a": 3}), as_synthetic=True)


def test_empty_split(image_folder: Any, take: Any) -> None:
    """Guards later stages against a split that no image fell to."""
    with pytest.raises(DataError, match="no image fell to split"):
        take(image_folder({"a": 1, "b": 1}))


def test_shards_mix_classes(image_folder: Any, take: Any) -> None:
    """Guards streaming readers: a shard is no run of one class."""
    rows = Snapshot.open(take(image_folder({"a": 40, "b": 40}), shard_size=16).output).manifest("train")
    assert rows.groupby("shard")["class"].nunique().min() == 2


def test_nfd_folder_names(image_folder: Any, take: Any) -> None:
    """Guards folders from systems that store decomposed names: the class and its rows are in NFC."""
    snapshot = Snapshot.open(take(image_folder({"e\u0301": 14, "b": 14})).output)
    assert [info.name for info in snapshot.classes] == ["b", "\u00e9"]
    assert set(snapshot.manifest()["class"]) == {"b", "\u00e9"}


def test_fingerprint_holds_no_path(image_folder: Any, take: Any, tmp_path: Path) -> None:
    """Guards reproducibility: no file of the output names where it was made."""
    outcome = take(image_folder(TWO))
    files = [path for path in outcome.output.rglob("*") if path.is_file()]
    assert len(files) > 3
    assert [path.name for path in files if str(tmp_path).encode() in path.read_bytes()] == []


def test_demo_digits(take: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the demo: its content digest, split sizes, and that its splits share no picture."""
    snapshot = Snapshot.open(take("demo://mnist").output)
    rows = snapshot.manifest()
    assert snapshot.index.counts == {
        split: dict.fromkeys(map(str, range(10)), n) for split, n in (("train", 100), ("val", 50), ("test", 350))
    }
    assert rows["pixel_sha256"].is_unique
    assert rows["class"].tolist() == [key.split("-")[1] for key in rows["key"]]
    assert snapshot.digest == "c48953c9b1202ac944e041a8e18e5ebbfa8d611f9a3664dc80334fcc6254b8fd"


def test_few_shots_of_the_demo_move_no_image_between_splits(take: Any) -> None:
    """Guards the comparison of sizes: whatever the shots, one validation and one test split, which no choice of training images is from."""
    whole = Snapshot.open(take("demo://mnist", "whole").output)
    chosen = Snapshot.open(take("demo://mnist", "chosen", shots=5, few_shot_seed=3).output)
    first = Snapshot.open(take("demo://mnist", "first", demo_train_per_class=5).output)
    for few in (chosen, first):
        for split in ("val", "test"):
            assert whole.split_digest(split) == few.split_digest(split)
        assert few.index.counts["train"] == dict.fromkeys(map(str, range(10)), 5)
        assert set(few.manifest("train")["key"]) < set(whole.manifest("train")["key"])


def train_keys(outcome: Outcome) -> set[str]:
    return set(Snapshot.open(outcome.output).manifest("train")["key"])


def test_shots_are_nested_and_leave_the_rest_alone(image_folder: Any, take: Any) -> None:
    """Guards few-shot comparisons: equal numbers per class; fewer shots of a seed are a subset of more; seeds differ; one test split."""
    source = image_folder({"cat": 60, "dog": 60})
    whole, one, three, again = (
        take(source, f"out-{shots}-{seed}", shots=shots, few_shot_seed=seed) for shots, seed in ((None, 0), (1, 0), (3, 0), (3, 1))
    )
    for outcome, shots in ((one, 1), (three, 3), (again, 3)):
        index = Snapshot.open(outcome.output).index
        assert index.counts["train"] == {"cat": shots, "dog": shots}
        assert index.provenance["shots"].startswith(f"{shots} per class, few_shot_seed")
        for split in ("val", "test"):
            assert Snapshot.open(outcome.output).split_digest(split) == Snapshot.open(whole.output).split_digest(split)
        assert verify_snapshot(outcome.output) == []
    assert train_keys(one) < train_keys(three) < train_keys(whole)
    assert train_keys(again) != train_keys(three)
    assert "shots" not in Snapshot.open(whole.output).index.provenance


def test_val_and_test_do_not_move_with_the_shots(image_folder: Any, take: Any) -> None:
    """Guards curves over 1 to 50 shots: where a hash makes the splits, all sizes and seeds are tested on the same images."""
    source = image_folder({"cat": 110, "dog": 110})
    whole = Snapshot.open(take(source, "whole").output)
    held_out = {split: whole.split_digest(split) for split in ("val", "test")}
    trained = set()
    for shots, seed in ((1, 0), (1, 1), (5, 0), (20, 2), (50, 0)):
        cut = Snapshot.open(take(source, f"out-{shots}-{seed}", shots=shots, few_shot_seed=seed).output)
        assert {split: cut.split_digest(split) for split in held_out} == held_out
        assert len(cut.manifest("train")) == 2 * shots
        trained |= set(cut.manifest("train")["key"])
    assert not trained & set(whole.manifest("val")["key"]) | trained & set(whole.manifest("test")["key"])


def test_too_few_images_for_the_shots_are_named(image_folder: Any, take: Any) -> None:
    """Guards against a comparison in which a class quietly has fewer images than the others."""
    source = image_folder({"train/cat": 4, "train/dog": 2, "val/cat": 1, "val/dog": 1, "test/cat": 1, "test/dog": 1})
    with pytest.raises(DataError, match=r"snapshot\.shots: 3 training images per class are required, but there are fewer of class 'dog' 2"):
        take(source, shots=3)


def test_a_whole_snapshot_does_not_depend_on_shots(image_folder: Any, take: Any) -> None:
    """Guards what is published already: without shots, the few-shot seed is no setting of a snapshot."""
    source = image_folder(TWO)
    take(source)
    assert take(source, few_shot_seed=3).reused
