"""Robustness sets in evaluate: known accuracies come out a set and an arm, and they change nothing else."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from evaluation_world import CLASSES, COLOURS, COMPARED, SIZE, ProcessGroup, config
from PIL import Image

from gda.artifacts.document import read_document
from gda.artifacts.evaluation import Metrics
from gda.artifacts.outcome import Outcome
from gda.config.load import Config, parse_config
from gda.config.sections import Arm
from gda.data.images.codecs import resize_and_crop
from gda.data.ingest.held_out_sets import load_held_out, open_held_out
from gda.data.store.snapshot import Snapshot
from gda.data.test_split.ledger import read_ledger
from gda.errors import DataError, UsageError
from gda.stages import evaluate
from gda.stages.evaluate_sets import Seen, decode_set

ARMS = (Arm.REAL, Arm.MIXED)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ProcessGroup:
    """Arms of known accuracy: real is wrong on blue, zero_shot on blue and green, mixed on nothing."""
    return ProcessGroup(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder and a current folder of the test's own."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_colours(root: Path, images: Mapping[str, list[str]], *, seed: int = 0) -> Path:
    """Images in noisy colours, larger than the classifiers' and not square: folder -> colour of each image in it."""
    rng = np.random.default_rng(seed)
    for folder, colours in images.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i, colour in enumerate(colours):
            pixels = np.array(COLOURS[colour]) + rng.normal(0, 8, (40, 52, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / folder / f"image-{i}.png")
    return root


def with_sets(**section: object) -> Config:
    content = config().model_dump(mode="json", by_alias=True)
    content["evaluate"] |= section
    return parse_config(content, where="test")


def run(world: ProcessGroup, settings: Config, out: str = "out") -> Outcome:
    return evaluate.run(
        settings, runs=[world.runs], snapshot=world.root / "real", synthetic=world.root / "synthetic", verdict=world.verdict, out=Path(out)
    )


def metrics_of(outcome: Outcome) -> Metrics:
    return read_document(outcome.output / "metrics.json", Metrics)


def test_known_accuracies_and_gains_come_out(world: ProcessGroup, place: Path) -> None:
    """Protects the numbers end to end: of ten images six are blue, which real gets wrong in every seed and real+synthetic never."""
    write_colours(place / "shifted", {"blue": ["blue"] * 6, "green": ["green"] * 2, "grey": ["grey"], "red": ["red"]})
    write_colours(place / "renamed", {"n01": ["blue"] * 3, "n02": ["green"], "n03": ["red"] * 2})
    (place / "map.csv").write_text("folder,class\nn01,blue\nn02,green\nn03,\n")
    outcome = run(world, with_sets(sets={"shifted": "shifted", "renamed": str(place / "renamed")}, class_map="map.csv"))
    sets = metrics_of(outcome).sets
    assert list(sets) == ["renamed", "shifted"]
    shifted, renamed = sets["shifted"], sets["renamed"]
    assert {arm: result.mean for arm, result in shifted.arms.items()} == pytest.approx(
        dict.fromkeys(COMPARED, 1.0)
        | {
            Arm.REAL: 0.4,
            Arm.REAL_LONG: 0.4,
            Arm.RETRIEVED: 0.2,
            Arm.ZERO_SHOT: 0.2,
            Arm.IMG2IMG: 0.4,
            Arm("real+zero_shot"): 0.4,
            Arm.SYNTHETIC: 0.4,
        }
    )
    assert shifted.arms[Arm.MIXED].seeds == (0, 1, 2, 3, 4, 5)
    assert shifted.arms[Arm.ZERO_SHOT].top1 == pytest.approx((0.2, 0.2))
    gain = shifted.arms[Arm.MIXED].gain
    assert gain is not None
    assert (gain.mean, gain.seeds, gain.p_value) == (pytest.approx(0.6), 6, 0.03125)
    assert 0.0 < gain.ci95[0] < 0.6 < gain.ci95[1] <= 1.0
    assert shifted.arms[Arm.REAL].gain is None
    synthetic = shifted.arms[Arm.SYNTHETIC].gain
    assert synthetic is not None
    assert (synthetic.mean, synthetic.seeds) == (0.0, 2)
    assert (shifted.num_images, shifted.num_classes, shifted.left_out, shifted.restricted) == (10, 4, 0, False)
    assert (renamed.num_images, renamed.num_classes, renamed.left_out) == (4, 2, 2)
    assert [renamed.arms[arm].mean for arm in ARMS] == [0.25, 1.0]
    assert outcome.metrics["top1_real_shifted"] == pytest.approx(0.4)
    page = (outcome.output / "report.html").read_text()
    assert "On images from elsewhere" in page
    assert "10 images of 4 classes; predictions among all 4 classes." in page
    assert "2 images without a label of ours left out" in page


def test_restricted_sets_choose_among_their_own_classes(world: ProcessGroup, place: Path) -> None:
    """Protects the two ways of reporting from each other: with blue alone to choose from, every answer is right; with all, none is."""
    write_colours(place / "sea", {"blue": ["blue"] * 5})
    results = metrics_of(run(world, with_sets(sets={"among_all": "sea", "among_own": "sea"}, restrict=["among_own"]))).sets
    assert (results["among_all"].restricted, results["among_all"].arms[Arm.REAL].mean) == (False, 0.0)
    assert (results["among_own"].restricted, results["among_own"].arms[Arm.REAL].mean) == (True, 1.0)
    write_colours(place / "sea", {"red": ["red"] * 5})
    results = metrics_of(run(world, with_sets(sets={"own": "sea"}, restrict=["own"]), out="two")).sets
    assert results["own"].arms[Arm.MIXED].mean == 1.0, "classes keep their numbers: red is the last of four, and the second of the set"


def test_any_of_several_labels_is_right(world: ProcessGroup, place: Path) -> None:
    """Protects ReaL labels: what real takes blue for is right where the list says so, and images without labels do not count."""
    write_colours(place / "many", {"": ["blue", "blue", "red", "red"]})
    (place / "labels.json").write_text(json.dumps([["green", "grey", "red"], ["blue"], ["red", "blue"], []]))
    (result,) = metrics_of(run(world, with_sets(sets={"many": "many"}, set_labels={"many": "labels.json"}))).sets.values()
    assert [result.arms[arm].mean for arm in ARMS] == pytest.approx([2 / 3, 2 / 3])
    gain = result.arms[Arm.MIXED].gain
    assert gain is not None
    assert gain.mean == 0.0, "one image each, in opposite directions"
    assert (result.several_labels, result.num_images, result.left_out, result.num_classes) == (True, 3, 1, 4)


def test_more_images_than_one_part(world: ProcessGroup, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects large sets, which are decoded and predicted in parts: none is lost or out of order, whatever the size of a part."""
    monkeypatch.setattr("gda.stages.evaluate_sets._PART", 3)
    write_colours(place / "set", {"blue": ["blue"] * 4, "green": ["green"] * 3, "red": ["red"]})
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "write_report", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(world, with_sets(sets={"set": "set"}))
    assert list((place / "work/test-predictions").iterdir()), "the predictions of a run that failed are kept"
    assert not list((place / "work").rglob("*.npy")), "decoded images are not"
    (result,) = metrics_of(run(world, with_sets(sets={"set": "set"}))).sets.values()
    assert result.num_images == 8
    assert [result.arms[arm].mean for arm in ARMS] == [0.5, 1.0]


def test_images_take_the_way_of_the_test_split(world: ProcessGroup, place: Path) -> None:
    """Protects a fair comparison: images go through the snapshot's one size, and straight to the classifier's where it has several."""
    write_colours(place / "set", {"blue": ["blue"] * 2})
    one = open_held_out("s", place / "set", CLASSES)
    (part,) = decode_set(one, world.real, Seen(size=12), folder=place / "parts")
    np.testing.assert_array_equal(np.load(part), load_held_out(one.files, sides=(SIZE, 12)))
    assert not np.array_equal(np.load(part), load_held_out(one.files, sides=(12,)))
    (smooth,) = decode_set(one, world.real, Seen(size=12, interpolation="bilinear"), folder=place / "smooth")
    assert not np.array_equal(np.load(smooth), np.load(part)), "the classifiers' own filter"
    at_once = load_held_out(one.files, sides=(SIZE,))
    expected = [resize_and_crop(Image.fromarray(image.transpose(1, 2, 0)), 12, "bilinear") for image in at_once]
    np.testing.assert_array_equal(np.load(smooth), np.stack([np.asarray(image).transpose(2, 0, 1) for image in expected]))
    rows = world.real.manifest()
    rows.loc[rows.index[rows["split"] == "test"][0], "width"] = SIZE + 1
    mixed = Snapshot(world.real.path, world.real.index, rows)
    (part,) = decode_set(one, mixed, Seen(size=12), folder=place / "parts")
    np.testing.assert_array_equal(np.load(part), load_held_out(one.files, sides=(12,)))


def test_sets_decide_nothing_and_default_to_none(world: ProcessGroup, place: Path) -> None:
    """Protects the gate, the candidate and every other number: the same with a set on which the declared arm loses, and without."""
    write_colours(place / "against", {"blue": ["green"] * 5})
    with_, without = (run(world, settings, out=name) for settings, name in ((with_sets(sets={"against": "against"}), "a"), (config(), "b")))
    first, second = metrics_of(with_), metrics_of(without)
    assert first.sets["against"].arms[Arm.MIXED].mean == 0.0
    assert first.model_copy(update={"sets": {}}) == second
    assert "images from elsewhere" not in (without.output / "report.html").read_text()
    digests = [line["digest"] for line in read_ledger() if line["purpose"] != "judge"]
    assert digests == [world.real.split_digest("test"), first.sets["against"].digest], "each opening is in the ledger"


def test_the_fingerprint_holds_what_sets_contain_and_not_where_they_lie(world: ProcessGroup, place: Path) -> None:
    """Protects `up to date`: a moved set is the same work; another image, label or way of choosing is not."""
    write_colours(place / "set", {"blue": ["blue"] * 2, "red": ["red"]})
    run(world, with_sets(sets={"s": "set"}))
    shutil.move(place / "set", place / "moved")
    assert run(world, with_sets(sets={"s": "moved"})).reused
    with pytest.raises(UsageError, match=r"made with other settings \(inputs\.set s: "):
        run(world, with_sets(sets={"s": "moved"}, restrict=["s"]))
    write_colours(place / "moved", {"red": ["red"]}, seed=1)
    with pytest.raises(UsageError, match=r"made with other settings \(inputs\.set s: "):
        run(world, with_sets(sets={"s": "moved"}))


def test_errors_come_before_the_test_split_is_opened(world: ProcessGroup, place: Path) -> None:
    """Protects the ledger and the user's time: a folder that no class is named by is given at once, and nothing is published."""
    write_colours(place / "set", {"blue": ["blue"], "purple": ["red"]})
    with pytest.raises(DataError, match=r"evaluate\.sets\.s: set: 'purple' is none of the classes .* evaluate\.class_map is not set"):
        run(world, with_sets(sets={"s": "set"}))
    assert read_ledger() == []
    assert not Path("out").exists()
