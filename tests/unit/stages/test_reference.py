"""reference: cross-fitted classifiers, features and floors of a real set."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from validation_sets import CLASSES, COUNTS, Item, items, render, tiny_config, with_pixels, write_real, write_set

from gda.artifacts.reference import ReferenceIndex
from gda.data.store.snapshot import Snapshot
from gda.errors import DataError
from gda.fidelity.extractors import get_extractor
from gda.gate.reference import LabelReference, assign_folds
from gda.stages import reference


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A real snapshot and its reference."""
    root = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GDA_WORK_DIR", str(root / "work"))
        patch.setenv("GDA_LEDGER", str(root / "ledger.jsonl"))
        real, out = write_real(root / "real"), root / "reference"
        reference.run(tiny_config(), snapshot=real, out=out)
    return real, out


def test_unseen_real_images_are_confirmed_where_colour_is_class(made: tuple[Path, Path]) -> None:
    """Labels that are obvious must be confirmed by classifiers that have not seen the images, or the gate would refuse everything."""
    index = LabelReference.open(made[1]).index
    assert index.agreement > 0.95
    assert len(index.agreement_by_class) == len(CLASSES)


def test_real_images_are_assessed_by_the_classifier_that_has_not_seen_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels that hold in one fold only: a classifier that saw an image confirms it, the other one never does."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    sampled = {split: items(count, seed) for seed, (split, count) in enumerate(COUNTS.items())}
    keys = tuple(f"train-{i:04d}" for i in range(len(sampled["train"])))
    labels = np.array([CLASSES.index(item.label) for item in sampled["train"]])
    folds = dict(zip(keys, assign_folds(keys, labels, 2, seed=0), strict=True))
    rng = np.random.default_rng(0)

    def trade_colours(split: str, i: int, item: Item) -> Item:
        other = (CLASSES.index(item.label) + 1) % len(CLASSES)
        return with_pixels(item, render(CLASSES[other], rng)) if folds.get(f"{split}-{i:04d}") == 1 else item

    splits = {split: [trade_colours(split, i, item) for i, item in enumerate(content)] for split, content in sampled.items()}
    reference.run(tiny_config(), snapshot=write_set(tmp_path / "real", splits, kind="real"), out=tmp_path / "out")
    assert LabelReference.open(tmp_path / "out").index.agreement < 0.05


def test_features_are_those_of_train_and_val_and_never_of_test(made: tuple[Path, Path]) -> None:
    """The reference must not let the test split into anything that is compared or chosen."""
    opened = LabelReference.open(made[1])
    assert {split: len(rows) for split, rows in opened.features.items()} == {s: 4 * COUNTS[s] for s in ("train", "val")}
    assert not (made[1].parent / "ledger.jsonl").exists()


def test_each_fold_loads_in_timm(made: tuple[Path, Path]) -> None:
    """Fold classifiers are ordinary exported classifiers."""
    model = timm.create_model(f"local-dir:{made[1] / 'fold-0'}", pretrained=True).eval()
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, len(CLASSES))


def test_same_digest_when_computed_again_elsewhere(made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines that compute the same reference must agree on its digest and its bytes."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    again = reference.run(tiny_config(), snapshot=made[0], out=tmp_path / "again")
    files = sorted(p.relative_to(made[1]) for p in made[1].rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again.output) for p in again.output.rglob("*") if p.is_file())
    assert all((made[1] / f).read_bytes() == (again.output / f).read_bytes() for f in files)


def test_second_call_reuses_the_result(made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished work is not done twice."""
    monkeypatch.setenv("GDA_WORK_DIR", str(made[1].parent / "work"))
    assert reference.run(tiny_config(), snapshot=made[0], out=made[1]).reused


def test_classifiers_and_floors_of_labels_do_not_depend_on_validation_images(made: tuple[Path, Path], tmp_path: Path) -> None:
    """What decides which images are kept has seen train alone: other validation images, wrongly labelled, change no weight and no floor."""
    wrong = [replace(item, label=CLASSES[(CLASSES.index(item.label) + 1) % 4]) for item in items(COUNTS["val"], 77)]
    splits = {"train": items(COUNTS["train"], 0), "val": wrong, "test": items(COUNTS["test"], 2)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
        reference.run(tiny_config(), snapshot=write_set(tmp_path / "real", splits, kind="real"), out=tmp_path / "out")
    before, after = LabelReference.open(made[1]), LabelReference.open(tmp_path / "out")
    assert np.array_equal(after.probabilities["train"], before.probabilities["train"])
    assert (after.index.agreement, after.index.agreement_by_class) == (before.index.agreement, before.index.agreement_by_class)
    assert not np.array_equal(after.features["val"], before.features["val"])


def test_a_reference_that_was_trained_on_validation_images_is_read_and_not_used(made: tuple[Path, Path]) -> None:
    """Earlier versions wrote such ones, without a word of it: they open, and nothing is assessed by them."""
    content = json.loads((made[1] / "reference.json").read_text("utf-8"))
    del content["cross_fitted"]
    old = replace(LabelReference.open(made[1]), index=ReferenceIndex.model_validate_json(json.dumps(content)))
    with pytest.raises(DataError, match="its classifiers have seen validation images"):
        old.require(Snapshot.open(made[0]), get_extractor("glyph"), size=28)


def test_a_reference_of_another_snapshot_is_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    """Numbers measured against the wrong real set must not pass for a comparison."""
    other = Snapshot.open(write_set(tmp_path / "other", {"train": items(2, 9)}, kind="real"))
    with pytest.raises(DataError, match="is the reference of snapshot"):
        LabelReference.open(made[1]).require(other, get_extractor("glyph"), size=28)


def test_folds_are_even_in_every_class_and_do_not_depend_on_order() -> None:
    """A fold without a class could not assess it, and a re-ordered manifest must not move images between folds."""
    keys, labels = tuple(f"k{i}" for i in range(60)), np.arange(60) % 3
    folds = assign_folds(keys, labels, 4, seed=0)
    assert all(np.bincount(folds[labels == c], minlength=4).tolist() == [5, 5, 5, 5] for c in range(3))
    shuffle = np.random.default_rng(0).permutation(60)
    assert (assign_folds(tuple(keys[i] for i in shuffle), labels[shuffle], 4, seed=0) == folds[shuffle]).all()
