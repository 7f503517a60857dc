"""Robustness sets: which label each folder and list gives, what is refused by name, and that images are those a snapshot would hold."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gda.config.load import parse_config
from gda.data.ingest.held_out_sets import load_held_out, open_held_out, read_class_map
from gda.data.store.in_memory import load_images
from gda.data.store.snapshot import Snapshot
from gda.errors import ConfigError, DataError
from gda.stages import snapshot

CLASSES = ("bee", "cat", "dog", "emu")


def write_images(root: Path, counts: Mapping[str, int]) -> Path:
    """`counts` images in each folder, no two alike."""
    rng = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (20, 28, 3), dtype=np.uint8)).save(root / folder / f"{i}.png")
    return root


def labels_of(root: Path, **rest: object) -> tuple[tuple[int, ...], ...]:
    return open_held_out("x", root, CLASSES, **rest).labels  # type: ignore[arg-type]


def test_folders_of_our_names(tmp_path: Path) -> None:
    """Protects the labels: each folder's images get the class of its name, and classes that the set lacks shift nothing."""
    write_images(tmp_path, {"dog": 2, "bee": 1})
    (tmp_path / "README.txt").write_text("as in the published archives")
    found = open_held_out("x", tmp_path, CLASSES)
    assert [(path.parent.name, labels) for path, labels in zip(found.files, found.labels)] == [("bee", (0,)), ("dog", (2,)), ("dog", (2,))]
    assert (found.classes, found.left_out) == ((0, 2), 0)


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_a_class_map_names_wordnet_ids(kind: str, tmp_path: Path) -> None:
    """Protects ImageNet-R, -A and -Sketch: ids are read from the map, two may be one class, and null leaves images out and counts them."""
    root = write_images(tmp_path / "set", {"n02084071": 2, "n02085620": 1, "n99999999": 3, "emu": 1})
    path = tmp_path / f"map.{kind}"
    if kind == "csv":
        path.write_text("folder,class\nn02084071,dog\nn02085620,dog\nn99999999,\nn00000001,bee\n")
    else:
        path.write_text(json.dumps({"n02084071": "dog", "n02085620": "dog", "n99999999": None, "n00000001": "bee"}))
    found = open_held_out("r", root, CLASSES, class_map=read_class_map(path))
    assert sorted(zip([file.parent.name for file in found.files], found.labels)) == [
        ("emu", (3,)),
        ("n02084071", (2,)),
        ("n02084071", (2,)),
        ("n02085620", (2,)),
    ]
    assert found.left_out == 3


def test_the_map_comes_before_our_names(tmp_path: Path) -> None:
    """Protects sets whose numbers mean other classes than ours: what the map says of a folder holds."""
    write_images(tmp_path, {"bee": 1})
    assert labels_of(tmp_path, class_map={"bee": "emu"}) == ((3,),)


def test_positions_are_taken_for_imagenet_alone(tmp_path: Path) -> None:
    """Protects ImageNet-V2: folders 0 to 999 are positions among 1,000 sorted WordNet ids, and never among any other classes."""
    ids = [f"n{number:08d}" for number in range(5, 3005, 3)]
    write_images(tmp_path, {"0": 1, "10": 1, "999": 1})
    assert len(ids) == 1000
    assert open_held_out("v2", tmp_path, ids).labels == ((0,), (10,), (999,))
    for other in (ids[:999], [*ids[:999], "tench"], [*ids[1:], ids[0]]):
        with pytest.raises(DataError, match=r"evaluate\.sets\.v2: .*'0' is none of the classes .* evaluate\.class_map is not set"):
            open_held_out("v2", tmp_path, other)


def test_several_labels_per_image(tmp_path: Path) -> None:
    """Protects ReaL: entries go by file name wherever the files lie, any label is right, and images without one are left out."""
    for folder, name in (("b", "val_1"), ("a", "val_2"), ("b", "val_3"), ("a", "val_4")):
        (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "set" / folder / f"{name}.png")
    labels = tmp_path / "real.json"
    labels.write_text(json.dumps([[2, "bee"], [], ["odd"], [3, "odd"]]))
    found = open_held_out("real", tmp_path / "set", CLASSES, labels=labels, class_map={"2": "dog", "3": "emu", "odd": None})
    assert [path.stem for path in found.files] == ["val_1", "val_4"]
    assert (found.labels, found.left_out, found.classes) == (((0, 2), (3,)), 2, (0, 2, 3))
    assert found.correct(np.array([2, 2], dtype=np.int32)).tolist() == [True, False]
    assert found.correct(np.array([0, 3], dtype=np.int32)).tolist() == [True, True]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('[["bee"]]', "has labels of 1 images, and the folder holds 2"),
        ('[["bee"], ["cat"], ["dog"]]', "has labels of 3 images, and the folder holds 2"),
        ('[["bee"], "cat"]', 'entry 1 is "cat"; expected a list of numbers or names'),
        ('[["bee"], [true]]', r"entry 1 is \[true\]"),
        ('{"0": ["bee"]}', "expected a JSON list"),
        ('[["bee"], ["cat"', "not valid JSON"),
        ('[["bee"], [7]]', "'7' is none of the classes"),
        ("[[], []]", "holds no image of our classes"),
    ],
)
def test_lists_that_do_not_fit(content: str, reason: str, tmp_path: Path) -> None:
    """Protects from labels shifted by an image: a list that is not exactly of these images is refused, with what is wrong."""
    root = write_images(tmp_path / "set", {"": 2})
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(DataError, match=rf"evaluate\.sets\.x: .*{reason}"):
        labels_of(root, labels=tmp_path / "real.json")


