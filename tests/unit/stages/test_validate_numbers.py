"""validate: what it states of distributions, in the verdict, the table of classes and the page."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from colour_words import colour_words
from mapped import LISTED, is_mapped
from trees import tree
from validation_sets import CLASSES, COLOURS, COUNTS, PER_CLASS, Item, changed, items, tiny_config, with_pixels, write_real, write_set

from gda.artifacts.document import read_document
from gda.artifacts.outcome import Outcome
from gda.artifacts.verdict import Measure, Verdict
from gda.errors import ConfigError, DataError
from gda.gate.checks.prompt_match import cosines
from gda.gate.reference import LabelReference
from gda.stages import reference, validate


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`real`, its `reference`, and a sound `synthetic` set."""
    root = tmp_path_factory.mktemp("numbers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GDA_WORK_DIR", str(root / "work"))
        reference.run(tiny_config(), snapshot=write_real(root / "real"), out=root / "reference")
    write_set(root / "synthetic", {"train": items(PER_CLASS, 77)})
    return root


@pytest.fixture(autouse=True)
def _own_work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))


def validation(world: Path, out: Path, synthetic: Path | None = None, **settings: object) -> Outcome:
    return validate.run(
        tiny_config(**settings), synthetic=synthetic or world / "synthetic", snapshot=world / "real", reference=world / "reference", out=out
    )


def measures(outcome: Outcome) -> dict[str, Measure]:
    return read_document(outcome.output / "verdict.json", Verdict).metrics


def test_a_sound_set_is_near_its_floors_and_far_from_one_class(world: Path, tmp_path: Path) -> None:
    """Every metric with what it was measured with; none of them is as a collapsed set's."""
    found = measures(validation(world, tmp_path / "out"))
    for name in ("fid", "kid", "precision", "recall", "density", "coverage", "vendi", "inception_score"):
        for suffix in ("", "_val", "_at_class_size"):
            measure = found[name + suffix]
            assert None not in (measure.value, measure.low, measure.high, measure.floor, measure.n, measure.extractor), name + suffix
    fid, vendi, score = (found[f"{name}_at_class_size"] for name in ("fid", "vendi", "inception_score"))
    assert fid.n == 21  # of 27 real images of a class, train and val; the others are its share of the reference
    assert fid.floor < 2 * fid.value < fid.one_class  # type: ignore[operator]
    assert vendi.one_class < vendi.low  # type: ignore[operator]
    assert score.one_class < 1.5 < 2.1 < score.low  # type: ignore[operator]
    assert str(fid.extractor).startswith("glyph@")
    assert str(score.extractor).startswith("cross-fitted classifiers@")
    assert found["fid_val"].floor == found["fid_train"].floor


def test_a_class_of_one_picture_is_found_in_the_table_and_on_the_page(world: Path, tmp_path: Path) -> None:
    """Images of one class are little more than one another's copies: its own row says so, and no other one."""
    rng = np.random.default_rng(0)
    one = next(item for item in items(1, 5) if item.label == "blue")

    def narrow(item: Item) -> Item:
        noisy = np.clip(one.rgb + rng.normal(0, 2, one.rgb.shape), 0, 255)
        return with_pixels(item, noisy.astype(np.uint8)) if item.label == "blue" else item

    spoiled = write_set(tmp_path / "synthetic", {"train": [narrow(item) for item in items(PER_CLASS, 77)]})
    outcome = validation(world, tmp_path / "out", spoiled)
    table = pd.read_csv(outcome.output / "classes.csv").set_index("class")
    assert list(table.index) == list(CLASSES)
    assert set(table["compared"]) == {13}  # half of 27 real images
    worst = table.loc["blue"]
    assert worst["coverage"] < 0.5 * worst["coverage_real"]
    assert worst["kid_low"] > worst["kid_real"]
    assert (table.drop(index="blue")["coverage"] > 0.5 * table.drop(index="blue")["coverage_real"]).all()
    assert measures(outcome)["coverage_worst_class"].value == pytest.approx(worst["coverage"], rel=1e-5)
    page = (outcome.output / "index.html").read_text()
    assert f"{worst['coverage']:.1%} ({worst['coverage_real']:.1%})" in page
    assert "one real class" in page


