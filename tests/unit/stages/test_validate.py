"""validate: a sound set passes; every planted defect is refused, and for its own reason."""

import errno
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kept_features import forge, keep_features
from trees import tree
from validation_sets import CLASSES, PER_CLASS, Item, as_jpeg, changed, items, tiny_config, with_pixels, write_real, write_set
from webdataset import ShardWriter

from gda.artifacts.cards import GeneratorCard
from gda.artifacts.document import dump_document, read_document
from gda.artifacts.outcome import Outcome
from gda.artifacts.verdict import Measure, Verdict
from gda.config.load import dump_config, parse_config
from gda.data.images.codecs import decode, encode_png, to_array
from gda.data.store.snapshot import Snapshot
from gda.data.test_split.ledger import read_ledger
from gda.errors import DataError, MissingError, RefusedError
from gda.fidelity.accumulated import features_path
from gda.gate import closeness, inspection
from gda.generator.planning.plan import equal_quotas, make_plan
from gda.io.shards import read_shard
from gda.stages import reference, snapshot, validate

SYNTHETIC_SEED = 77


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`real` and its `reference`, shared by every test here."""
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GDA_WORK_DIR", str(root / "work"))
        reference.run(tiny_config(), snapshot=write_real(root / "real"), out=root / "reference")
    return root


@pytest.fixture
def assessed(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[Item]], Verdict]:
    """Write items as a synthetic set, validate it, return the verdict."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))

    def assess(content: Sequence[Item]) -> Verdict:
        outcome = validation(world, write_set(tmp_path / "synthetic", {"train": content}), tmp_path / "out")
        verdict = read_document(outcome.output / "verdict.json", Verdict)
        assert outcome.refused == (not verdict.passed)
        return verdict

    return assess


def validation(world: Path, synthetic: Path, out: Path, *, strict: bool = False) -> Outcome:
    """Run the stage with the shared reference."""
    return validate.run(tiny_config(), synthetic=synthetic, snapshot=world / "real", reference=world / "reference", out=out, strict=strict)


def sound() -> list[Item]:
    return items(PER_CLASS, SYNTHETIC_SEED)


def real_pixels(world: Path, split: str) -> list[np.ndarray]:
    """Images of a real split, as stored."""
    return [to_array(decode(record.image, name=record.key)) for record in read_shard(world / "real" / f"{split}-000000.tar", of_test=True)]


def failed(verdict: Verdict) -> set[str]:
    return {name for name, measure in verdict.metrics.items() if measure.passed is False}


def test_a_sound_set_passes_and_says_what_it_was_measured_with(world: Path, assessed: Callable[[Sequence[Item]], Verdict]) -> None:
    """New images from the same source must not be refused, or nothing ever could be used."""
    verdict = assessed(sound())
    assert verdict.passed, verdict.reasons
    assert verdict.reasons == ()
    fid = verdict.metrics["fid"]
    assert fid.extractor is not None
    assert fid.extractor.startswith("glyph@")
    assert fid.reference_digest == reference.LabelReference.open(world / "reference").index.digest
    assert fid.n == 54  # half of 108 real train and val images, on both sides
    assert None not in (fid.value, fid.low, fid.high, fid.floor, fid.limit)


def test_missing_class(assessed: Callable[[Sequence[Item]], Verdict]) -> None:
    """A class without images is refused by name."""
    verdict = assessed([item for item in sound() if item.label != "blue"])
    assert not verdict.passed
    assert any("the classes of the images are not those of the real set: there are none of blue" in reason for reason in verdict.reasons)


