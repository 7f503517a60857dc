"""ImageNet as distributed is read with the labels of its files, and refused where it is ambiguous."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from gda.cli.main import main
from gda.data.imagenet import devkit
from gda.data.imagenet.matlab import read_struct
from gda.data.sources.folders import read_folder
from gda.data.sources.source import Columns, ImageSource
from gda.data.store.snapshot import Snapshot
from gda.errors import DataError

TENCH, GOLDFISH, BIRD, MACHINE = WORDNET_IDS = ("n01440764", "n01443537", "n02012849", "n03126707")
DEVKIT = {1: BIRD, 2: TENCH, 3: MACHINE, 4: GOLDFISH, 1001: "n00001740"}  # in no order of the ids, as the devkit's; the last is no leaf
VAL = (GOLDFISH, TENCH, MACHINE, BIRD, TENCH)  # of the validation images in order
NAMES = [f"ILSVRC2012_val_{number:08d}" for number in range(1, len(VAL) + 1)]

GROUND_TRUTH = "".join(f"{next(number for number, name in DEVKIT.items() if name == label)}\n" for label in VAL)
BOXES = "ImageId,PredictionString\n" + "".join(f"{name},{label} 1 2 3 4 {label} 5 6 7 8 \n" for name, label in zip(NAMES, VAL, strict=True))
CAFFE = "".join(f"{name}.JPEG {WORDNET_IDS.index(label)}\n" for name, label in zip(NAMES, VAL, strict=True))
MAP = "".join(f"{name}.JPEG {label}\n" for name, label in zip(NAMES, VAL, strict=True))
IN_ORDER = "".join(f"{label}\n" for label in VAL)
COUNTED = "".join(f"{name} {number}\n" for number, name in enumerate(NAMES, start=1))  # ImageSets/CLS-LOC/val.txt: no labels
SYNSETS = "".join(f"{name} some words, others\n" for name in WORDNET_IDS)

TRUTH_FILE, BOXES_FILE = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", "LOC_val_solution.csv"
META = "ILSVRC2012_devkit_t12/data/meta.mat"
ORDER_FILE = "imagenet_2012_validation_synset_labels.txt"

Files = Mapping[str, str | Mapping[int, str]]


def write_meta(path: Path, ids: Mapping[int, str]) -> None:
    rows = [(number, name, "some words", int(number > 1000)) for number, name in ids.items()]
    fields = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "num_children")]
    savemat(path, {"synsets": np.array(rows, dtype=fields).reshape(-1, 1)}, do_compression=True)


@pytest.fixture
def imagenet(tmp_path: Path) -> Callable[..., Path]:
    """imagenet({"val.txt": text}) -> two images per class in train, five in a flat val, all of different colours, and the files."""

    def make(files: Files, *, train: Sequence[str] = WORDNET_IDS, val: Sequence[str] = NAMES, test: int = 0, inside: str = ".") -> Path:
        root = tmp_path / "imagenet"
        places = [f"train/{name}/{name}_{number}" for name in train for number in range(2)]
        places += [f"val/{name}" for name in val] + [f"test/ILSVRC2012_test_{number:08d}" for number in range(1, test + 1)]
        for shade, place in enumerate(places):
            path = root / inside / f"{place}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (9 * shade, 255 - 9 * shade, 80)).save(path)
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content) if isinstance(content, str) else write_meta(path, content)
        return root

    return make


def read(root: Path) -> ImageSource:
    return read_folder(root, Columns(), progress=False)


def labels_of_val(source: ImageSource) -> list[str]:
    """Labels in the order of the images' names."""
    return [record.class_name for record in sorted(source.records, key=lambda record: record.name) if record.split == "val"]


