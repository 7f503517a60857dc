"""Pictures that two real splits share in different bytes: listed, reported as a warning, or refused if so configured."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pictures import CHANGES, patches
from PIL import Image

from gda.data.store.snapshot import Snapshot
from gda.data.store.verify import verify_snapshot
from gda.errors import DataError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with its own splits, twelve pictures each."""
    images = patches(64).permute(0, 2, 3, 1).numpy()
    root = tmp_path / "source"
    for number, (split, name) in enumerate((s, c) for s in ("train", "val", "test") for c in ("a", "b")):
        (root / split / name).mkdir(parents=True)
        for index in range(6):
            Image.fromarray(images[6 * number + index]).save(root / split / name / f"{index}.png")
    return root


def plant(source: Path, taken: str, put: str, change: str) -> None:
    """Put a picture of one split, changed, into another."""
    CHANGES[change](Image.open(source / taken).convert("RGB")).save(source / put)


def test_clean_splits_say_so(source: Path, take: Any) -> None:
    """No false alarm on different pictures, and no list of nothing."""
    outcome = take(source, on_leak="reject")
    assert "two splits" not in outcome.summary
    assert Snapshot.open(outcome.output).index.provenance["near_leaks"] == "none"
    assert not (outcome.output / "leaks.csv").exists()


def test_disguised_pictures_in_two_splits_are_listed(source: Path, take: Any) -> None:
    """A re-encoded train picture in test, a mirrored one in val and a brighter val picture in test: all in the list, each with its pair."""
    plant(source, "train/a/0.png", "test/b/jpeg.png", "jpeg 60")
    plant(source, "train/b/3.png", "val/a/mirrored.png", "mirrored")
    plant(source, "val/b/1.png", "test/a/light.png", "darker 0.7")
    Image.open(source / "train/a/5.png").resize((48, 48), Image.Resampling.LANCZOS).save(source / "test/a/small.png")
    outcome = take(source)
    assert "4 pictures are in two splits but for encoding, size, mirroring or light: " in outcome.summary
    assert "leaks.csv lists them" in outcome.summary
    table = pd.read_csv(outcome.output / "leaks.csv")
    assert table[["split", "name", "other_split", "other_name"]].to_numpy().tolist() == [
        ["test", "test/a/light.png", "val", "val/b/1.png"],
        ["test", "test/a/small.png", "train", "train/a/5.png"],
        ["test", "test/b/jpeg.png", "train", "train/a/0.png"],
        ["val", "val/a/mirrored.png", "train", "train/b/3.png"],
    ]
    assert table["distance"].between(0, 0.08).all()
    assert verify_snapshot(outcome.output) == []


def test_they_can_be_refused(source: Path, take: Any, tmp_path: Path) -> None:
    """With on_leak: reject nothing is written, and the error names pairs and setting."""
    plant(source, "train/a/0.png", "test/b/jpeg.png", "jpeg 60")
    with pytest.raises(DataError, match=r"test/b/jpeg\.png \(test\) ~ train/a/0\.png \(train\); .* set snapshot\.on_leak to warn"):
        take(source, on_leak="reject")
    assert not (tmp_path / "out").exists()


def test_inside_one_split_they_are_no_leak(source: Path, take: Any) -> None:
    """Near duplicates within train are the user's own affair."""
    plant(source, "train/a/0.png", "train/b/again.png", "mirrored")
    assert not (take(source).output / "leaks.csv").exists()


def test_an_imported_synthetic_set_has_no_splits_to_leak_between(source: Path, take: Any) -> None:
    """Its provenance must not claim that something was looked for."""
    flat = source / "train"
    assert "near_leaks" not in Snapshot.open(take(flat, as_synthetic=True).output).index.provenance
    assert np.array(Image.open(flat / "a" / "0.png")).shape == (64, 64, 3)