def test_unbalanced_classes(assessed: Callable[[Sequence[Item]], Verdict]) -> None:
    """Half a class missing is beyond the largest accepted ratio."""
    content = sound()
    verdict = assessed([item for i, item in enumerate(content) if item.label != "blue" or i < len(content) // 2])
    assert "class_ratio" in failed(verdict)
    assert any("2.00 times the images of the smallest" in reason for reason in verdict.reasons)


def test_repeated_images(assessed: Callable[[Sequence[Item]], Verdict]) -> None:
    """Exact duplicates are counted by their pixels, whatever their keys and seeds."""
    content = sound()
    verdict = assessed(changed(content, range(8, 20), lambda item, place: with_pixels(item, content[place % 4].rgb)))
    assert "duplicate_fraction" in failed(verdict)
    assert any("10.0% of the 120 images repeat another one exactly; at most 1.0% is accepted" in reason for reason in verdict.reasons)


def test_copies_of_training_images(world: Path, assessed: Callable[[Sequence[Item]], Verdict]) -> None:
    """A generator that returns its training images with a little noise is found, though no pixel hash matches."""
    train, rng = real_pixels(world, "train"), np.random.default_rng(0)

    def copy(item: Item, place: int) -> Item:
        source = CLASSES.index(item.label) + 4 * (place // 4)
        noisy = np.clip(train[source] + rng.normal(0, 6, train[source].shape), 0, 255)
        return with_pixels(item, noisy.astype(np.uint8))

    verdict = assessed(changed(sound(), range(40), copy))
    assert "copy_fraction" in failed(verdict)
    assert verdict.metrics["exact_train"].value == 0
    assert verdict.metrics["copy_fraction"].value >= 0.3  # 40 of 120 were planted


@pytest.mark.parametrize("split", ["val", "test"])
def test_one_held_out_image_slipped_in(split: str, world: Path, tmp_path: Path, assessed: Callable[[Sequence[Item]], Verdict]) -> None:
    """A single image of a held-out split refuses the set, and the page shows the pair."""
    leaked = real_pixels(world, split)[5]
    verdict = assessed(changed(sound(), [5], lambda item, place: with_pixels(item, leaked)))
    assert f"exact_{split}" in failed(verdict)
    assert any(f"1 of 120 images are pixel for pixel images of the {split} split; none may be" in reason for reason in verdict.reasons)
    page = (tmp_path / "out" / "index.html").read_text()
    assert f"{split} {split}-0005" in page


@pytest.mark.parametrize("disguise", [as_jpeg, lambda rgb: rgb[:, ::-1].copy()], ids=["re-encoded", "mirrored"])
def test_a_test_image_in_disguise(
    disguise: Callable[[np.ndarray], np.ndarray], world: Path, assessed: Callable[[Sequence[Item]], Verdict]
) -> None:
    """Re-encoding or mirroring does not hide a test image."""
    leaked = disguise(real_pixels(world, "test")[5])
    verdict = assessed(changed(sound(), [5], lambda item, place: with_pixels(item, leaked)))
    assert verdict.metrics["exact_test"].value == 0
    assert "near_test" in failed(verdict)


def test_swapped_labels_of_two_classes(assessed: Callable[[Sequence[Item]], Verdict]) -> None:
    """Two classes that trade names are refused, for the labels and not for the pictures."""
    other = {"red": "green", "green": "red", "blue": "blue", "grey": "grey"}
    verdict = assessed([replace(item, label=other[item.label]) for item in sound()])
    assert {"label_agreement", "label_agreement_worst_class"} <= failed(verdict)
    assert "fid" not in failed(verdict)


def test_a_few_swapped_labels_are_listed(tmp_path: Path, assessed: Callable[[Sequence[Item]], Verdict]) -> None:
    """Five per cent of wrong labels need not refuse a set, but at least nine in ten of them are named."""
    wrong = list(range(0, 120, 20))
    assessed(changed(sound(), wrong, lambda item, place: replace(item, label=CLASSES[(CLASSES.index(item.label) + 1) % 4])))
    listed = (tmp_path / "out" / "suspects.csv").read_text()
    assert sum(f"train-{i:04d}," in listed for i in wrong) >= 0.9 * len(wrong)


def test_wrong_size(assessed: Callable[[Sequence[Item]], Verdict]) -> None:
    """An image of another size than the rest of its set is refused: one generator samples one size."""
    odd = items(1, SYNTHETIC_SEED, size=24)[0]
    verdict = assessed(changed(sound(), [5], lambda item, place: replace(item, rgb=odd.rgb)))
    assert not verdict.passed
    assert any("decoded_width" in reason for reason in verdict.reasons)


def test_a_set_may_have_another_size_than_the_real_images(assessed: Callable[[Sequence[Item]], Verdict]) -> None:
    """A generator samples at its own size, and every later stage resizes both sets alike: real images may be 8 px and sampled ones 28."""
    verdict = assessed(items(PER_CLASS, SYNTHETIC_SEED, size=24))
    assert not any("decoded" in reason for reason in verdict.reasons)


def test_the_size_expected_is_the_generators(tmp_path: Path) -> None:
    """With the generator at hand, what its last stage samples is expected of every image."""
    generator = tmp_path / "generator"
    (generator / "base" / "unet").mkdir(parents=True)
    (generator / "base" / "unet" / "config.json").write_text('{"sample_size": 99}')
    assert validate._generated_size(generator) == (99, 99)
    (generator / "super_resolution" / "unet").mkdir(parents=True)
    (generator / "super_resolution" / "unet" / "config.json").write_text('{"sample_size": 128}')
    assert validate._generated_size(generator) == (128, 128)
    assert validate._generated_size(tmp_path) is None


def test_an_image_that_stops_half_way(assessed: Callable[[Sequence[Item]], Verdict]) -> None:
    """A truncated image whose checksum is right (it was written so) is counted, not skipped."""
    verdict = assessed(changed(sound(), [3], lambda item, place: replace(item, encoded=encode_png(item.rgb)[:-40])))
    assert verdict.metrics["undecodable"].value == 1
    assert {"undecodable", "failed_expectations"} <= failed(verdict)


def test_incomplete_and_mixed_provenance(assessed: Callable[[Sequence[Item]], Verdict]) -> None:
    """A set whose images cannot be reproduced is refused: missing guidance, a repeated seed, two schedulers."""

    def spoil(item: Item, place: int) -> Item:
        return replace(item, meta=item.meta | [{"guidance_scale": None}, {"seed": 0}, {"scheduler": "ddpm"}][place])

    reasons = assessed(changed(sound(), [4, 5, 6], spoil)).reasons
    assert "1 of 120 records have no guidance_scale" in reasons
    assert "2 of 120 records share their seed with another, such as 0" in reasons
    assert any("differ from the rest in their scheduler" in reason for reason in reasons)


def test_fewer_images_than_planned(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set that was cut down after it was planned is refused, though its own index is consistent."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    config = parse_config(dump_config(tiny_config()) | {"sample": {"images_per_class": PER_CLASS}}, where="test")
    plan = make_plan(equal_quotas(CLASSES, PER_CLASS), seed=config.seed, shard_size=250, batch_size=50)
    cut = write_set(tmp_path / "synthetic", {"train": sound()[:-4]}, plan_digest=plan.digest)
    outcome = validate.run(config, synthetic=cut, snapshot=world / "real", reference=world / "reference", out=tmp_path / "out")
    reasons = read_document(outcome.output / "verdict.json", Verdict).reasons
    assert any("the set has 116 images; 120 were planned" in reason for reason in reasons)


def test_images_of_another_generator(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict on one generator's images must not be given to another's."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    card = GeneratorCard(family="pixel_cascade", digest="cd" * 32)
    (tmp_path / "generator").mkdir()
    (tmp_path / "generator" / "generator.json").write_bytes(dump_document(card))
    outcome = validate.run(
        tiny_config(),
        synthetic=write_set(tmp_path / "synthetic", {"train": sound()}),
        snapshot=world / "real",
        reference=world / "reference",
        generator=tmp_path / "generator",
        out=tmp_path / "out",
    )
    reasons = read_document(outcome.output / "verdict.json", Verdict).reasons
    assert any("120 of 120 images are of another generator than cdcd" in reason for reason in reasons)


def test_every_check_breaking_down_refuses_the_set(assessed: Callable[[Sequence[Item]], Verdict], monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception inside the gate must never look like a pass, and each is named."""

    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("planted")

    for name in ("check_structure", "check_labels", "closeness", "duplicates", "find_leaks", "check_copies"):
        monkeypatch.setattr(inspection, name, broken)
    verdict = assessed(sound())
    assert not verdict.passed
    assert sum("ZeroDivisionError: planted" in reason for reason in verdict.reasons) == 6


def test_one_check_breaking_down_is_enough(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric that is only reported refuses as well when it cannot be measured."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.setattr(closeness, "fid_of_split", lambda *args, **kwargs: (_ for _ in ()).throw(ValueError("planted")))
    outcome = validation(world, write_set(tmp_path / "synthetic", {"train": sound()}), tmp_path / "out")
    assert outcome.refused


def test_what_the_environment_lacks_is_an_error_and_not_a_verdict() -> None:
    """Missing weights say nothing about the set: no verdict may be written for them."""
    found = inspection.Inspection(subjects=None)  # type: ignore[arg-type]
    with pytest.raises(MissingError):
        found.attempt("x", lambda: (_ for _ in ()).throw(MissingError("no weights")))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_is_no_verdict(number: int) -> None:
    """Nor does a full disk say anything about the set; an error of another kind still refuses."""
    found = inspection.Inspection(subjects=None)  # type: ignore[arg-type]
    with pytest.raises(MissingError, match="storage cannot be used"):
        found.attempt("x", lambda: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
    assert found.failures == []
    assert found.attempt("x", lambda: (_ for _ in ()).throw(OSError("odd"))) is None
    assert len(found.failures) == 1


def test_measures_turn_nan_into_nothing() -> None:
    """NaN compares false with every limit; it must not survive to the comparison."""
    assert inspection.measure(float("nan"), n=3) == Measure(value=None, n=3)


def test_strict_refuses_after_publishing_and_runs_are_identical_and_reused(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under --strict the report must still be there to read; the same input gives the same bytes; a second call does nothing."""
    synthetic = write_set(tmp_path / "synthetic", {"train": [item for item in sound() if item.label != "red"]})
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    with pytest.raises(RefusedError, match="there are none of red"):
        validation(world, synthetic, tmp_path / "strict", strict=True)
    again = validation(world, synthetic, tmp_path / "again")
    files = tree(again.output)
    assert {"verdict.json", "index.html", "expectations.json", "classes.csv", "suspects.csv"} <= files.keys()
    assert files == tree(tmp_path / "strict")
    openings = read_ledger()
    of_test = Snapshot.open(world / "real").split_digest("test")
    assert [(line["digest"], line["purpose"]) for line in openings] == [(of_test, "leak_check")] * 2
    reused = validation(world, synthetic, tmp_path / "again")
    assert reused.reused
    assert reused.refused
    assert read_ledger() == openings
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in again.output.rglob("*") if path.is_file())


def test_without_a_reference_one_is_computed(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with two folders gets the same numbers as one with a reference at hand."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    synthetic = write_set(tmp_path / "synthetic", {"train": sound()})
    alone = validate.run(tiny_config(), synthetic=synthetic, snapshot=world / "real", out=tmp_path / "alone")
    given = validation(world, synthetic, tmp_path / "given")
    assert alone.digest == given.digest


def delivered(kind: str, content: Sequence[Item], root: Path) -> str:
    """The images as another generator's owner hands them in: a folder, ADM's .npz or WebDataset tars."""
    root.mkdir()
    if kind == "npz":
        labels = np.array([sorted(CLASSES).index(item.label) for item in content])
        np.savez(root / "samples.npz", np.stack([item.rgb for item in content]), labels)
        (root / "classnames.txt").write_text("".join(f"{name}\n" for name in sorted(CLASSES)))
        return str(root / "samples.npz")
    if kind == "tars":
        with ShardWriter(str(root / "part-%03d.tar"), maxcount=50, verbose=0) as writer:
            for i, item in enumerate(content):
                writer.write({"__key__": f"{i:05d}", "png": encode_png(item.rgb), "cls": item.label})
        return str(root / "*.tar")
    for i, item in enumerate(content):
        (root / item.label).mkdir(exist_ok=True)
        (root / item.label / f"{i:05d}.png").write_bytes(encode_png(item.rgb))
    return str(root)


@pytest.mark.parametrize("kind", ["folder", "npz", "tars"])
def test_another_generators_set_is_assessed_on_equal_terms(kind: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sound set without seeds or prompts passes from every kind of source, and one with swapped labels is refused for these alone."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    swapped = changed(sound(), range(0, 96, 4), lambda item, place: replace(item, label="blue" if item.label == "red" else item.label))
    for name, content in (("sound", sound()), ("swapped", swapped)):
        source = delivered(kind, content, tmp_path / name)
        snapshot.run(tiny_config(), source=source, out=tmp_path / f"{name}-set", as_synthetic=True)
        verdict = read_document(validation(world, tmp_path / f"{name}-set", tmp_path / f"{name}-out").output / "verdict.json", Verdict)
        if name == "sound":
            assert verdict.passed, verdict.reasons
            assert verdict.metrics["failed_expectations"].value == 0
        else:
            assert "label_agreement_worst_class" in failed(verdict)
            assert not any("no value" in reason or "provenance" in reason for reason in verdict.reasons)


def test_a_union_of_runs_is_not_refused_for_having_several_settings(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `gda merge` allows, validation does not refuse; a set that does not say that it was merged is held to one setting."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    content = changed(sound(), range(60, 120), lambda item, place: replace(item, meta=item.meta | {"guidance_scale": 3.0}))
    path = write_set(tmp_path / "synthetic", {"train": content})
    for name, provenance in (("sampled", {}), ("merged", {"merged": "a b", "guidance_scale": "1.5 | 3.0"})):
        index = json.loads((path / "snapshot.json").read_text())
        (path / "snapshot.json").write_text(json.dumps(index | {"provenance": provenance}))
        verdict = read_document(validation(world, path, tmp_path / f"{name}-out").output / "verdict.json", Verdict)
        assert verdict.passed == (name == "merged"), verdict.reasons


def test_features_kept_while_sampling_give_the_same_verdict(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte of the output is the same, whether features were kept or are extracted; rows of images of another size do not count."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    outputs = []
    for name, kept, size in (("none", None, 0), ("other", "rows", 32), ("statistics", "statistics", 28), ("rows", "rows", 28)):
        synthetic = write_set(tmp_path / name, {"train": sound()})
        if kept is not None:
            keep_features(synthetic, kept, size)
        with monkeypatch.context() as patch:
            if name == "rows":
                patch.setattr(inspection, "extract_by_shard", None)
            out = validation(world, synthetic, tmp_path / f"{name}-out").output
        outputs.append(tree(out))
    assert "verdict.json" in outputs[0]
    assert outputs[0] == outputs[1] == outputs[2] == outputs[3]


def test_kept_features_that_lie_are_an_error(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that fit the images by every checksum, and are better than its own, must not give a verdict, nor may damaged ones."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    synthetic = write_set(tmp_path / "synthetic", {"train": sound()})
    shard, real = synthetic / "train-000000.tar", reference.LabelReference.open(world / "reference").pooled
    keep_features(synthetic, "rows")
    forge(shard, lambda features: np.resize(real, features.shape))
    with pytest.raises(DataError, match=r"train-000000\.safetensors: the features of 'train-\d+' are not those of its image"):
        validation(world, synthetic, tmp_path / "out")
    features_path(shard).write_bytes(features_path(shard).read_bytes()[:-4])
    with pytest.raises(DataError, match=r"train-000000\.safetensors: not a whole safetensors file .* remove the folder 'features'"):
        validation(world, synthetic, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_that_changed_since_are_measured_again(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept features say nothing of pixels other than the manifest's, nor of records that do not decode."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    spoilt = changed(sound(), [3], lambda item, place: replace(item, encoded=encode_png(item.rgb[::-1].copy())))
    synthetic = write_set(tmp_path / "synthetic", {"train": spoilt})
    keep_features(synthetic, "rows")
    forge(synthetic / "train-000000.tar", lambda features: features + 1)
    verdict = read_document(validation(world, synthetic, tmp_path / "out").output / "verdict.json", Verdict)
    assert "failed_expectations" in failed(verdict)