@pytest.mark.parametrize(
    "files",
    [
        {TRUTH_FILE: GROUND_TRUTH, META: DEVKIT},
        {"ILSVRC2012_validation_ground_truth.txt": GROUND_TRUTH, "meta.mat": DEVKIT},
        {TRUTH_FILE: GROUND_TRUTH, "map_clsloc.txt": "".join(f"{name} {number} words\n" for number, name in DEVKIT.items())},
        {BOXES_FILE: BOXES, "LOC_synset_mapping.txt": SYNSETS},
        {"val.txt": CAFFE, "synsets.txt": "\n".join(WORDNET_IDS)},
        {"val.txt": CAFFE, "synset_words.txt": SYNSETS},
        {"val.txt": CAFFE},
        {"caffe_ilsvrc12/val.txt": CAFFE.replace("ILSVRC", "val/ILSVRC")},
        {"val_map.txt": MAP},
        {"val/map.csv": "filename,wnid\n" + MAP.replace(" ", ",")},
        {ORDER_FILE: IN_ORDER},
        {ORDER_FILE: IN_ORDER, "val.txt": CAFFE, TRUTH_FILE: GROUND_TRUTH, META: DEVKIT, BOXES_FILE: BOXES},
        {ORDER_FILE: IN_ORDER, "ImageSets/CLS-LOC/val.txt": COUNTED},
        {ORDER_FILE: IN_ORDER, "LOC_sample_submission.csv": BOXES.replace(GOLDFISH, TENCH)},
    ],
    ids=lambda files: " ".join(Path(name).name for name in files),
)
def test_forms_of_the_labels(imagenet: Any, files: Files) -> None:
    """Guards each form in which the labels of val are distributed: every image gets its own, in any order of numbers."""
    source = read(imagenet(files))
    assert labels_of_val(source) == list(VAL)
    assert {(record.split, record.class_name) for record in source.records if record.split != "val"} == {("train", n) for n in WORDNET_IDS}
    assert len(source.records) == 13
    assert source.description.startswith("ImageNet, labels from ")


def test_kaggle_nesting(imagenet: Any) -> None:
    """Guards Kaggle's folders: three wrappers, annotations and lists next to them, and a test folder without published labels."""
    more = {"ILSVRC/Annotations/CLS-LOC/val/a.xml": "<a/>", "ILSVRC/ImageSets/CLS-LOC/val.txt": COUNTED}
    submission = "ImageId,PredictionString\n" + "".join(f"ILSVRC2012_test_{number:08d},{TENCH} 1 1 1 1\n" for number in (1, 2, 3))
    files = {BOXES_FILE: BOXES, "LOC_synset_mapping.txt": SYNSETS, "LOC_sample_submission.csv": submission}
    source = read(imagenet(files | more, test=3, inside="ILSVRC/Data/CLS-LOC"))
    assert labels_of_val(source) == list(VAL)
    assert {record.split for record in source.records} == {"train", "val"}
    assert source.left_out == {"no image (.txt, .csv, .xml)": 4, "in a test folder without labels": 3}


def test_a_test_folder_is_never_labelled_by_a_list(imagenet: Any) -> None:
    """Guards ImageNet's test images, whose labels were never published: a file with labels for them is not used."""
    made_up = "".join(f"ILSVRC2012_test_{number:08d} {TENCH}\n" for number in (1, 2))
    source = read(imagenet({ORDER_FILE: IN_ORDER, "test.txt": made_up}, test=2))
    assert source.left_out["in a test folder without labels"] == 2
    assert "test" not in {record.split for record in source.records}


def test_sorted_val_with_flat_test_and_devkit(imagenet: Any) -> None:
    """Guards the usual preparation, val in class folders: read as usual, with the devkit next to it and the flat test left out."""
    root = imagenet({TRUTH_FILE: GROUND_TRUTH, META: DEVKIT}, test=2)
    for name, label in zip(NAMES, VAL, strict=True):
        (root / "val" / label).mkdir(exist_ok=True)
        (root / "val" / f"{name}.JPEG").rename(root / "val" / label / f"{name}.JPEG")
    source = read(root)
    assert {record.name for record in source.records if record.split == "val"} == {
        f"val/{label}/{name}.JPEG" for name, label in zip(NAMES, VAL, strict=True)
    }
    assert source.description == "image folder"
    assert source.left_out["in a test folder without labels"] == 2


def test_tiny_imagenet(tmp_path: Path) -> None:
    """Guards Tiny ImageNet: class folders with one folder in each, val/images with annotations in val, and a test without labels."""
    root = tmp_path / "tiny"
    for place in [f"train/{name}/images/{name}_0" for name in WORDNET_IDS] + ["val/images/val_0", "val/images/val_1", "test/images/test_0"]:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / f"{place}.JPEG")
    (root / "val" / "val_annotations.txt").write_text(f"val_0.JPEG\t{BIRD}\t0\t32\t44\t62\nval_1.JPEG\t{TENCH}\t1\t2\t3\t4\n")
    (root / "wnids.txt").write_text("\n".join(WORDNET_IDS))
    source = read(root)
    assert labels_of_val(source) == [BIRD, TENCH]
    assert source.left_out["in a test folder without labels"] == 1


