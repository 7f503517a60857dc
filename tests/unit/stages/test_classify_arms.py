"""classify's further arms: a pool of more real images, image-to-image, hard classes alone, the head at the end, and epochs."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from classify_world import CLASSES, verdict_on, write_set
from safetensors.numpy import load_file, save_file

from gda.artifacts.cards import ClassifierCard
from gda.artifacts.document import dump_document, read_document
from gda.artifacts.outcome import Outcome
from gda.artifacts.reference import ReferenceIndex
from gda.artifacts.snapshot import SnapshotIndex
from gda.config.load import Config
from gda.config.sections import Arm, ClassifyConfig
from gda.data.store.snapshot import Snapshot
from gda.errors import ConfigError, DataError, UsageError
from gda.io.skipped_arms import publish_skipped
from gda.stages import classify
from gda.training.arms.arm_data import load_data, parts_by_label
from gda.training.arms.arm_request import ArmRequest, make_arm_request
from gda.training.arms.targets import cross_fitted_accuracy

BASE = {
    "model": "resnetv2_18",
    "model_args_json": '{"layers": [1], "channels": [16], "stem_chs": 8}',
    "image_size": 16,
    "num_train_steps": 30,
    "mixed_num_train_steps": 40,
    "batch_size": 12,
    "learning_rate": 5e-3,
    "warmup_steps": 2,
    "last_layer_num_train_steps": 10,
}


def config(**changes: object) -> Config:
    return Config(classify=ClassifyConfig.model_validate(BASE | changes))


@pytest.fixture(autouse=True)
def own_work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test works in its own folder."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))


@pytest.fixture
def real(tmp_path: Path) -> Path:
    return write_set(tmp_path / "real", "real", {"train": 8, "val": 8, "test": 2})


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    return write_set(tmp_path / "synthetic", "synthetic", {"train": 10}, seed=1)


@pytest.fixture
def given(real: Path, synthetic: Path, tmp_path: Path) -> dict[str, Path]:
    """The arguments of a gated arm."""
    return {"snapshot": real, "synthetic": synthetic, "verdict": verdict_on(real, synthetic, tmp_path / "verdict.json")}


def card_of(outcome: Outcome) -> ClassifierCard:
    return read_document(outcome.output / "classifier.json", ClassifierCard)


def write_reference(folder: Path, snapshot: Path, *, wrong: tuple[int, ...] = (), wrong_in_val: tuple[int, ...] = ()) -> Path:
    """A reference whose classifiers tell every real image, but for those of the classes `wrong`, and in val of others."""
    folder.mkdir()
    opened, probabilities = Snapshot.open(snapshot), {}
    for split in ("train", "val"):
        labels = opened.manifest(split)["label"].to_numpy()
        message = np.where(np.isin(labels, wrong if split == "train" else wrong + wrong_in_val), (labels + 1) % len(CLASSES), labels)
        probabilities[split] = np.eye(len(CLASSES))[message]
    save_file(probabilities, folder / "probabilities.safetensors")
    index = ReferenceIndex(
        digest="1" * 64,
        snapshot_digest=opened.digest,
        extractor="glyph",
        extractor_digest="2" * 64,
        image_size=16,
        folds=("3" * 64, "4" * 64),
        cross_fitted="train",
        counts={split: len(rows) for split, rows in probabilities.items()},
        agreement=1.0,
        agreement_by_class=(1.0, 1.0, 1.0),
        fid_floor=1.0,
        fid_floor_low=0.5,
        fid_floor_high=1.5,
        fid_floor_n=10,
    )
    (folder / "reference.json").write_bytes(dump_document(index))
    return folder


def test_a_pool_of_some_classes_keeps_their_labels(tmp_path: Path) -> None:
    """A pool without blue numbers its classes from green on: taken by number, green would be learned as blue."""
    real = write_set(tmp_path / "mislabelled", "real", {"train": 8, "val": 8}, mislabelled=("train",))
    pool = write_set(tmp_path / "pool", "real", {"train": 10}, seed=3, classes=CLASSES[1:], pool_of=real)
    outcome = classify.run(config(ratio=20.0), snapshot=real, arm=Arm.RETRIEVED, seed=0, out=tmp_path / "out", pool=pool)
    card = card_of(outcome)
    assert (card.pool_digest, card.synthetic_digest) == (read_document(pool / "snapshot.json", SnapshotIndex).digest, None)
    assert card.num_train_steps == 40
    published = load_file(tmp_path / "out" / "val_predictions.safetensors")
    right = published["logits"].argmax(axis=1) == published["labels"]
    assert right[published["labels"] > 0].mean() > 0.9, "green and red are right in the pool alone"


def test_what_the_arm_retrieved_refuses(real: Path, synthetic: Path, tmp_path: Path) -> None:
    """No pool, a synthetic one, one that nobody held against the test images, or one with a class that nobody knows."""
    with pytest.raises(UsageError, match="give --pool"):
        classify.run(config(), snapshot=real, arm=Arm.RETRIEVED, seed=0, out=tmp_path / "out")
    with pytest.raises(DataError, match="a synthetic snapshot where a real one is needed"):
        classify.run(config(), snapshot=real, arm=Arm.RETRIEVED, seed=0, out=tmp_path / "out", pool=synthetic)
    small = write_set(tmp_path / "small", "real", {"train": 2, "val": 2}, classes=CLASSES[:2])
    pool = write_set(tmp_path / "pool", "real", {"train": 2}, seed=3, pool_of=small)
    with pytest.raises(DataError, match="has a class 'red', which is none of those"):
        classify.run(config(), snapshot=small, arm=Arm.RETRIEVED, seed=0, out=tmp_path / "out", pool=pool)
    for other in (pool, real):
        with pytest.raises(DataError, match=r"is no pool for .*images that it tests with might be in it; make one with .*--as pool"):
            classify.run(config(), snapshot=real, arm=Arm.RETRIEVED, seed=0, out=tmp_path / "out", pool=other)


def test_image_to_image_is_a_control(real: Path, synthetic: Path, tmp_path: Path) -> None:
    """It mixes as real+synthetic does, needs no verdict, and a gated arm does not depend on it."""
    outcome = classify.run(config(), snapshot=real, arm=Arm.IMG2IMG, seed=0, out=tmp_path / "out", synthetic=synthetic)
    card = card_of(outcome)
    assert (card.skipped, card.num_train_steps) == (None, 40)
    given = {"snapshot": real, "synthetic": synthetic, "verdict": verdict_on(real, synthetic, tmp_path / "verdict.json")}
    mixed = classify.run(config(), arm=Arm.MIXED, seed=0, out=tmp_path / "mixed", **given)
    assert (tmp_path / "mixed" / "model.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert mixed.digest != outcome.digest, "the same training, but another arm"


def test_hard_classes_alone_get_synthetic_images(given: dict[str, Path], tmp_path: Path) -> None:
    """The class that the reference shows least is chosen, its images alone are used, and they have less of a batch for that."""
    reference = write_reference(tmp_path / "reference", given["snapshot"], wrong=(1,))
    outcome = classify.run(config(target_fraction=0.3), arm=Arm.TARGETED, seed=0, out=tmp_path / "a", reference=reference, **given)
    assert card_of(outcome).targets == ("green",)
    request = make_arm_request(
        config().classify, Arm.TARGETED, given["snapshot"], given["synthetic"], given["verdict"], reference=reference
    )
    loaded = load_data(request.data)
    assert loaded.others is not None
    assert set(loaded.others.labels.tolist()) == {1}
    assert [len(source.labels) for source in loaded.sources(1.0)] == [24, 10]
    assert loaded.sources(1.0)[1].share == pytest.approx(0.25), "a third of the synthetic images has a third of their ratio"


def test_validation_images_do_not_say_which_classes_are_hard(given: dict[str, Path], tmp_path: Path) -> None:
    """The classes that get images are picked by train alone; a reference that has seen val is refused."""
    real = Snapshot.open(given["snapshot"]).index
    reference = write_reference(tmp_path / "reference", given["snapshot"], wrong=(1,), wrong_in_val=(0, 2))
    assert cross_fitted_accuracy(given["snapshot"], real, reference).tolist() == [1.0, 0.0, 1.0]
    index = read_document(reference / "reference.json", ReferenceIndex)
    (reference / "reference.json").write_bytes(dump_document(index.model_copy(update={"cross_fitted": "train and val"})))
    with pytest.raises(DataError, match="its classifiers have seen validation images"):
        cross_fitted_accuracy(given["snapshot"], real, reference)


def test_the_fraction_of_hard_classes_is_rounded_up(given: dict[str, Path], tmp_path: Path) -> None:
    """0.34 of three classes are two, the hardest first and then the first of equals; 0.3 is one of ten however floats are rounded."""
    reference = write_reference(tmp_path / "reference", given["snapshot"], wrong=(2,))
    outcome = classify.run(config(target_fraction=0.34), arm=Arm.TARGETED, seed=0, out=tmp_path / "a", reference=reference, **given)
    assert card_of(outcome).targets == ("blue", "red")
    assert cross_fitted_accuracy(given["snapshot"], Snapshot.open(given["snapshot"]).index, reference).tolist() == [1.0, 1.0, 0.0]


def test_classes_may_be_named(given: dict[str, Path], tmp_path: Path) -> None:
    """No reference is needed then, and what was named is part of what the output is of."""
    red, both = (
        classify.run(config(target_classes=names), arm=Arm.TARGETED, seed=0, out=tmp_path / "-".join(names), **given)
        for names in (("red",), ("red", "blue"))
    )
    assert card_of(red).targets == ("red",)
    assert card_of(both).targets == ("blue", "red")
    assert red.digest != both.digest
    with pytest.raises(ConfigError, match="target_classes: no class 'pink'"):
        classify.run(config(target_classes=("pink",)), arm=Arm.TARGETED, seed=0, out=tmp_path / "c", **given)


def test_which_references_are_refused(given: dict[str, Path], tmp_path: Path) -> None:
    """None where one is needed, one of another snapshot, and one that lost its rows; under a refusal none is needed."""
    with pytest.raises(UsageError, match="give --reference"):
        classify.run(config(), arm=Arm.TARGETED, seed=0, out=tmp_path / "a", **given)
    other = write_set(tmp_path / "other", "real", {"train": 2, "val": 2}, seed=9)
    with pytest.raises(DataError, match="is the reference of snapshot"):
        classify.run(config(), arm=Arm.TARGETED, seed=0, out=tmp_path / "a", reference=write_reference(tmp_path / "r1", other), **given)
    short = write_reference(tmp_path / "r2", given["snapshot"])
    save_file({"train": np.eye(3), "val": np.eye(3)}, short / "probabilities.safetensors")
    with pytest.raises(DataError, match="3 rows for the 24 images"):
        classify.run(config(), arm=Arm.TARGETED, seed=0, out=tmp_path / "a", reference=short, **given)
    refused = given | {"verdict": verdict_on(given["snapshot"], given["synthetic"], tmp_path / "no.json", reasons=("Bad.",))}
    assert card_of(classify.run(config(), arm=Arm.TARGETED, seed=0, out=tmp_path / "a", **refused)).skipped


def test_the_head_goes_on_from_the_mixed_classifier(given: dict[str, Path], tmp_path: Path) -> None:
    """Everything but the head has the bits of real+synthetic of that seed, and the head other ones."""
    classify.run(config(), arm=Arm.MIXED, seed=0, out=tmp_path / "m", **given)
    outcome = classify.run(config(), arm=Arm.LAST_LAYER, seed=0, out=tmp_path / "l", **given)
    assert card_of(outcome).num_train_steps == 50
    assert [update for update, _ in outcome.curves["loss"]] == [50]
    mixed, last = (load_file(tmp_path / name / "model.safetensors") for name in "ml")
    differ = {name for name in mixed if not np.array_equal(mixed[name], last[name])}
    assert differ == {name for name in mixed if name.startswith("head.fc.")} != set()


@pytest.mark.parametrize("place", ["neighbour", "elsewhere", "waiting"])
def test_where_the_mixed_classifier_comes_from_does_not_matter(given: dict[str, Path], tmp_path: Path, place: str) -> None:
    """Published next to, waiting in its work folder, or trained again: the same bits, so that a cluster's steps need no order."""
    alone = classify.run(config(), arm=Arm.LAST_LAYER, seed=0, out=tmp_path / "alone" / "l", **given)
    if place == "waiting":
        classify.run(config(), arm=Arm.MIXED, seed=1, out=tmp_path / place / "m", with_seeds=(0,), **given)
    else:
        classify.run(config(), arm=Arm.MIXED, seed=0, out=tmp_path / place / "m", **given)
    where = tmp_path / ("neighbour" if place == "elsewhere" else place)
    again = classify.run(config(), arm=Arm.LAST_LAYER, seed=0, out=where / "l", **given)
    assert again.digest == alone.digest
    assert {path.name: path.read_bytes() for path in (where / "l").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "alone" / "l").iterdir()
    }


