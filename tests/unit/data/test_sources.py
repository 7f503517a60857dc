"""Every kind of source gives the same kind of snapshot; bad ones are refused with one line that names the place."""

import csv
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gda.data.images.codecs import encode_png
from gda.data.store.snapshot import Snapshot
from gda.errors import DataError, GdaError, UsageError

TWO = {"cat": 14, "hot_dog": 14}


def rows_of(outcome: Any) -> Any:
    return Snapshot.open(outcome.output).manifest()


def write_metadata(root: Path, rows: list[dict[str, object]], kind: str = "csv") -> None:
    if kind == "jsonl":
        (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    with open(root / "metadata.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def hf_folder(tmp_path: Path, picture: Any, count: int = 30, kind: str = "csv", **columns: Any) -> Path:
    root = tmp_path / "hf"
    (root / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        Image.fromarray(picture(number)).save(root / "images" / f"{number}.png")
        extra = {name: value(number) for name, value in columns.items()}
        rows.append({"file_name": f"images/{number}.png", "label": ["cat", "dog"][number % 2], **extra})
    write_metadata(root, rows, kind)
    return root


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def webdataset(tmp_path: Path, picture: Any, count: int = 30, shards: int = 2, extra: dict[str, Any] | None = None) -> Path:
    root = tmp_path / "wds"
    root.mkdir()
    for shard in range(shards):
        members = []
        for number in range(shard, count, shards):
            members += [(f"{number:04d}.png", encode_png(picture(number))), (f"{number:04d}.cls", str(number % 2).encode())]
            if extra:
                members.append((f"{number:04d}.json", json.dumps({name: value(number) for name, value in extra.items()}).encode()))
        write_tar(root / f"part-{shard:03d}.tar", members)
    return root


# --- class folders


def test_class_folders(image_folder: Any, take: Any) -> None:
    """Guards the plain case: classes, prompt names, counts, and every image present once."""
    outcome = take(image_folder(TWO))
    snapshot = Snapshot.open(outcome.output)
    assert [(info.name, info.prompt_name) for info in snapshot.classes] == [("cat", "cat"), ("hot_dog", "hot dog")]
    assert snapshot.manifest().groupby("class").size().to_dict() == TWO
    assert snapshot.splits == ("train", "val", "test")
    assert outcome.digest == snapshot.digest


def test_split_folders_are_kept(image_folder: Any, take: Any) -> None:
    """Guards the user's own splits, under the names people use."""
    root = image_folder({"train/cat": 5, "train/dog": 4, "validation/cat": 2, "validation/dog": 2, "test/cat": 3, "test/dog": 3})
    assert rows_of(take(root)).groupby("split").size().to_dict() == {"train": 9, "val": 4, "test": 6}


def test_missing_test_folder_is_carved(image_folder: Any, take: Any) -> None:
    """Guards users with train and val only: val stays as it is, test comes out of train."""
    counts = rows_of(take(image_folder({"train/a": 20, "train/b": 20, "val/a": 5, "val/b": 5}))).groupby("split").size()
    assert counts["val"] == 10
    assert counts["test"] > 0
    assert counts["train"] + counts["test"] == 40


def test_class_named_train_is_a_class(image_folder: Any, take: Any) -> None:
    """Guards a data set of vehicles: `train` next to `car` is a class."""
    assert {info.name for info in Snapshot.open(take(image_folder({"train": 14, "car": 14})).output).classes} == {"train", "car"}


def test_nested_files_and_clutter(image_folder: Any, take: Any) -> None:
    """Guards nested class folders, and that other files are counted rather than read or refused."""
    root = image_folder(TWO | {"cat/more": 3})
    (root / "cat" / "notes.txt").write_text("x")
    (root / ".DS_Store").write_text("x")
    outcome = take(root)
    assert len(rows_of(outcome)) == 31
    assert Snapshot.open(outcome.output).index.provenance["ignored_files"] == "2"
    assert "1 hidden or of the system (.DS_Store), 1 no image (.txt)" in outcome.summary


def test_images_outside_class_folders_are_not_dropped_silently(image_folder: Any, take: Any, picture: Any) -> None:
    """Guards against images that belong to no class."""
    root = image_folder(TWO)
    Image.fromarray(picture(99)).save(root / "stray.png")
    with pytest.raises(DataError, match=r"stray\.png \(not in a class folder\)"):
        take(root)


def test_linked_class_folders(image_folder: Any, take: Any, tmp_path: Path) -> None:
    """Guards sources made of links, loops included: each real image once."""
    real = image_folder(TWO, "elsewhere")
    (tmp_path / "source").mkdir()
    for name in TWO:
        (tmp_path / "source" / name).symlink_to(real / name)
    (real / "cat" / "loop").symlink_to(real / "cat")
    assert len(rows_of(take(tmp_path / "source"))) == 28


def test_keys_come_from_paths_alone(image_folder: Any, take: Any) -> None:
    """Guards stable identity: new images change neither key nor split of the old ones, wherever the folder lies."""
    first = rows_of(take(image_folder(TWO, "one"))).set_index("key")["split"]
    grown = image_folder(TWO, "two")
    image_folder({"cat/new": 20}, "two", start=500)
    second = rows_of(take(grown, "out2")).set_index("key")["split"]
    assert len(second) == 48
    assert second[first.index].to_dict() == first.to_dict()


@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [
        ({"cat": 14, "dog": 0}, DataError, "class 'dog' has no images"),
        ({"Cat": 14, "cat": 14}, DataError, "'Cat' and 'cat' differ only"),
        ({"e\u0301": 14, "\u00e9": 14}, DataError, "unicode form"),
        ({"con": 14, "cat": 14}, DataError, "reserved"),
        ({"hot_dog": 14, "hot-dog": 14}, DataError, "same prompt"),
        ({"train/a": 9, "val": 3}, DataError, "val: a split folder without class folders"),
        ({"train/a": 9, "val/a": 3, "valid/a": 3}, DataError, "two folders name one split"),
        ({"train/a": 9, "val/a": 3, "test/a": 3, "test/b": 3}, DataError, "class 'b' has no training images"),
        ({}, UsageError, "no such folder"),
        ({"": 0}, DataError, "holds no class folders"),
    ],
)
def test_bad_folders(image_folder: Any, take: Any, counts: dict[str, int], error: type[GdaError], message: str, tmp_path: Path) -> None:
    """Guards each way a folder can be unusable: one line that names it, and nothing published."""
    with pytest.raises(error, match=message) as caught:
        take(image_folder(counts))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_odd_file_names(image_folder: Any, take: Any) -> None:
    """Guards messages and documents against file names that are not UTF-8 or span lines; the images themselves are fine."""
    source = image_folder(TWO)
    os.rename(source / "cat" / "0.png", os.fsencode(source / "cat") + b"/\xff\n0.png")
    (source / "cat" / "1.png").unlink()
    with open(os.fsencode(source / "cat") + b"/\xfe\n1.png", "wb") as file:
        file.write(b"no image")
    snapshot = Snapshot.open(take(source, max_bad_fraction=0.1).output)
    assert [item["file"] for item in snapshot.index.quarantined] == ["cat/\\udcfe\\x0a1.png"]
    assert len(snapshot.manifest()) == 27
    with pytest.raises(DataError, match="1 of 28 images") as caught:
        take(source, "out2")
    assert str(caught.value).isprintable()


def test_unreadable_folder(image_folder: Any, take: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against folders that cannot be listed, whose images would be missing without a word."""
    source = image_folder(TWO | {"cat/secret": 3})
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"secret: cannot be read \(Permission denied\)"):
        take(source)


def test_snapshot_of_a_snapshot(image_folder: Any, take: Any) -> None:
    """Guards users who point the command at its own output."""
    with pytest.raises(UsageError, match="is a snapshot already"):
        take(take(image_folder(TWO)).output, "out2")


# --- Hugging Face imagefolder


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_labels(tmp_path: Path, picture: Any, take: Any, kind: str) -> None:
    """Guards both metadata files of the Hugging Face layout."""
    rows = rows_of(take(hf_folder(tmp_path, picture, kind=kind)))
    assert rows.groupby("class").size().to_dict() == {"cat": 15, "dog": 15}


def test_metadata_in_split_folders(tmp_path: Path, picture: Any, take: Any) -> None:
    """Guards the layout with a metadata file in each split folder."""
    for number, split in enumerate(("train", "validation", "test")):
        (tmp_path / "hf" / split).mkdir(parents=True)
        rows = []
        for index in range(4):
            Image.fromarray(picture(10 * number + index)).save(tmp_path / "hf" / split / f"{index}.png")
            rows.append({"file_name": f"{index}.png", "label": index % 2})
        write_metadata(tmp_path / "hf" / split, rows, "jsonl")
    assert rows_of(take(tmp_path / "hf")).groupby(["split", "class"]).size().unique().tolist() == [2]


def test_split_column(tmp_path: Path, picture: Any, take: Any) -> None:
    """Guards --split-column: the column decides, row by row."""
    wanted = ["train", "train", "val", "test"]
    root = hf_folder(tmp_path, picture, fold=lambda number: wanted[number // 2 % 4])
    rows = rows_of(take(root, columns=("fold", None)))
    by_stem = rows.set_index(rows["key"].str.split("-").str[0].astype(int))["split"]
    assert by_stem.to_dict() == {number: wanted[number // 2 % 4] for number in range(30)}


def test_group_column(tmp_path: Path, picture: Any, take: Any) -> None:
    """Guards --group-column: images of one patient never fall to two splits."""
    root = hf_folder(tmp_path, picture, count=60, patient=lambda number: f"p{number // 4}")
    rows = rows_of(take(root, columns=(None, "patient"), val_fraction=0.3, test_fraction=0.3))
    patients = rows["key"].str.split("-").str[0].astype(int) // 4
    assert rows.groupby(patients)["split"].nunique().unique().tolist() == [1]
    assert set(rows["split"]) == {"train", "val", "test"}


def test_files_not_listed_are_counted(tmp_path: Path, picture: Any, take: Any) -> None:
    """Guards against silence about images that the metadata leaves out."""
    root = hf_folder(tmp_path, picture)
    Image.fromarray(picture(99)).save(root / "images" / "extra.png")
    assert Snapshot.open(take(root).output).index.provenance["ignored_files"] == "1"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"file_name": "../outside.png"}, DataError, r"metadata.jsonl line 31: file_name '../outside.png' is not a path inside"),
        ({"file_name": "/etc/passwd"}, DataError, "not a path inside"),
        ({"file_name": 3}, DataError, "not a path inside"),
        ({"file_name": "images/gone.png"}, DataError, r"images/gone.png \(not found, though metadata.jsonl line 31 lists it\)"),
        ({"file_name": "images/0.png"}, DataError, "listed more than once"),
        ({"label": ""}, DataError, "line 31: label is ''"),
        ({"label": None}, DataError, "line 31: label is None"),
        ({"label": "../x"}, DataError, "class name '../x'"),
    ],
)
def test_bad_metadata_rows(tmp_path: Path, picture: Any, take: Any, change: dict[str, Any], error: type[GdaError], message: str) -> None:
    """Guards each way a row can be unusable; the message says which line."""
    root = hf_folder(tmp_path, picture, kind="jsonl")
    Image.fromarray(picture(98)).save(root / "images" / "98.png")
    with open(root / "metadata.jsonl", "a") as file:
        file.write(json.dumps({"file_name": "images/98.png", "label": "cat"} | change) + "\n")
    with pytest.raises(error, match=message):
        take(root)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("metadata.csv", "file_name,text\n0.png,hello\n", UsageError, "no column 'label'; it has file_name, text"),
        ("metadata.csv", "file_name,label\n0.png\n", DataError, "line 2: not as many fields"),
        ("metadata.csv", "file_name,label\n0.png,\xff\n", DataError, "not a UTF-8 CSV"),
        ("metadata.jsonl", '{"file_name": "0.png", "label": "a"}\n[1]\n', DataError, "line 2: not a JSON object"),
        ("metadata.jsonl", "{\n", DataError, "line 1: not a JSON object"),
    ],
)
def test_bad_metadata_files(tmp_path: Path, take: Any, name: str, content: str, error: type[GdaError], message: str) -> None:
    """Guards against metadata that cannot be read, or lacks a column."""
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(error, match=message):
        take(tmp_path / "hf")


def test_columns_need_metadata(image_folder: Any, take: Any) -> None:
    """Guards against columns that would be ignored."""
    with pytest.raises(UsageError, match=r"column 'patient'.*has no metadata\.csv or metadata\.jsonl"):
        take(image_folder(TWO), columns=(None, "patient"))


# --- WebDataset


@pytest.mark.parametrize("pattern", ["part-{000..001}.tar", "part-*.tar", "part-{000,001}.tar"])
def test_tar_patterns(tmp_path: Path, picture: Any, take: Any, pattern: str) -> None:
    """Guards braces and globs: every shard is read, labels are numbers."""
    rows = rows_of(take(webdataset(tmp_path, picture) / pattern))
    assert rows.groupby("class").size().to_dict() == {"0": 15, "1": 15}


def test_class_names_next_to_tars(tmp_path: Path, picture: Any, take: Any) -> None:
    """Guards `classnames.txt`, which gives numbers their names, and labels it has no line for."""
    root = webdataset(tmp_path, picture)
    (root / "classnames.txt").write_text("cat\ndog\n")
    assert set(rows_of(take(root / "*.tar"))["class"]) == {"cat", "dog"}
    (root / "classnames.txt").write_text("cat\n")
    with pytest.raises(DataError, match="label 1 has no line"):
        take(root / "*.tar", "out2")
    (root / "classnames.txt").write_bytes("caf\u00e9\ndog\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"classnames\.txt: not text in UTF-8"):
        take(root / "*.tar", "out3")


def test_a_label_of_thousands_of_digits(tmp_path: Path, picture: Any, take: Any) -> None:
    """Guards the numbers that `classnames.txt` names against one that Python does not convert: it is a name, which no folder can have."""
    root = webdataset(tmp_path, picture)
    (root / "classnames.txt").write_text("cat\ndog\n")
    write_tar(root / "part-001.tar", [("a.png", encode_png(picture(1))), ("a.cls", b"9" * 5000)])
    with pytest.raises(DataError, match="9999"):
        take(root / "*.tar")


def test_tar_columns_come_from_json(tmp_path: Path, picture: Any, take: Any) -> None:
    """Guards split and group columns of tars."""
    root = webdataset(tmp_path, picture, extra={"fold": lambda number: ["train", "val", "test"][number % 3]})
    assert rows_of(take(root / "*.tar", columns=("fold", None))).groupby("split").size().to_dict() == {"train": 10, "val": 10, "test": 10}
    with pytest.raises(DataError, match="does not hold nothing"):
        take(root / "*.tar", "out2", columns=("nothing", None))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"x")], r"part-000/a \(an image without a \.cls, in png"),
        ([("a.cls", b"1")], "not one image but 0, in cls"),
        ([("a.png", b"x"), ("a.jpg", b"x"), ("a.cls", b"1")], "not one image but 2, in cls, jpg, png"),
        ([("a.png", encode_png(np.zeros((2, 2, 3), np.uint8))), ("a.cls", b"")], ".cls is empty"),
        ([("../a.png", b"x"), ("../a.cls", b"1")], "leaves the archive"),
    ],
)
def test_bad_tar_records(tmp_path: Path, take: Any, members: list[tuple[str, bytes]], message: str) -> None:
    """Guards against records that are incomplete, ambiguous or unsafe."""
    write_tar(tmp_path / "part-000.tar", members)
    with pytest.raises(DataError, match=message):
        take(tmp_path / "part-000.tar")


def test_missing_and_truncated_tars(tmp_path: Path, picture: Any, take: Any) -> None:
    """Guards against shards that braces name but that are not there, globs without a match, and shards cut short."""
    root = webdataset(tmp_path, picture)
    with pytest.raises(DataError, match=r"part-002\.tar: not found"):
        take(root / "part-{000..002}.tar")
    with pytest.raises(UsageError, match="matches no file"):
        take(root / "nothing-*.tar")
    data = (root / "part-001.tar").read_bytes()
    (root / "part-001.tar").write_bytes(data[: len(data) // 2 // 512 * 512])
    with pytest.raises(DataError, match=r"part-001\.tar.*truncated"):
        take(root / "*.tar")


# --- .npz


def write_npz(path: Path, picture: Any, count: int = 30, **replaced: Any) -> Path:
    arrays = {"arr_0": np.stack([picture(number) for number in range(count)]), "arr_1": np.arange(count) % 3} | replaced
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def test_npz(tmp_path: Path, picture: Any, take: Any) -> None:
    """Guards the interchange format of ADM and DiT."""
    rows = rows_of(take(write_npz(tmp_path / "a.npz", picture)))
    assert rows.groupby("class").size().to_dict() == {"0": 10, "1": 10, "2": 10}


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"arr_1": None}, "array 'arr_1' is missing, their labels, which training .* requires; it has arr_0"),
        ({"arr_0": np.zeros((3, 4, 4), np.uint8)}, "arr_0 is uint8"),
        ({"arr_0": np.zeros((30, 4, 4, 3), np.float32)}, "arr_0 is float32"),
        ({"arr_1": np.arange(29)}, r"arr_1 is int64 \[29\]; accepted: 30 whole numbers"),
        ({"arr_1": np.arange(30) / 2}, "arr_1 is float64"),
        ({"arr_1": np.arange(30) - 1}, "whole numbers from 0"),
        ({"arr_1": np.array([{"evil": 1}] * 30, dtype=object)}, "not an .npz of plain arrays"),
    ],
)
def test_bad_npz(tmp_path: Path, picture: Any, take: Any, replaced: dict[str, Any], message: str) -> None:
    """Guards against arrays of another shape or type, and against pickles, which are never loaded."""
    with pytest.raises(DataError, match=message):
        take(write_npz(tmp_path / "a.npz", picture, **replaced))


def test_npz_that_is_none(tmp_path: Path, take: Any) -> None:
    """Guards against files that only are named so, or are not there."""
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(DataError, match=r"not an \.npz"):
        take(tmp_path / "a.npz")
    with pytest.raises(UsageError, match="no such file"):
        take(tmp_path / "b.npz")


@pytest.mark.parametrize("source", ["demo://cifar", "s3://bucket/images", "hf://x/y"])
def test_unknown_schemes(take: Any, source: str) -> None:
    """Guards against sources that are not supported: the message says which are."""
    with pytest.raises(UsageError, match=r"accepted: .*demo://mnist"):
        take(source)