NUMBERS = "".join(f"{name}.JPEG {number}\n" for name, number in zip(NAMES, (0, 1, 3, 3, 1), strict=True))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"val: holds 5 images and no class folders, and no file .* has their labels; add one \(ILSVRC2012_validation_ground_truth"),
        ({"ImageSets/val.txt": COUNTED}, "and no file .* has their labels"),
        ({TRUTH_FILE: GROUND_TRUTH}, "there is no meta.mat, which maps them to WordNet ids; put it next to the file"),
        ({TRUTH_FILE: GROUND_TRUTH + "1\n", META: DEVKIT}, "has 6 lines, one for each image, and there are 5 images"),
        ({TRUTH_FILE: GROUND_TRUTH.replace("4", "9"), META: DEVKIT}, "truth.txt line 1: class 9, for which meta.mat has no WordNet id"),
        ({TRUTH_FILE: GROUND_TRUTH.replace("4", "x"), META: DEVKIT}, "truth.txt line 1: expected one whole number"),
        ({TRUTH_FILE: GROUND_TRUTH, META: "no such file"}, "meta.mat: not a MATLAB file"),
        ({TRUTH_FILE: GROUND_TRUTH, META: DEVKIT, "map_clsloc.txt": f"{TENCH} 1 x\n"}, "disagree: class 1 is n0.* remove the one"),
        ({TRUTH_FILE: GROUND_TRUTH, "map_clsloc.txt": "tench 1\n"}, "map_clsloc.txt line 1: expected a WordNet id and a number"),
        ({TRUTH_FILE: GROUND_TRUTH, "map_clsloc.txt": f"{TENCH} {'9' * 5000} x\n"}, "map_clsloc.txt line 1: expected a WordNet id and"),
        ({TRUTH_FILE: GROUND_TRUTH, META: {1: "tench"}}, "expected a variable synsets with the fields ILSVRC2012_ID and WNID"),
        ({ORDER_FILE: IN_ORDER[10:]}, "has 4 lines, one for each image, and there are 5 images"),
        ({ORDER_FILE: IN_ORDER.replace(MACHINE, "n09999999")}, "line 3: .*_00000003 is of class n09999999, which has no folder in train"),
        ({ORDER_FILE: IN_ORDER.replace(MACHINE, "crane")}, "line 3: expected one WordNet id"),
        ({BOXES_FILE: BOXES.replace(f"{TENCH} 5", f"{BIRD} 5")}, r"csv line 3: .* is of two classes, n01440764 and n02012849"),
        ({"val.txt": MAP[:-1] + "x"}, "val.txt line 5: expected an image and the WordNet id"),
        ({"val.txt": MAP.split("\n", 1)[1]}, "lists 4 images, and there are 5: ILSVRC2012_val_00000001 is not in it"),
        ({"val.txt": MAP + f"ILSVRC2012_val_00000006.JPEG {TENCH}\n"}, "lists 6 images, and there are 5: .*6 is not there"),
        ({"val.txt": MAP + MAP.split("\n")[0]}, "val.txt line 6: ILSVRC2012_val_00000001 is listed twice"),
        ({"val.txt": CAFFE.replace(" 3\n", " 4\n"), "synsets.txt": SYNSETS}, "line 3: class 4, and synsets.txt lists 4 classes, from 0"),
        ({"val.txt": CAFFE.replace(" 3\n", " many\n")}, "line 3: expected an image and the position of its class"),
        ({"val.txt": NUMBERS}, r"numbers 0 to 3, which do not match the 4 folders of train .* add the synsets.txt"),
        ({"val.txt": CAFFE, "synsets.txt": SYNSETS, "a/synsets.txt": "n01440764\n"}, "list different classes, or in a different order"),
        ({"val.txt": CAFFE, "synsets.txt": SYNSETS + SYNSETS}, "line 5: 'n01440764' is no WordNet id, or is listed twice"),
        ({ORDER_FILE: IN_ORDER, "val.txt": MAP.replace(MACHINE, BIRD)}, "disagree: ILSVRC2012_val_00000003 is of class n03126707 or"),
        ({ORDER_FILE: IN_ORDER, BOXES_FILE: BOXES, "z.txt": MAP.replace(BIRD, TENCH)}, "labels.txt and .*z.txt disagree: .*_00000004"),
        ({"ILSVRC2010_validation_ground_truth.txt": GROUND_TRUTH, META: DEVKIT}, "and no file .* has their labels"),
    ],
)  # fmt: skip
def test_what_is_ambiguous_is_refused(imagenet: Any, files: Files, message: str) -> None:
    """Guards against labels of another set, of another numbering, or ambiguous: refused in one line that states the remedy."""
    with pytest.raises(DataError, match=message) as caught:
        read(imagenet(files))
    assert "\n" not in str(caught.value)


def test_a_gap_among_the_images(imagenet: Any) -> None:
    """Guards files in image order against a missing image, which would shift all labels after it."""
    with pytest.raises(DataError, match=r"goes by images ILSVRC2012_val_00000001 to ILSVRC2012_val_00000005, and there is '.*_00000006'"):
        read(imagenet({ORDER_FILE: IN_ORDER}, val=[*NAMES[:4], "ILSVRC2012_val_00000006"]))


