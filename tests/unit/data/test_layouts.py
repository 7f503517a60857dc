"""What folders mean is read where there is one reading, and refused with the readings where there are two."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gda.cli.main import main
from gda.data.sources.folders import read_folder
from gda.data.sources.source import Columns
from gda.errors import ConfigError, DataError

Found = dict[tuple[str | None, str], int]


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """folder({"train/cat": 3}) -> a folder with so many tiny PNGs in each."""

    def make(counts: dict[str, int], files: dict[str, str] | None = None) -> Path:
        root = tmp_path / "in"
        for place, count in counts.items():
            (root / place).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                Image.new("RGB", (1, 1)).save(root / place / f"{index}.png")
        for name, text in (files or {}).items():
            (root / name).write_text(text)
        return root

    return make


def read(root: Path, layout: str | None = None, **columns: Any) -> Found:
    found: Found = {}
    for record in read_folder(root, Columns(**columns), layout=layout, progress=False).records:
        place = (record.split, record.class_name)
        found[place] = found.get(place, 0) + 1
    return found


def tree(**splits: str) -> dict[str, int]:
    return {f"{place}/{name}": number for number, place in enumerate(splits.values(), start=1) for name in ("cat", "dog")}


def wanted(**splits: str) -> Found:
    return {(split, name): number for number, split in enumerate(splits, start=1) for name in ("cat", "dog")}


@pytest.mark.parametrize(
    "splits",
    [
        {"train": "train", "val": "validation", "test": "test"},
        {"train": "training", "val": "valid", "test": "testing"},
        {"train": "Train", "val": "dev", "test": "eval"},
        {"train": "train", "val": "eval", "test": "test"},
        {"train": "training_set", "test": "test_set"},
        {"train": "train_set", "val": "val_set"},
        {"train": "trainset", "test": "testset"},
        {"train": "train2017", "val": "val2017"},
        {"train": "train_images", "test": "TestImages"},
        {"train": "seg_train/seg_train", "test": "seg_test/seg_test"},
        {"train": "cars_train", "test": "cars_test"},
        {"train": "archive/data/train", "test": "archive/data/test"},
        {"train": "train/images", "test": "test/images"},
    ],
    ids=lambda splits: " ".join(splits.values()),
)
def test_split_folders_that_people_have(folder: Any, splits: dict[str, str]) -> None:
    """Guards the layouts of Hugging Face, Kaggle, torchvision, Keras and YOLO, with wrappers and doubled names."""
    assert read(folder(tree(**splits))) == wanted(**splits)


@pytest.mark.parametrize(
    "counts",
    [
        {"cat": 2, "dog": 2},
        {"images/cat": 2, "images/dog": 2},
        {"pets/pets/images/cat": 2, "pets/pets/images/dog": 2},
        {"cat/images": 2, "dog/images": 2},
        {"cat": 1, "cat/more": 1, "dog": 2},
        {"images/cat": 2, "images/dog": 2, "annotations": 0},
    ],
    ids=" ".join,
)
def test_class_folders_and_wrappers(folder: Any, counts: dict[str, int]) -> None:
    """Guards class folders: below wrappers of unpacked archives, with one folder of one name in each, with folders in them."""
    files = {"annotations/a.xml": "<a/>"} if "annotations" in counts else None
    assert read(folder(counts, files)) == {(None, "cat"): 2, (None, "dog"): 2}


def test_classes_that_sound_like_splits(folder: Any) -> None:
    """Guards classes such as test_tube and train_station, and train as a vehicle next to car."""
    assert set(read(folder({"test_tube": 1, "train_station": 1, "train": 1, "car": 1}))) == {
        (None, name) for name in ("test_tube", "train_station", "train", "car")
    }


@pytest.mark.parametrize(
    ("counts", "message", "layout", "then"),
    [
        (
            {"train/cat": 1, "valid/cat": 1, "test/cat": 1, "samples": 1},
            r"'samples' not: .*snapshot.layout",
            "{split}/{class}",
            {("train", "cat"), ("val", "cat"), ("test", "cat")},
        ),
        ({"train/cat": 1, "test/cat": 1, "extra/cat": 1}, "'extra' not", "{split}/{class}", {("train", "cat"), ("test", "cat")}),
        ({"cat": 1, "dog": 1, "test": 1}, "'test' is named as a split", "{class}", {(None, "cat"), (None, "dog"), (None, "test")}),
        ({"a/airfield": 1, "b/beach": 1}, r"\('airfield', 'beach'\)\? Set", "*/{class}", {(None, "airfield"), (None, "beach")}),
        ({"a/airfield": 1, "b/beach": 1}, r"to \{class\} or to \*/\{class\}", "{class}", {(None, "a"), (None, "b")}),
        ({"cat": 1, "dog/puppy": 1}, "are the classes its folders", "{class}", {(None, "cat"), (None, "dog")}),
        (
            {"cat/train": 1, "cat/test": 1, "dog/train": 1},
            r"\{class\}/\{split\}",
            "{class}/{split}",
            {("train", "cat"), ("test", "cat"), ("train", "dog")},
        ),
        ({"cat": 1, "cat/test": 1, "dog": 1}, r"\{class\}/\{split\}", "{class}", {(None, "cat"), (None, "dog")}),
        (
            {"train/a/x": 1, "train/b/y": 1, "test/a/x": 1},
            r"\{split\}/\*/\{class\}",
            "{split}/*/{class}",
            {("train", "x"), ("train", "y"), ("test", "x")},
        ),
    ],
)
def test_two_readings_are_refused_and_settled(folder: Any, counts: Any, message: str, layout: str, then: set[Any]) -> None:
    """Guards every ambiguous layout: refused with the reading and the field, and read as the field says once it is set."""
    root = folder(counts)
    with pytest.raises(DataError, match=message):
        read(root)
    assert set(read(root, layout)) == then


def test_what_a_layout_leaves_out_is_counted(folder: Any) -> None:
    """Guards the folder that snapshot.layout leaves out, and hidden and system folders of NAS boxes: named and counted."""
    root = folder({"train/cat": 1, "test/cat": 1, "samples": 3, "train/cat/@eaDir": 2, "train/.thumbnails": 1}, {"Thumbs.db": "x"})
    left_out = read_folder(root, Columns(), layout="{split}/{class}", progress=False).left_out
    assert left_out == {"hidden or of the system (.thumbnails, @eaDir, Thumbs.db)": 4, "outside the layout {split}/{class}": 3}


def table(splits: dict[str, int], column: str = "") -> str:
    rows = [f"{place}/{index}.png,{'cat' if index % 2 else 'dog'}" for place, count in splits.items() for index in range(count)]
    return "\n".join([f"file_name,label{',' + column if column else ''}", *(row + (",x" if column else "") for row in rows)]) + "\n"


def test_one_table_above_split_folders(folder: Any) -> None:
    """Guards test images that one metadata file above train/ and test/ lists: their folders say the splits."""
    counts = {"data/train": 4, "data/test": 2}
    assert read(folder(counts, {"metadata.csv": table(counts)})) == {
        (split, name): count for split, count in (("train", 2), ("test", 1)) for name in ("cat", "dog")
    }


@pytest.mark.parametrize(
    ("counts", "files", "message"),
    [
        ({"train": 2, "test": 2}, {"train/metadata.csv": "file_name,label\n0.png,cat\n1.png,dog\n"}, "is below no metadata file"),
        ({"train": 2, "more": 2}, {"metadata.csv": table({"train": 2, "more": 2})}, "is in no folder named as a split"),
        ({"train/test": 2}, {"metadata.csv": table({"train/test": 2})}, "in folders named as test and train"),
        ({"a": 2}, {"metadata.csv": table({"a": 2}), "metadata.jsonl": ""}, "metadata.csv and metadata.jsonl; keep one of them"),
        ({"a": 2}, {"metadata.csv": table({"a": 2}), "a/metadata.csv": ""}, "below two metadata files"),
        ({"a": 2}, {"metadata.parquet": "x"}, "metadata.parquet: is not read"),
        ({"a": 2}, {"metadata.csv": "file_name,label\na/0.png,cat\na/0.png,dog\n"}, "two labels in the metadata, 'cat' and 'dog'"),
    ],
)
def test_tables_that_speak_of_a_part(folder: Any, counts: Any, files: dict[str, str], message: str) -> None:
    """Guards against images whose table is missing, doubled or contradicts the folders."""
    with pytest.raises(DataError, match=message):
        read(folder(counts, files))


def test_an_unused_split_column_is_refused(folder: Any) -> None:
    """Guards test images that a column names: refused until the field names the column; columns of other meaning pass."""
    rows = ["file_name,label,Split,fold"] + [f"a/{i}.png,{'cat' if i % 2 else 'dog'},{'test' if i > 1 else 'train'},1" for i in range(4)]
    root = folder({"a": 4}, {"metadata.csv": "\n".join(rows)})
    with pytest.raises(
        ConfigError, match=r"column 'Split' holds test 2, train 2, and nothing uses it: set snapshot.split_column to 'Split'"
    ):
        read(root)
    assert set(read(root, split="Split")) == {(split, name) for split in ("train", "test") for name in ("cat", "dog")}
    (root / "metadata.csv").write_text("\n".join(rows).replace(",test,", ",train,"))
    assert set(read(root)) == {(None, "cat"), (None, "dog")}


def test_exit_codes_and_the_closing_line(image_folder: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the command: a single class exits 3, a bad layout 2, a sound set 0 with classes, splits and what was left out."""
    out, common = str(tmp_path / "out"), ["--set", "snapshot.shard_size=100"]
    assert main(["snapshot", str(image_folder({"images": 12}, "one")), "--out", out, *common]) == 3
    assert "the one class found is 'images'" in capsys.readouterr().err
    good = image_folder({f"{split}/{name}": 3 for split in ("train", "dev", "test") for name in ("a", "b")}, "good")
    (good / "train" / "a" / "notes.txt").write_text("x")
    assert main(["snapshot", str(good), "--out", out, "--set", "snapshot.layout={split}"]) == 2
    assert "snapshot.layout" in capsys.readouterr().err
    assert main(["snapshot", str(good), "--out", out, *common]) == 0
    assert "18 images of 2 classes (train 6, val 6, test 6; files not taken: 1 no image (.txt))" in capsys.readouterr().out
