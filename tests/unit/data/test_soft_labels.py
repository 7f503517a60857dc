"""Labels shared by two classes, from the manifest to the images in memory."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from gda.artifacts.snapshot import ClassInfo
from gda.data.store.in_memory import load_images
from gda.data.store.snapshot import Snapshot, commit_snapshot
from gda.data.store.soft_labels import second_labels, soft_labels, soft_labels_input
from gda.data.store.writer import ImageRecord, write_image_shard
from gda.errors import DataError

CLASSES = ("ant", "bee", "cat")


def rows(*records: tuple[int, str | None, float | None]) -> pd.DataFrame:
    """A manifest of (label, source class, strength)."""
    labels, sources, strengths = zip(*records, strict=True)
    keys = [f"k{i}" for i in range(len(records))]
    return pd.DataFrame({"key": keys, "label": labels, "source_class": sources, "strength": strengths})


def test_a_label_is_shared_by_strength_with_the_class_of_the_source_image() -> None:
    """Protects targets: only another class, and only what the strength left of it; a source of the same class or none shares nothing."""
    found = soft_labels(rows((0, "cat", 0.3), (1, "bee", 0.3), (2, None, None), (2, "ant", 1.0), (1, "ant", 0.75)), CLASSES)
    assert found is not None
    assert found[0].tolist() == [2, -1, -1, -1, 0]
    assert found[1].tolist() == [0.3, 1.0, 1.0, 1.0, 0.75]


def test_records_of_one_class_each_are_hard() -> None:
    """Sets without soft labels, and real ones, which lack the columns, must be trained as ever."""
    assert soft_labels(rows((0, "ant", 0.3), (1, None, None)), CLASSES) is None
    assert soft_labels(rows((0, None, None)).drop(columns=["strength", "source_class"]), CLASSES) is None


@pytest.mark.parametrize(("source", "strength"), [("dog", 0.4), ("cat", -0.1)])
def test_a_share_for_no_class_is_refused(source: str, strength: float) -> None:
    """A label whose other part is lost would be trained as certain."""
    with pytest.raises(DataError, match=f"record 'k1': sampled from an image of class '{source}' at strength {strength}"):
        soft_labels(rows((0, None, None), (1, source, strength)), CLASSES)


def test_validation_uses_the_shares_that_are_trained() -> None:
    """One rule for both; validation knows classes in the real set's order, where unknown ones are -1."""
    manifest = rows((0, "cat", 0.3), (1, "dog", 0.5))
    second, share = second_labels(manifest, np.array([2, -1]), ("cat", "bee", "ant"))
    assert (second.tolist(), share.tolist()) == ([0, -1], [0.3, 1.0])


def write(folder: Path, strengths: tuple[float, ...], *, sources: bool = True) -> Path:
    """Six records in two shards, of classes 0 to 2 by turns, the last of each shard sampled from class `ant`; pixels number the records."""
    folder.mkdir()
    frames, classes = [], tuple(ClassInfo(name=name, prompt_name=name) for name in CLASSES)
    for shard in range(2):
        numbers = range(3 * shard, 3 * shard + 3)
        records = [
            ImageRecord(key=f"{9 - i}", rgb=np.full((4, 4, 3), 10 * i, np.uint8), label=i % 3, class_name=CLASSES[i % 3]) for i in numbers
        ]
        frame = write_image_shard(folder, name=f"train-00000{shard}.tar", split="train", records=records)
        frames.append(frame.assign(source_class=[None, None, "ant"], strength=[None, None, strengths[shard]]))
    provenance = {"sources": "0"} if sources else {}
    manifest = pd.concat(frames, ignore_index=True)
    commit_snapshot(folder, kind="synthetic", classes=classes, rows=manifest, provenance=provenance, licence="CC0-1.0")
    return folder


def test_shares_stay_with_their_images(tmp_path: Path) -> None:
    """In manifest order, and after a choice of some: a share with another's image would be noise."""
    loaded = load_images(Snapshot.open(write(tmp_path / "s", (0.25, 0.5))), "train", size=4)
    assert loaded.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert loaded.second is not None
    assert loaded.first_share is not None
    assert loaded.second.tolist() == [-1, -1, 0, -1, -1, 0]
    assert loaded.first_share.tolist() == [1, 1, 0.25, 1, 1, 0.5]
    chosen = loaded.take(torch.tensor([5, 2, 0]))
    assert chosen.second is not None
    assert chosen.first_share is not None
    assert (chosen.images[:, 0, 0, 0].tolist(), chosen.labels.tolist(), chosen.keys) == ([50, 20, 0], [2, 2, 0], ("4", "7", "9"))
    assert (chosen.second.tolist(), chosen.first_share.tolist()) == ([0, 0, -1], [0.5, 0.25, 1])
    start = loaded.take(slice(3))
    assert start.second is not None
    assert start.first_share is not None
    assert (start.keys, start.second.tolist(), start.first_share.tolist()) == (("9", "8", "7"), [-1, -1, 0], [1, 1, 0.25])
    assert start.images.data_ptr() == loaded.images.data_ptr()


def test_a_hard_set_is_loaded_without_shares(tmp_path: Path) -> None:
    """A set without soft labels is loaded as before, with the same bits."""
    loaded = load_images(Snapshot.open(write(tmp_path / "s", (1.0, 1.0))), "train", size=4)
    assert (loaded.second, loaded.first_share) == (None, None)
    assert loaded.take(torch.tensor([1])).second is None


def test_a_share_for_no_class_names_the_set(tmp_path: Path) -> None:
    """The message names the set and the record."""
    with pytest.raises(DataError, match=r"s: record '7': sampled from an image of class 'ant' at strength -1"):
        load_images(Snapshot.open(write(tmp_path / "s", (-1.0, 0.5))), "train", size=4)


def test_fingerprints_know_of_soft_labels(tmp_path: Path) -> None:
    """The content digest has first labels alone, so that classifiers of other shares would pass for up to date."""

    def inputs(name: str, strengths: tuple[float, ...], *, sources: bool = True) -> dict[str, str]:
        path = write(tmp_path / name, strengths, sources=sources)
        return soft_labels_input(path, Snapshot.open(path).index)

    one, other, again = inputs("a", (0.25, 0.5)), inputs("b", (0.25, 0.75)), inputs("c", (0.25, 0.5))
    assert one == again != other
    assert set(one) == {"soft_labels"}
    assert inputs("d", (1.0, 1.0)) == inputs("e", (1.0, 1.0), sources=False) == {}