def test_half_sorted_val(imagenet: Any) -> None:
    """Guards against a half-sorted val: neither the sorted nor the other images count as all of val."""
    root = imagenet({ORDER_FILE: IN_ORDER})
    (root / "val" / TENCH).mkdir()
    (root / "val" / f"{NAMES[1]}.JPEG").rename(root / "val" / TENCH / f"{NAMES[1]}.JPEG")
    with pytest.raises(DataError, match="4 images lie next to 1 class folders such as 'n01440764': sort the others too"):
        read(root)


def test_other_folders_are_read_as_before(imagenet: Any) -> None:
    """Guards flat split folders where classes are not WordNet ids: a file that happens to name images gives no labels."""
    with pytest.raises(DataError, match="a split folder without class folders in it"):
        read(imagenet({"val.txt": MAP}, train=("tench", "goldfish")))


def test_meta_that_would_grow_beyond_reason(imagenet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a meta.mat that unpacks to more bytes than accepted: refused before it is read."""
    monkeypatch.setattr(devkit, "_MOST_BYTES", 4096)
    wide = dict(enumerate(WORDNET_IDS * 20))
    with pytest.raises(DataError, match=r"meta.mat: not a MATLAB file of version 5 \(more than 4096 bytes unpacked\)"):
        read(imagenet({TRUTH_FILE: GROUND_TRUTH, META: wide}))


def test_damaged_meta(imagenet: Any) -> None:
    """Guards against a damaged meta.mat, on some of which scipy ends the process: every cut and changed byte is read or refused."""
    root = imagenet({TRUTH_FILE: GROUND_TRUTH, META: DEVKIT})
    whole = (root / META).read_bytes()
    for place in range(0, len(whole), 3):
        for data in (whole[:place], whole[:place] + b"\xff" + whole[place + 1 :]):
            (root / META).write_bytes(data)
            with suppress(DataError):
                assert labels_of_val(read(root)) == list(VAL)


def test_meta_as_it_is_stored(tmp_path: Path) -> None:
    """Guards the reader of meta.mat: packed or not, whole numbers, floats and texts; other fields and variables are skipped."""
    fields = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "gloss", "children")]
    synsets = np.array([(1, BIRD, "née", np.arange(3)), (2.0, TENCH, "", 7.5)], dtype=fields).reshape(-1, 1)
    for packed in (True, False):
        savemat(tmp_path / "meta.mat", {"other": np.arange(4), "synsets": synsets}, do_compression=packed)
        entries = read_struct((tmp_path / "meta.mat").read_bytes(), "synsets", limit=1 << 20)
        assert entries is not None
        assert [(entry["ILSVRC2012_ID"], entry["WNID"], entry["gloss"]) for entry in entries] == [
            (1, BIRD, "née"),
            (2.0, TENCH, entries[1]["gloss"]),
        ]
        assert [entry["children"] for entry in entries] == [None, 7.5]
        assert read_struct((tmp_path / "meta.mat").read_bytes(), "nothing", limit=1 << 20) is None


def test_lines_that_hide_the_first_image(imagenet: Any) -> None:
    """Guards blank lines, carriage returns and headers before the first image of a list."""
    assert labels_of_val(read(imagenet({"val.txt": "image label\r\n" + MAP.replace("\n", "\r\n")}))) == list(VAL)
    for text in ("\n\n" + MAP, f"\n{NAMES[0]},{TENCH}"):
        root = imagenet({"val.txt": text})
        with suppress(DataError):
            assert labels_of_val(read(root)) == list(VAL)


def test_the_command(imagenet: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the command: labels, splits and what was left out in the closing line; without labels exit code 3 and one line."""
    root, out = imagenet({}, test=2, inside="data"), str(tmp_path / "out")
    common = ["snapshot", str(root), "--out", out, "--set", "snapshot.test_fraction=0.4"]
    assert main(common) == 3
    assert "has their labels; add one (ILSVRC2012_validation_ground_truth.txt" in capsys.readouterr().err
    (root / ORDER_FILE).write_text(IN_ORDER)
    assert main(common) == 0
    closing = capsys.readouterr().out
    assert "13 images of 4 classes" in closing
    assert "val 5, test " in closing
    assert "; files not taken: 2 in a test folder without labels)" in closing
    assert "WordNet's words for their ids, such as 'tench' for n01440764" in closing
    index = Snapshot.open(Path(out)).index
    assert index.counts["val"] == {TENCH: 2, GOLDFISH: 1, BIRD: 1, MACHINE: 1}
    assert index.provenance["source"] == f"ImageNet, labels from {ORDER_FILE}"