def test_given_statistics_are_stated_with_their_floor(world: Path, tmp_path: Path) -> None:
    """FID to another tool's reference, at the n that real images have too; its place on disk is no part of the result."""
    given = tmp_path / "given.npz"
    given.write_bytes((world / "reference" / "statistics.npz").read_bytes())
    first = validation(world, tmp_path / "out", reference_statistics=str(given))
    measure = measures(first)["fid_reference"]
    assert measure.n == 108
    assert measure.floor == pytest.approx(0.0, abs=1e-6)  # all real images against their own statistics
    assert measure.value > 0.0  # type: ignore[operator]
    assert measure.reference_digest != measures(first)["fid"].reference_digest
    moved = given.rename(tmp_path / "moved.npz")
    again = validation(world, tmp_path / "again", reference_statistics=str(moved))
    assert tree(again.output) == tree(first.output)
    np.savez(moved, mu=np.zeros(64), sigma=np.eye(64))
    assert not validation(world, tmp_path / "changed", reference_statistics=str(moved)).reused
    assert measures(validation(world, tmp_path / "changed", reference_statistics=str(moved)))["fid_reference"].value != measure.value


def test_statistics_that_cannot_serve_stop_the_stage(world: Path, tmp_path: Path) -> None:
    """A mistake in the configuration says nothing about the set: an error, and no verdict."""
    np.savez(tmp_path / "other.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(DataError, match="statistics of 2048 features, but glyph has 64"):
        validation(world, tmp_path / "out", reference_statistics=str(tmp_path / "other.npz"))
    with pytest.raises(ConfigError, match=r"validate\.reference_statistics"):
        validation(world, tmp_path / "out", reference_statistics=str(tmp_path / "nowhere.npz"))
    assert not (tmp_path / "out").exists()


def test_the_reference_keeps_what_looking_at_real_images_costs(world: Path) -> None:
    """Statistics that other tools read, and the probabilities from which its own agreement follows."""
    opened = LabelReference.open(world / "reference")
    with np.load(world / "reference" / "statistics.npz") as file:
        assert np.allclose(file["mu"], opened.pooled.astype(np.float64).mean(0))
        assert np.allclose(file["sigma"], np.cov(opened.pooled, rowvar=False))
    labels = {split: np.tile(np.arange(4), len(rows) // 4) for split, rows in opened.probabilities.items()}
    confirmed = np.concatenate([rows.argmax(1) == labels[split] for split, rows in opened.probabilities.items()])
    assert confirmed.mean() == pytest.approx(opened.index.agreement)
    assert all(np.allclose(rows.sum(1), 1.0) for rows in opened.probabilities.values())
    (damaged := world / "reference" / "probabilities.safetensors").rename(world / "kept")
    with pytest.raises(DataError, match=r"probabilities\.safetensors: not found"):
        LabelReference.open(world / "reference")
    (world / "kept").rename(damaged)


def toned(item: Item, other: str, share: float, **meta: object) -> Item:
    """The picture moved from its class's colour towards another's, by so much of the way."""
    way = np.array(COLOURS[other]) - np.array(COLOURS[item.label])
    rgb = np.clip(item.rgb + share * way, 0, 255).astype(np.uint8)
    return replace(with_pixels(item, rgb), meta=item.meta | {"source_image": "train-0001", "source_class": other} | meta)


def test_soft_labels_are_assessed_as_such(world: Path, tmp_path: Path) -> None:
    """Red images sampled from green ones that still look green: no wrong label where the label says so, and the gap to it is stated."""
    content = items(PER_CLASS, 77)
    reds = [i for i, item in enumerate(content) if item.label == "red"]
    soft = changed(content, reds[:20], lambda item, place: toned(item, "green", 1.0, strength=0.25))
    found = measures(validation(world, tmp_path / "soft", write_set(tmp_path / "a", {"train": soft})))
    assert found["label_agreement"].value > 0.95  # type: ignore[operator]
    assert found["soft_label_gap"].n == 20
    assert found["soft_label_gap"].value == pytest.approx(-0.25)
    # Nor is a picture half-way between two of one class anything but of that class.
    same = changed(content, reds[:20], lambda item, place: toned(item, "red", 0.0, strength=0.25))
    found = measures(validation(world, tmp_path / "same", write_set(tmp_path / "c", {"train": same})))
    assert "soft_label_gap" not in found
    # As hard labels, which strength 1 makes them, the same pictures are wrong.
    hard = changed(content, reds[:20], lambda item, place: toned(item, "green", 1.0, strength=1.0))
    found = measures(validation(world, tmp_path / "hard", write_set(tmp_path / "b", {"train": hard})))
    assert found["label_agreement"].value < 0.88  # type: ignore[operator]
    assert found["confident_disagreement"].value > found["confident_disagreement"].floor  # type: ignore[operator]
    assert "soft_label_gap" not in found
    assert "red seen as green (20)" in (tmp_path / "hard" / "index.html").read_text()


@pytest.mark.skipif(not LISTED, reason="only Linux lists what is mapped")
def test_decoded_images_need_not_fit_into_memory(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Synthetic and real ones alike are mapped from files of the work folder, which are gone afterwards."""
    seen, inspect = [], validate.inspect_set
    monkeypatch.setattr(validate, "inspect_set", lambda *args, **options: seen.append(inspect(*args, **options)) or seen[0])
    validation(world, tmp_path / "out")
    assert is_mapped(seen[0].subjects.audit.images)
    assert all(is_mapped(images.images) for images in seen[0].subjects.real.values())


def test_prompts_are_compared_with_images_where_the_extractor_has_texts(world: Path, tmp_path: Path) -> None:
    """Images of the colour that their prompt names match as well as real ones; prompts that name another's do not."""
    options = {"extractor": "colour_words:colour_words"}

    def prompted(name: str, prompts: list[str | None]) -> Outcome:
        content = [replace(item, meta=item.meta | {"prompt": prompt}) for item, prompt in zip(items(PER_CLASS, 77), prompts, strict=True)]
        synthetic = write_set(tmp_path / name, {"train": content})
        given = {"synthetic": synthetic, "snapshot": world / "real", "reference": None, "out": tmp_path / f"{name}-out"}
        return validate.run(tiny_config(**options), **given)

    def shifted(by: int) -> list[str | None]:
        return [f"a {CLASSES[(CLASSES.index(item.label) + by) % 4]} thing" for item in items(PER_CLASS, 77)]

    right, wrong = (measures(prompted(name, shifted(by)))["text_alignment"] for name, by in (("right", 0), ("wrong", 1)))
    assert right.value == pytest.approx(right.floor, abs=0.05)
    pictures = [item for split, count in enumerate((COUNTS["train"], COUNTS["val"])) for item in items(count, split)]
    extractor = colour_words(None)
    features = extractor.features(torch.from_numpy(np.stack([item.rgb for item in pictures])).permute(0, 3, 1, 2))
    expected = cosines(features, [item.label for item in pictures], extractor.text.embed)  # type: ignore[union-attr]
    assert right.floor == pytest.approx(expected.mean(), rel=1e-9)  # the two sets agree to seven digits by chance
    assert right.low < right.value < right.high  # type: ignore[operator]
    assert right.extractor == "colour-words@c0c0c0c0 with texts@7e7e7e7e"
    # Real images are compared by the prompts that the set was sampled with, so the floor falls as well.
    assert wrong.value < right.low - 0.2  # type: ignore[operator]
    assert "mean cosine of images and their prompts" in (tmp_path / "right-out" / "index.html").read_text()
    assert "text_alignment" not in measures(validation(world, tmp_path / "out"))
    assert json.loads((tmp_path / "right-out" / "fingerprint.json").read_text())["inputs"]["texts"] == "7e" * 32
    # A set that does not say by which prompts it was sampled is not held against any.
    silent = read_document(prompted("silent", [None, *shifted(0)[1:]]).output / "verdict.json", Verdict)
    assert "text_alignment" not in silent.metrics
    assert not any("match with prompts" in reason for reason in silent.reasons)