def test_unknown_folders_are_named(tmp_path: Path) -> None:
    """Protects from accuracies over other classes: a folder that is none of ours stops everything, with the map that would help."""
    write_images(tmp_path, {"cat": 1, "gnu": 1})
    with pytest.raises(DataError, match=r"'gnu' is none of the classes \(bee, cat, dog, emu\) and evaluate\.class_map is not set; map it"):
        labels_of(tmp_path)
    with pytest.raises(DataError, match=r"'gnu' is none of the classes .* and evaluate\.class_map does not name it"):
        labels_of(tmp_path, class_map={"n1": "cat"})
    with pytest.raises(DataError, match=r"evaluate\.class_map: 'gnu' is mapped to 'cow', which is none of the classes"):
        labels_of(tmp_path, class_map={"gnu": "cow"})


def test_folders_that_are_no_set(tmp_path: Path) -> None:
    """Protects from half a set: missing folders, loose images, empty classes and split folders are refused by name."""
    with pytest.raises(DataError, match=r"evaluate\.sets\.x: .*absent: no such folder"):
        labels_of(tmp_path / "absent")
    loose = write_images(tmp_path / "loose", {"cat": 1, "": 1})
    with pytest.raises(DataError, match=r"0\.png: not in a class folder"):
        labels_of(loose)
    empty = write_images(tmp_path / "empty", {"cat": 1, "dog": 0})
    with pytest.raises(DataError, match="class 'dog' has no images"):
        labels_of(empty)
    splits = write_images(tmp_path / "splits", {"train/cat": 1, "val/cat": 1})
    with pytest.raises(DataError, match="has a folder for each split"):
        labels_of(splits)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("m.csv", "n1,dog\n", "header folder,class"),
        ("m.csv", "folder,class\nn1\n", "two fields on each line"),
        ("m.csv", "folder,class\nn1,dog\nn1,cat\n", "names 'n1' twice"),
        ("m.json", '{"n1": "dog", "n1": "cat"}', "names 'n1' twice"),
        ("m.json", '{"n1": 3}', "'n1' is mapped to 3"),
        ("m.json", '[["n1", "dog"]]', "expected a JSON object"),
        ("m.json", '{"n1": ', "not valid JSON"),
    ],
)
def test_class_maps_that_cannot_be_meant(name: str, content: str, reason: str, tmp_path: Path) -> None:
    """Protects from a map that says something else than its author thinks."""
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"evaluate\.class_map: .*{reason}"):
        read_class_map(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        read_class_map(tmp_path / f"absent-{name}")


def test_the_digest_is_of_content_and_labels(tmp_path: Path) -> None:
    """Protects fingerprints: another pixel or label is another set, another place on disk is not."""
    first = write_images(tmp_path / "one", {"cat": 2, "dog": 1})
    second = write_images(tmp_path / "two", {"cat": 2, "dog": 1})
    digest = open_held_out("x", first, CLASSES).digest
    assert open_held_out("x", second, CLASSES).digest == digest
    assert open_held_out("x", first, CLASSES, class_map={"dog": "emu"}).digest != digest
    with Image.open(second / "dog" / "0.png") as image:
        image.putpixel((0, 0), (1, 2, 3))
        image.save(second / "dog" / "0.png")
    assert open_held_out("x", second, CLASSES).digest != digest


def test_images_are_those_of_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects a fair comparison: a set's images equal, bit for bit, what training and test images of the same files would be."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    counts = {"train": 3, "val": 1, "test": 1}
    root = write_images(tmp_path / "set", {f"{split}/{name}": count for split, count in counts.items() for name in CLASSES})
    Image.linear_gradient("L").rotate(30).save(root / "train" / "cat" / "0.png")
    config = parse_config({"snapshot": {"image_size": 18}}, where="test")
    snapshot.run(config, source=str(root), out=tmp_path / "real")
    expected = load_images(Snapshot.open(tmp_path / "real"), "train", size=12)
    found = open_held_out("x", root / "train", CLASSES)
    images = load_held_out(found.files, sides=(18, 12))
    assert images.shape == (12, 3, 12, 12)
    assert {image.tobytes() for image in images} == {image.tobytes() for image in expected.images.numpy()}
    assert not np.array_equal(load_held_out(found.files, sides=(12,)), images), "the snapshot's own size leaves its trace"


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    """Protects counts: a broken image is an error, never one image fewer."""
    root = write_images(tmp_path, {"cat": 2})
    path = root / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"cat/1\.png: "):
        load_held_out(open_held_out("x", root, CLASSES).files, sides=(8,))


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({"sets": {"r": "x"}, "restrict": ["a"]}, "restrict names 'a', which is none of evaluate.sets"),
        ({"set_labels": {"real": "x.json"}}, "set_labels names 'real', which is none of evaluate.sets"),
        ({"sets": {"../r": "x"}}, "should match pattern"),
        ({"sets": {"r": ""}}, "evaluate.sets.r: "),
    ],
)
def test_settings_that_name_no_set(section: Mapping[str, object], reason: str) -> None:
    """Protects from a misspelt set that would be measured otherwise than was meant."""
    with pytest.raises(ConfigError, match=reason):
        parse_config({"evaluate": dict(section)}, where="test")
