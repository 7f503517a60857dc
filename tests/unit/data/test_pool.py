"""A pool of more real images: all of it trained on, none of it what the real set has or tests with."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pictures import CHANGES, patches
from PIL import Image

from gda.artifacts.outcome import Outcome
from gda.cli.main import main
from gda.data.images.codecs import SYNTHETIC_MARK, encode_png
from gda.data.store.in_memory import load_images
from gda.data.store.snapshot import Snapshot
from gda.data.store.verify import verify_snapshot
from gda.data.test_split.ledger import read_ledger
from gda.errors import DataError, UsageError
from gda.io.skipped_arms import skipped_because

Pool = Callable[..., Outcome]


def write(path: Path, number: int) -> None:
    """Picture `number`, 64 pixels a side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(patches(64)[number].permute(1, 2, 0).numpy()).save(path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The real images: pictures 0 to 35, twelve per split, six each of cat and dog."""
    for number in range(36):
        split, name = (("train", "val", "test")[number // 12], ("cat", "dog")[number // 6 % 2])
        write(tmp_path / "source" / split / name / f"{number}.png", number)
    return tmp_path / "source"


@pytest.fixture
def real(source: Path, take: Any) -> Path:
    return take(source, "real").output


@pytest.fixture
def found(tmp_path: Path) -> Path:
    """The pool's folder: pictures 36 to 43, four of each class."""
    for number in range(36, 44):
        write(tmp_path / "found" / ("dog", "cat")[number // 4 % 2] / f"{number}.png", number)
    return tmp_path / "found"


@pytest.fixture
def pool(take: Any, real: Path) -> Pool:
    """pool(folder, ...) -> the outcome of importing it as a pool of the real set."""

    def make(folder: Path | str, out: str = "pool", **section: object) -> Outcome:
        return take(folder, out, pool_of=real, **section)

    return make


def left_out(outcome: Outcome) -> list[list[object]]:
    table = pd.read_csv(outcome.output / "left_out.csv")
    return table[["name", "where", "match"]].to_numpy().tolist()


def test_all_of_a_clean_pool_is_trained_on(pool: Pool, found: Path, real: Path) -> None:
    """Guards the arm: real images of one split, with the real set's labels, a provenance that says pool, and no list of nothing."""
    outcome = pool(found)
    snapshot, of_real = Snapshot.open(outcome.output), Snapshot.open(real)
    assert snapshot.index.kind == "real"
    assert snapshot.index.counts == {"train": {"cat": 4, "dog": 4}}
    assert snapshot.classes == of_real.classes
    recorded = {name: snapshot.index.provenance[name] for name in ("purpose", "pool_of", "left_out")}
    assert recorded == {"purpose": "pool", "pool_of": of_real.digest, "left_out": "none"}
    assert "near_leaks" not in snapshot.index.provenance
    assert "left out" not in outcome.summary
    assert not (outcome.output / "left_out.csv").exists()
    assert verify_snapshot(outcome.output) == []


def test_pixels_that_the_real_set_has_are_left_out(pool: Pool, found: Path, source: Path, real: Path) -> None:
    """Guards the test split and the count of images added: equal pixels of any split, whatever file or class, are listed and not taken."""
    for split, number in (("train", 0), ("val", 13), ("test", 25)):
        Image.open(source / split / "cat" / f"{number}.png").save(found / "dog" / f"{split}.bmp")
    outcome = pool(found)
    assert left_out(outcome) == [["dog/test.bmp", "test", "equal"], ["dog/train.bmp", "train", "equal"], ["dog/val.bmp", "val", "equal"]]
    rows = Snapshot.open(outcome.output).manifest()
    of_real = Snapshot.open(real).manifest()
    assert len(rows) == 8
    assert not set(rows["pixel_sha256"]) & set(of_real["pixel_sha256"])
    others = pd.read_csv(outcome.output / "left_out.csv")["other"]
    assert of_real.set_index("key").loc[others, "split"].tolist() == ["test", "train", "val"]
    assert "; left out 1 equal to test, 1 equal to train, 1 equal to val; left_out.csv lists them" in outcome.summary
    assert Snapshot.open(outcome.output).index.provenance["left_out"] == "1 equal to test, 1 equal to train, 1 equal to val"


@pytest.mark.parametrize("change", ["jpeg 60", "mirrored", "darker 0.7"])
def test_disguised_pictures_of_val_and_test_are_left_out(pool: Pool, found: Path, source: Path, change: str) -> None:
    """Guards the test split against its pictures in other bytes; those of train are new enough to be trained on."""
    for split, number in (("train", 0), ("val", 13), ("test", 25)):
        CHANGES[change](Image.open(source / split / "cat" / f"{number}.png").convert("RGB")).save(found / "cat" / f"{split}.png")
    outcome = pool(found)
    assert left_out(outcome) == [["cat/test.png", "test", "near"], ["cat/val.png", "val", "near"]]
    assert pd.read_csv(outcome.output / "left_out.csv")["distance"].between(0, 0.08).all()
    assert Snapshot.open(outcome.output).index.counts["train"] == {"cat": 5, "dog": 4}


def test_pictures_are_recognised_however_either_set_was_resized(take: Any, found: Path, source: Path) -> None:
    """Guards against a pool with original sizes where the real set is cropped to squares: a test picture, uncropped, in full width."""
    wide = Image.open(source / "test" / "cat" / "25.png").resize((128, 64))
    wide.paste(Image.open(source / "test" / "cat" / "25.png"), (32, 0))
    wide.save(source / "test" / "cat" / "25.png")
    wide.save(found / "cat" / "wide.png")
    real = take(source, "real", image_size=32).output
    for out, size in (("kept", None), ("same", 32), ("other", 48)):
        outcome = take(found, out, pool_of=real, image_size=size)
        assert left_out(outcome) == [["cat/wide.png", "test", "equal" if size == 32 else "near"]]
        assert len(Snapshot.open(outcome.output).manifest()) == 8


def test_equal_pixels_before_resizing_are_recognised(take: Any, found: Path, source: Path) -> None:
    """Guards train copies too where the pool alone is resized, and nothing of a picture is left in equal pixels."""
    real = take(source, "real").output
    shutil.copy(source / "train" / "dog" / "6.png", found / "dog" / "copy.png")
    assert left_out(take(found, "pool", pool_of=real, image_size=24)) == [["dog/copy.png", "train", "equal"]]


def test_a_picture_repeated_in_the_pool_is_taken_once(pool: Pool, found: Path) -> None:
    """Guards the weight of pictures that the web has many times: one stays, in whichever class, and the others are counted."""
    for copy in ("cat/36b.bmp", "dog/36c.png"):
        Image.open(found / "cat" / "36.png").save(found / copy)
    outcome = pool(found)
    table = pd.read_csv(outcome.output / "left_out.csv")
    assert table["where"].tolist() == ["pool", "pool"]
    assert set(table["other"]) | set(table["name"]) == {"cat/36.png", "cat/36b.bmp", "dog/36c.png"}
    assert table["other"].nunique() == 1
    assert "left out 2 repeated in the pool" in outcome.summary
    rows = Snapshot.open(outcome.output).manifest()
    assert len(rows) == 8
    assert rows["pixel_sha256"].is_unique


def test_repeats_are_found_however_far_apart(pool: Pool, tmp_path: Path) -> None:
    """Guards large pools, which are read in waves: a repeat in a later wave is a repeat."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2100, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "found.npz", arr_0=np.concatenate([pixels, pixels]), arr_1=np.zeros(4200, int))
    (tmp_path / "classnames.txt").write_text("dog\n")
    outcome = pool(tmp_path / "found.npz")
    assert "left out 2100 repeated in the pool" in outcome.summary
    assert Snapshot.open(outcome.output).index.counts == {"train": {"cat": 0, "dog": 2100}}


def test_labels_are_the_real_sets(pool: Pool, found: Path, real: Path) -> None:
    """Guards the meaning of labels where the pool has fewer classes: dog is 1, as in the real set, though nothing comes before it."""
    shutil.rmtree(found / "cat")
    snapshot = Snapshot.open(pool(found).output)
    assert set(load_images(snapshot, "train", size=8).labels.tolist()) == {1}
    assert snapshot.index.counts == {"train": {"cat": 0, "dog": 4}}
    assert snapshot.classes == Snapshot.open(real).classes
    assert verify_snapshot(snapshot.path) == []


def test_a_class_may_be_left_with_nothing(pool: Pool, found: Path, source: Path) -> None:
    """Guards against a pool refused because all of a class are copies of the real set."""
    shutil.rmtree(found / "cat")
    shutil.copytree(source / "test" / "cat", found / "cat")
    assert Snapshot.open(pool(found).output).index.counts == {"train": {"cat": 0, "dog": 4}}


def test_foreign_classes_are_refused_by_name(pool: Pool, found: Path, tmp_path: Path) -> None:
    """Guards against images that no classifier of the comparison has a label for; the test split is not opened for that."""
    write(found / "Cat" / "x.png", 50)
    with pytest.raises(DataError, match="'Cat' and 'cat'"):
        pool(found)
    shutil.rmtree(found / "Cat")
    write(found / "ape" / "x.png", 50)
    with pytest.raises(DataError, match=r"the pool has class 'ape', which the real set does not have; .* has 'cat', 'dog'$"):
        pool(found)
    for name in ("emu", "fox", "gnu", "hen"):
        write(found / name / "x.png", 50)
    with pytest.raises(DataError, match=r"class 'ape', 'emu', 'fox' and 2 more, which"):
        pool(found)
    assert not (tmp_path / "pool").exists()
    assert read_ledger() == []


def test_its_own_splits_and_the_shots_count_for_nothing(take: Any, real: Path, tmp_path: Path) -> None:
    """Guards the size of the pool: what it calls val and test is trained on, in folders and columns, and no shots are taken of it."""
    for number, split in enumerate(("train", "val", "test")):
        write(tmp_path / "found" / split / "cat" / "x.png", 40 + number)
    assert Snapshot.open(take(tmp_path / "found", "folders", pool_of=real, shots=1).output).index.counts == {"train": {"cat": 3, "dog": 0}}
    rows = [f"{split}/cat/x.png,cat,{split},one" for split in ("val", "test")]
    (tmp_path / "found" / "metadata.csv").write_text("\n".join(["file_name,label,part,who", *rows]) + "\n")
    by_column = take(tmp_path / "found", "columns", pool_of=real, columns=("part", "who"))
    assert Snapshot.open(by_column.output).index.counts == {"train": {"cat": 2, "dog": 0}}


def test_marked_images_are_not_taken(pool: Pool, found: Path, picture: Any, tmp_path: Path) -> None:
    """Guards the arm's meaning: a synthetic image found in a pool stops it, as it stops a real set."""
    (found / "cat" / "sampled.png").write_bytes(encode_png(picture(0), {SYNTHETIC_MARK: "abc"}))
    with pytest.raises(DataError, match=r"cat/sampled\.png: is marked as synthetic"):
        pool(found, max_bad_fraction=1.0)
    assert not (tmp_path / "pool").exists()


def test_nothing_left(pool: Pool, source: Path, tmp_path: Path) -> None:
    """Guards against an empty pool: the real set as its own pool says why nothing is left of it."""
    with pytest.raises(DataError, match="nothing is left of the pool: 12 equal to test, 12 equal to train, 12 equal to val"):
        pool(source)
    assert not (tmp_path / "pool").exists()


def test_unreadable_images_count_as_in_a_real_set(pool: Pool, found: Path) -> None:
    """Guards against silent drops: a file that is no image is refused or, below the limit, listed."""
    (found / "cat" / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 9 images cannot be used"):
        pool(found)
    index = Snapshot.open(pool(found, max_bad_fraction=0.2).output).index
    assert [item["file"] for item in index.quarantined] == ["cat/bad.png"]
    assert index.counts == {"train": {"cat": 4, "dog": 4}}


def test_the_test_split_is_opened_once_through_its_door(pool: Pool, found: Path, real: Path) -> None:
    """Guards the ledger: one opening, for the leak check, and none where the pool is there already."""
    pool(found)
    opened = read_ledger()
    assert [(line["digest"], line["purpose"]) for line in opened] == [(Snapshot.open(real).split_digest("test"), "leak_check")]
    assert pool(found).reused
    assert read_ledger() == opened


def test_equal_paths_are_different_images(pool: Pool, real: Path, tmp_path: Path) -> None:
    """Guards uses of keys: a file of the pool with the same path as one of the real set has another key."""
    write(tmp_path / "found" / "train" / "cat" / "0.png", 40)
    (key,) = Snapshot.open(pool(tmp_path / "found").output).manifest()["key"]
    assert key.removeprefix("pool-") in set(Snapshot.open(real).manifest("train")["key"])
    assert key not in set(Snapshot.open(real).manifest()["key"])


def test_a_pool_is_made_again_for_another_real_set_alone(take: Any, pool: Pool, found: Path, source: Path) -> None:
    """Guards the fingerprint: it holds the real set's digest, and no setting that a pool does not follow."""
    pool(found)
    assert pool(found, shots=2, val_fraction=0.3, split_key="other", few_shot_seed=5).reused
    (source / "test" / "cat" / "25.png").unlink()
    with pytest.raises(UsageError, match=r"inputs\.pool_of"):
        take(found, "pool", pool_of=take(source, "smaller").output)


def test_equal_pools_are_equal_bytes(pool: Pool, found: Path, source: Path) -> None:
    """Guards reproducibility, the list of what was left out included."""
    shutil.copy(source / "test" / "cat" / "25.png", found / "cat")
    CHANGES["jpeg 60"](Image.open(source / "val" / "dog" / "20.png").convert("RGB")).save(found / "dog" / "x.png")
    one, two = pool(found, "one").output, pool(found, "two").output
    names = sorted(path.name for path in one.iterdir())
    assert "left_out.csv" in names
    assert [(one / name).read_bytes() for name in names] == [(two / name).read_bytes() for name in names]


def test_what_a_pool_is_held_against(take: Any, pool: Pool, found: Path, source: Path, real: Path) -> None:
    """Guards against a leak check with nothing to check: synthetic sets and pools have no test split."""
    sampled = take(source / "train", "sampled", as_synthetic=True).output
    with pytest.raises(DataError, match=r"--snapshot .*sampled: is a synthetic set; accepted: the real snapshot"):
        take(found, "x", pool_of=sampled)
    with pytest.raises(DataError, match=r"--snapshot .*pool: is a pool itself"):
        take(found, "x", pool_of=pool(found).output)


def test_on_the_command_line(found: Path, real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the flags: each of the two without the other is an error of usage, together they make a pool."""
    command = ["snapshot", str(found), "--out", str(tmp_path / "pool")]
    for flags in (["--as", "pool"], ["--snapshot", str(real)], ["--as", "synthetic", "--snapshot", str(real)]):
        assert main([*command, *flags]) == 2
        assert "--as pool and --snapshot DIR go together" in capsys.readouterr().err
    assert main([*command, "--as", "pool", "--snapshot", str(real)]) == 0
    assert Snapshot.open(tmp_path / "pool").index.provenance["purpose"] == "pool"


def test_the_configured_pool(
    found: Path, real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the setting: without SOURCE a pool is taken from snapshot.pool, and nothing else is taken from nowhere."""
    monkeypatch.chdir(tmp_path)  # where there is no params.yaml
    command = ["snapshot", "--out", str(tmp_path / "pool")]
    as_pool = [*command, "--as", "pool", "--snapshot", str(real)]
    assert main(as_pool) == 2
    assert "snapshot.pool is null; give SOURCE, or the setting a source" in capsys.readouterr().err
    assert main([*command, "--set", f"snapshot.pool={found}"]) == 2
    assert "SOURCE is needed" in capsys.readouterr().err
    assert main([*as_pool, "--set", f"snapshot.pool={found}"]) == 0
    assert Snapshot.open(tmp_path / "pool").index.counts == {"train": {"cat": 4, "dog": 4}}


def test_a_flow_goes_on_without_a_pool(
    found: Path, real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards runs of other data: their steps are those of the demo, and a pool that nobody has leaves a note of why."""
    monkeypatch.chdir(tmp_path)
    command = ["snapshot", "--as", "pool", "--snapshot", str(real), "--if-compared"]
    compared = ["--set", 'classify.arms=["real", "real+synthetic", "retrieved"]']
    assert main([*command, "--out", "none", *compared]) == 0
    assert skipped_because(tmp_path / "none") == "because snapshot.pool is null"
    assert main([*command, "--out", "unneeded", "--set", f"snapshot.pool={found}"]) == 0
    assert skipped_because(tmp_path / "unneeded") == "because classify.arms does not name retrieved"
    assert main([*command, "--out", "pool", "--set", f"snapshot.pool={found}", *compared]) == 0
    assert skipped_because(tmp_path / "pool") is None
    assert capsys.readouterr().out.count(": skipped, because ") == 2


def test_a_real_set_does_not_depend_on_the_pool(take: Any, source: Path) -> None:
    """Guards what is published already: naming a pool makes no real snapshot again."""
    take(source)
    assert take(source, pool="demo://digits").reused


def test_the_demos_pool_has_nothing_of_the_demo(take: Any) -> None:
    """Guards against false alarms on digits of other writers, and that the demo can be trained with all of them."""
    outcome = take("demo://digits", "pool", pool_of=take("demo://mnist", "real").output)
    snapshot = Snapshot.open(outcome.output)
    assert snapshot.index.provenance["left_out"] == "none"
    assert sum(snapshot.index.counts["train"].values()) == 1797


def test_jpegs_with_loss_are_read(pool: Pool, found: Path, source: Path) -> None:
    """Guards the usual case of images from the web: JPEGs of new pictures are taken, and of test pictures are not."""
    for name, number in (("new", 44), ("leak", 25)):
        buffer = io.BytesIO()
        Image.fromarray(patches(64)[number].permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=75)
        (found / "cat" / f"{name}.jpg").write_bytes(buffer.getvalue())
    outcome = pool(found)
    assert left_out(outcome) == [["cat/leak.jpg", "test", "near"]]
    assert Snapshot.open(outcome.output).index.counts["train"]["cat"] == 5