def test_a_finished_mixed_classifier_is_not_trained_again(given: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for the seed that was requested nor for its companions: only the updates of the head are paid for."""
    for seed in (0, 1):
        classify.run(config(), arm=Arm.MIXED, seed=seed, out=tmp_path / f"m-{seed}", **given)

    def fail(job: classify.Job, *_: object) -> None:
        raise AssertionError(f"trained again, seed {job.seed}")

    monkeypatch.setattr(classify, "_train_whole", fail)
    classify.run(config(), arm=Arm.LAST_LAYER, seed=1, out=tmp_path / "l-1", with_seeds=(0, 1), **given)
    assert classify.run(config(), arm=Arm.LAST_LAYER, seed=0, out=tmp_path / "l-0", **given).curves
    with pytest.raises(AssertionError, match="trained again, seed 1"):
        classify.run(config(ratio=0.5), arm=Arm.LAST_LAYER, seed=1, out=tmp_path / "o-1", **given)


@pytest.mark.parametrize(("arm", "updates"), [(Arm.REAL, 10), (Arm.REAL_LONG, 15), (Arm.MIXED, 15), (Arm.SYNTHETIC, 13), (Arm.IMG2IMG, 15)])
def test_epochs_count_real_images(given: dict[str, Path], tmp_path: Path, arm: Arm, updates: int) -> None:
    """Five epochs of 24 real images in batches of 12; half a synthetic image to each makes it half as long again; 30 images alone."""
    request = config(num_epochs=5.0, ratio=0.5)
    assert card_of(classify.run(request, arm=arm, seed=0, out=tmp_path / "out", **given)).num_train_steps == updates


def test_epochs_that_come_to_the_same_updates_are_the_same_training(given: dict[str, Path], tmp_path: Path) -> None:
    """What counts is what is trained: a real arm that is finished stays up to date."""
    classify.run(config(num_train_steps=10), arm=Arm.REAL, seed=0, out=tmp_path / "out", **given)
    again = classify.run(config(num_epochs=5.0), arm=Arm.REAL, seed=0, out=tmp_path / "out", **given)
    assert again.reused


def test_parts_are_disjoint_balanced_and_whole() -> None:
    """Every image is in one part, classes are dealt evenly whatever order the keys have, and a part does not follow the images' order."""
    keys, labels = [f"k{i}" for i in range(90)], [i % 3 for i in range(90)]
    found = parts_by_label(keys, labels, ["g"] * 90, 4)
    counts = Counter(zip(labels, found, strict=True))
    assert {(label, part) for label in range(3) for part in range(4)} == counts.keys()
    assert set(counts.values()) == {7, 8}
    turned = parts_by_label(keys[::-1], labels[::-1], ["g"] * 90, 4)
    assert turned[::-1] == found
    assert found[:12] != [(i // 3) % 4 for i in range(12)]


def test_of_several_generators_each_is_a_part() -> None:
    """Seeds then know how much fine-tuning again would have changed; another number of parts would mix that up."""
    assert parts_by_label(["a", "b", "c"], [0, 0, 1], ["y", "x", "y"], 2) == [1, 0, 1]
    with pytest.raises(ConfigError, match=r"sampled by 2 generators and cannot be cut into 3; accepted: 1 or 2"):
        parts_by_label(["a", "b", "c"], [0, 0, 1], ["y", "x", "y"], 3)


def test_a_seed_is_trained_on_its_own_part(given: dict[str, Path], tmp_path: Path) -> None:
    """30 images in three parts are ten a seed, none of them twice; without parts all are used; the fourth seed has the first one's."""
    parts = config(synthetic_parts=3)
    request = make_arm_request(parts.classify, Arm.SYNTHETIC, given["snapshot"], given["synthetic"], given["verdict"])
    loaded = load_data(request.data)
    images = [loaded.sources(1.0, seed=seed)[0].images for seed in range(4)]
    assert [len(part) for part in images] == [12, 9, 9, 12]
    assert len({part.numpy().tobytes() for part in images}) == 3
    assert images[3].equal(images[0])
    assert sorted(image.numpy().tobytes() for part in images[:3] for image in part) == sorted(
        image.numpy().tobytes() for image in load_data(make(given, config()).data).sources(1.0)[0].images
    )
    card = card_of(classify.run(parts, arm=Arm.SYNTHETIC, seed=1, out=tmp_path / "out", **given))
    assert card.synthetic_parts == 3


def test_what_parts_concern(given: dict[str, Path]) -> None:
    """Real arms stay up to date when parts are requested; too many parts are refused by name."""
    for arm, concerned in ((Arm.REAL, False), (Arm.MIXED, True), (Arm.SYNTHETIC, True)):
        assert (make(given, config(), arm).fingerprint(1) != make(given, config(synthetic_parts=3), arm).fingerprint(1)) == concerned
    many = load_data(make(given, config(synthetic_parts=40)).data)
    with pytest.raises(DataError, match="synthetic_parts: 30 images leave none for part 39"):
        many.sources(1.0, seed=39)


def make(given: dict[str, Path], request: Config, arm: Arm = Arm.SYNTHETIC) -> ArmRequest:
    return make_arm_request(request.classify, arm, given["snapshot"], given["synthetic"], given["verdict"])


def test_arms_nobody_compares_are_skipped_where_a_flow_needs_them(given: dict[str, Path], tmp_path: Path) -> None:
    """With if_compared an arm that is not named leaves a note; requested by hand it is trained."""
    few = config(arms=("real", "real+synthetic"))
    outcome = classify.run(few, arm=Arm.SYNTHETIC, seed=0, out=tmp_path / "a", if_compared=True, **given)
    assert outcome.summary.endswith("skipped, because classify.arms does not name synthetic")
    assert not (tmp_path / "a" / "classifier.json").exists()
    assert classify.run(few, arm=Arm.SYNTHETIC, seed=0, out=tmp_path / "a", if_compared=True, **given).reused
    assert card_of(classify.run(few, arm=Arm.MIXED, seed=0, out=tmp_path / "b", if_compared=True, **given)).skipped is None
    assert card_of(classify.run(few, arm=Arm.SYNTHETIC, seed=0, out=tmp_path / "c", **given)).skipped is None


def test_a_set_that_was_skipped_skips_its_arm(real: Path, tmp_path: Path) -> None:
    """Without a pool or an image-to-image set the arm's card says why, and that it was no refusal."""
    for arm, role in ((Arm.RETRIEVED, "pool"), (Arm.IMG2IMG, "synthetic")):
        publish_skipped("snapshot", tmp_path / role, "because nobody needs it")
        for reused in (False, True):
            outcome = classify.run(config(), snapshot=real, arm=arm, seed=0, out=tmp_path / f"{arm}-0", **{role: tmp_path / role})
            assert (outcome.refused, outcome.reused) == (False, reused)
        assert card_of(outcome).skipped == "because nobody needs it"
    (tmp_path / "pool" / "skipped.json").write_text("{")
    shutil.rmtree(tmp_path / "retrieved-0")
    with pytest.raises(DataError, match=r"skipped\.json: not valid JSON"):
        classify.run(config(), snapshot=real, arm=Arm.RETRIEVED, seed=0, out=tmp_path / "retrieved-0", pool=tmp_path / "pool")


def test_arms_must_be_different_and_hold_the_rival() -> None:
    """Everything is measured against real, and an arm named twice is a slip."""
    for arms in (("synthetic",), ("real", "real"), ("real", "strange")):
        with pytest.raises(ValueError, match=r"have real among them|no such arm 'strange'"):
            config(arms=arms)
