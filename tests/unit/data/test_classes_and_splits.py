"""Class names that work everywhere, and splits that never move."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gda.config.sections import SnapshotConfig
from gda.data.sources.splits import hash_fraction, make_splitter, parse_split
from gda.data.store.classes import make_classes
from gda.errors import ConfigError, DataError


def test_names_and_prompts() -> None:
    """Guards label order and the words that prompts use."""
    classes = make_classes(["zebra", "hot_dog", "Äpfel", "ice--cream_"])
    assert [(info.name, info.prompt_name) for info in classes] == [
        ("hot_dog", "hot dog"),
        ("ice--cream_", "ice cream"),
        ("zebra", "zebra"),
        ("Äpfel", "Äpfel"),
    ]


def test_numbers_sort_as_numbers() -> None:
    """Guards label = number for sources that name classes by number."""
    assert [info.name for info in make_classes(map(str, range(12)))] == [str(number) for number in range(12)]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "  ",
        ".",
        "..",
        "../up",
        "a/b",
        "a\\b",
        "con",
        "NUL",
        "com1.x",
        "tab\there",
        "new\nline",
        "nul\0",
        "dot.",
        " lead",
        "_",
        "q?",
        "x" * 101,
        "\ud800",
    ],
)
def test_unusable_names(name: str) -> None:
    """Guards exports and other systems against names that are paths, reserved, empty or invisible."""
    with pytest.raises(DataError, match="class name"):
        make_classes(["fine", name])


@pytest.mark.parametrize(
    "twins",
    [("Cat", "cat"), (unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")), ("Straße", "STRASSE")],
)
def test_twins(twins: tuple[str, str]) -> None:
    """Guards against two names that one file system would make one folder of."""
    with pytest.raises(DataError, match="differ only in"):
        make_classes(twins)


def test_prompt_twins() -> None:
    """Guards the generator: two classes with one prompt could not be distinguished."""
    with pytest.raises(DataError, match="give the same prompt"):
        make_classes(["hot_dog", "hot-dog"])


def test_nfd_becomes_nfc() -> None:
    """Guards one stable name whichever system the folder came from."""
    assert make_classes([unicodedata.normalize("NFD", "é")])[0].name == unicodedata.normalize("NFC", "é")


def test_no_classes() -> None:
    """Guards against an empty source."""
    with pytest.raises(DataError, match="no classes"):
        make_classes([])


@settings(max_examples=40, deadline=None)
@given(st.sets(st.text(min_size=1, max_size=8), min_size=2), st.sets(st.text(min_size=1, max_size=8)))
def test_more_images_move_no_old_one(first: set[str], more: set[str]) -> None:
    """Guards comparisons over time: the split of an image depends on nothing but itself."""
    splitter = make_splitter(SnapshotConfig(), [None])
    before = {identity: splitter.assign(None, identity) for identity in first}
    after = {identity: splitter.assign(None, identity) for identity in first | more}
    assert before == {identity: after[identity] for identity in first}


def test_shares_match_the_configured_fractions() -> None:
    """Guards the fractions, and that the hash is spread evenly."""
    splitter = make_splitter(SnapshotConfig(val_fraction=0.2, test_fraction=0.3), [None])
    splits, counts = np.unique([splitter.assign(None, str(number)) for number in range(20_000)], return_counts=True)
    assert dict(zip(splits, counts / 20_000, strict=True)) == pytest.approx({"train": 0.5, "val": 0.2, "test": 0.3}, abs=0.012)


def test_hash_is_fixed_and_keyed() -> None:
    """Guards every user's splits against a change of the hash, and that another key gives another division."""
    assert hash_fraction("gda", "pixels:x") == pytest.approx(0.596323224868847, abs=1e-15)
    assert hash_fraction("other", "pixels:x") != hash_fraction("gda", "pixels:x")


def test_larger_test_share_only_adds() -> None:
    """Guards the test set when its share grows: what was tested on stays there."""
    small = make_splitter(SnapshotConfig(test_fraction=0.2), [None])
    large = make_splitter(SnapshotConfig(test_fraction=0.4), [None])
    for number in range(500):
        if small.assign(None, str(number)) == "test":
            assert large.assign(None, str(number)) == "test"


@pytest.mark.parametrize(("given_splits", "missing"), [(["train", "val"], "test"), (["train", "test"], "val")])
def test_missing_split_is_carved_out_of_train(given_splits: list[str], missing: str) -> None:
    """Guards users' own splits: they stay, and only train gives up images for the one that is missing."""
    splitter = make_splitter(SnapshotConfig(), given_splits)
    own = given_splits[1]
    assert {splitter.assign(own, str(number)) for number in range(100)} == {own}
    assert {splitter.assign("train", str(number)) for number in range(100)} == {"train", missing}


def test_full_splits_are_kept() -> None:
    """Guards users' own splits where all three are given."""
    splitter = make_splitter(SnapshotConfig(), ["train", "val", "test"])
    assert {splitter.assign("train", str(number)) for number in range(100)} == {"train"}


def test_half_named_splits_and_no_train() -> None:
    """Guards against guessing: splits for some images only, or nothing to train on, are errors."""
    with pytest.raises(DataError, match="some images name a split"):
        make_splitter(SnapshotConfig(), ["train", None])
    with pytest.raises(DataError, match="but no train"):
        make_splitter(SnapshotConfig(), ["test", "val"])


def test_fractions_must_leave_something() -> None:
    """Guards against fractions that leave nothing to train on."""
    with pytest.raises(ConfigError, match=r"val_fraction \+ snapshot.test_fraction: 0.5 \+ 0.5"):
        make_splitter(SnapshotConfig(val_fraction=0.5, test_fraction=0.5), [None])


def test_split_names() -> None:
    """Guards the names people use for splits, and that others are refused where they stand."""
    assert [parse_split(name, "x") for name in ("Train", "validation", " valid ", "TEST")] == ["train", "val", "val", "test"]
    with pytest.raises(DataError, match="row 3: split 'fold 2'"):
        parse_split("fold 2", "row 3")
