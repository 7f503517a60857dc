"""replace_rejected: images at fault go, the next ones of their classes come, and the set is assessed as a whole again."""

import csv
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trees import tree
from validation_sets import CLASSES, COUNTS, items, render, tiny_config, write_real, write_set

from gda.artifacts.document import read_document
from gda.artifacts.verdict import Verdict
from gda.config.load import Config
from gda.data.images.codecs import decode, to_array
from gda.data.store.snapshot import Snapshot
from gda.data.store.verify import verify_snapshot
from gda.demo_base.build import build_tiny_cascade
from gda.errors import UsageError
from gda.generator.sampling import sample_shards
from gda.io.shards import read_shard
from gda.stages import reference, sample, validate

PER_CLASS = 40
WRONG = 8  # one seed in so many gives an image of another class


class Painter:
    """In place of a generator's sampler: a picture of the prompt's colour, or what `spoil` makes of some seeds."""

    def __init__(self, spoil):
        self.spoil = spoil
        self.model = SimpleNamespace(image_size=16)

    def sample(self, prompts, seeds, settings, start=None):
        images = [self._image(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

    def _image(self, prompt, seed):
        spoilt = self.spoil(prompt, seed)
        return render(prompt, np.random.default_rng(seed)) if spoilt is None else spoilt


def another_colour(prompt, seed, *, every=WRONG):
    """One in `every` images shows the next class."""
    return render(CLASSES[(CLASSES.index(prompt) + 1) % 4], np.random.default_rng(seed)) if seed % every == 0 else None


def configured(**validate_changes) -> Config:
    given = tiny_config(**{"on_fail": "replace_rejected", "min_label_agreement": 0.9, "min_class_agreement": 0.5, **validate_changes})
    changes = {"images_per_class": PER_CLASS, "batch_size": 10, "shard_size": 40, "guidance_scale": 1.0}
    return given.model_copy(update={"sample": given.sample.model_copy(update=changes)})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A real set with its reference, and a generator's folder."""
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GDA_WORK_DIR", str(root / "work"))
        reference.run(tiny_config(), snapshot=write_real(root / "real"), out=root / "reference")
    build_tiny_cascade(root / "generator")
    return root


@pytest.fixture
def assess(world, tmp_path, monkeypatch):
    """Sample one set with a painter, validate it; the verdict. `name` keeps several apart."""
    monkeypatch.setattr("gda.generator.sampling.replacements.run_parallel", lambda function, items, **_: [function(item) for item in items])
    monkeypatch.setattr(sample, "run_parallel", lambda function, items, **_: [function(item) for item in items])

    def run(spoil, config, name="a"):
        monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / f"work-{name}"))
        monkeypatch.setattr(sample_shards, "_sampler_of", lambda _: Painter(spoil))
        sample.run(config, generator=str(world / "generator"), snapshot=world / "real", out=tmp_path / name / "set")
        return check(world, tmp_path / name, config)

    return run


def check(world, folder, config, **changes):
    given = {"generator": world / "generator", "accepted": folder / "accepted"} | changes
    validate.run(config, synthetic=folder / "set", snapshot=world / "real", reference=world / "reference", out=folder / "report", **given)
    return read_document(folder / "report" / "verdict.json", Verdict)


def test_images_at_fault_are_replaced(assess, world, tmp_path):
    """The set passes after it was refused; what was wrong is gone, the rest has its bytes, and new images go on in the plan's order."""
    verdict = assess(another_colour, configured())
    assert verdict.passed, verdict.reasons
    filtering = verdict.filtering
    assert filtering.rounds >= 1
    assert any("confirm" in reason for reason in filtering.reasons)
    assert filtering.metrics["label_agreement"].value < 0.9 < verdict.metrics["label_agreement"].value

    given, assessed = Snapshot.open(tmp_path / "a" / "set"), Snapshot.open(tmp_path / "a" / "accepted")
    assert verify_snapshot(assessed.path) == []
    assert (filtering.synthetic_digest, verdict.synthetic_digest) == (given.digest, assessed.digest)
    assert assessed.index.counts == given.index.counts == {"train": dict.fromkeys(CLASSES, PER_CLASS)}
    assert assessed.index.provenance["replaced_from"] == given.digest

    rows = {row["key"]: row for row in csv.DictReader((tmp_path / "a" / "report" / "dropped.csv").open())}
    before, after = set(given.manifest()["key"]), set(assessed.manifest()["key"])
    assert before - after == {key for key in rows if key in before}
    assert len(rows) == sum(filtering.dropped.values()) == int(assessed.index.provenance["replaced_images"])
    assert filtering.dropped == {"label not confirmed": len(rows)}
    wrong = {row.key for row in given.manifest().itertuples() if row.seed % WRONG == 0}
    assert len(wrong & rows.keys()) >= 0.9 * len(wrong) > 10
    assert not wrong & after - {key for key in wrong if key not in rows}
    indices = {label: [] for label in range(4)}
    for row in assessed.manifest().itertuples():
        indices[row.label].append(int(row.key.split("-")[1]))
    last = [max(numbers) for numbers in indices.values()]
    assert all(len(set(numbers)) == PER_CLASS for numbers in indices.values())
    assert sum(last) + 4 == 4 * PER_CLASS + len(rows)  # no image of the sequence was passed over

    sampled = {record.key: record for path in sorted(given.path.glob("*.tar")) for record in read_shard(path)}
    kept = [record for path in sorted(assessed.path.glob("*.tar")) for record in read_shard(path) if record.key in sampled]
    assert len(kept) > 3 * PER_CLASS
    assert all(sampled[record.key] == record for record in kept)


def test_the_same_twice(assess, tmp_path):
    """Equal input gives equal bytes, dropped images and their successors among them."""
    assess(another_colour, configured(), "a")
    assess(another_colour, configured(), "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_generator_that_is_mostly_wrong_is_not_mended(assess, tmp_path):
    """Beyond the accepted share the whole set is refused, says why, and nothing is sampled."""
    verdict = assess(lambda prompt, seed: another_colour(prompt, seed, every=2), configured())
    assert not verdict.passed
    assert verdict.filtering is None
    assert any("would have to be dropped; at most 20.0% is accepted" in reason for reason in verdict.reasons)
    assert Snapshot.open(tmp_path / "a" / "accepted").digest == Snapshot.open(tmp_path / "a" / "set").digest


def test_rounds_end(assess):
    """Replacements are as often wrong as those before: with a limit that one round cannot reach, one round refuses and more pass."""
    limits = {"min_class_agreement": 0.0, "max_replaced_fraction": 0.5, "min_label_agreement": 0.965}
    spoil = lambda prompt, seed: another_colour(prompt, seed, every=3)  # noqa: E731
    one = assess(spoil, configured(**limits, replacement_rounds=1), "one")
    assert (one.passed, one.filtering.rounds) == (False, 1)
    several = assess(spoil, configured(**limits, replacement_rounds=6), "several")
    assert several.passed, several.reasons
    assert 1 < several.filtering.rounds <= 6


def test_the_test_split_mends_nothing(assess, world, tmp_path):
    """An image of the test split refuses the set for good: choosing by that split would make it worthless as a test."""
    leak = to_array(decode(next(iter(read_shard(world / "real" / "test-000000.tar", of_test=True))).image, name="x"))
    verdict = assess(lambda prompt, seed: leak if prompt == "red" and seed % 5 == 0 else another_colour(prompt, seed), configured())
    assert not verdict.passed
    assert verdict.filtering is None
    assert any("images of the test split" in reason for reason in verdict.reasons)
    assert Snapshot.open(tmp_path / "a" / "accepted").digest == Snapshot.open(tmp_path / "a" / "set").digest


def test_validation_images_do_not_choose_what_is_dropped(assess, world, tmp_path, monkeypatch):
    """A real set with other validation images, all wrongly labelled: the same images are dropped, or training on the rest knows of val."""
    assert assess(another_colour, configured(), "a").filtering is not None
    wrong = [replace(item, label=CLASSES[(CLASSES.index(item.label) + 1) % 4]) for item in items(COUNTS["val"], 77)]
    other = tmp_path / "other"
    write_set(other / "real", {"train": items(COUNTS["train"], 0), "val": wrong, "test": items(COUNTS["test"], 2)}, kind="real")
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work-other"))
    reference.run(tiny_config(), snapshot=other / "real", out=other / "reference")
    given = {"snapshot": other / "real", "reference": other / "reference", "generator": world / "generator", "accepted": other / "accepted"}
    sample.run(configured(), generator=str(world / "generator"), snapshot=other / "real", out=other / "set")
    validate.run(configured(), synthetic=other / "set", out=other / "report", **given)
    dropped = (tmp_path / "a" / "report" / "dropped.csv").read_text("utf-8")
    assert dropped.count("label not confirmed") > 10
    assert (other / "report" / "dropped.csv").read_text("utf-8") == dropped


def test_copies_and_repeats_go_too(assess, world, tmp_path):
    """Images of the train and val splits, and one picture that comes again and again, are taken out and stated by kind."""
    train, val = (to_array(decode(next(iter(read_shard(world / "real" / f"{s}-000000.tar"))).image, name=s)) for s in ("train", "val"))
    spoilt = {0: train, 1: val, 2: render("red", np.random.default_rng(9))}
    verdict = assess(
        lambda prompt, seed: spoilt.get(seed % 8) if prompt == "red" else None,
        configured(max_duplicate_fraction=0.0, replacement_rounds=10),
    )
    assert verdict.passed, verdict.reasons
    assert {"is a training image", "is a validation image", "repeats another image"} <= verdict.filtering.dropped.keys()
    hashes = Snapshot.open(tmp_path / "a" / "accepted").manifest()["pixel_sha256"]
    real = Snapshot.open(world / "real").manifest()["pixel_sha256"]
    assert not hashes.duplicated().any()
    assert not set(hashes) & set(real)


def test_disguised_copies_go_too(assess, world, tmp_path):
    """Mirrored training images, which no pixel hash finds."""
    train = [to_array(decode(record.image, name=record.key)) for record in read_shard(world / "real" / "train-000000.tar")]
    reds = train[:: len(CLASSES)]

    def mirrored(prompt, seed):
        return reds[seed % len(reds)][:, ::-1].copy() if prompt == "red" and seed % 4 == 0 else None

    limits = {"max_copy_fraction": 0.01, "max_duplicate_fraction": 1.0, "max_near_duplicate_fraction": 1.0, "limits": ()}
    verdict = assess(mirrored, configured(**limits, replacement_rounds=10))
    assert any("training images but for encoding" in reason for reason in verdict.filtering.reasons)
    assert "is nearly a training image" in verdict.filtering.dropped
    before, after = verdict.filtering.metrics["near_train"], verdict.metrics["near_train"]
    assert (before.passed, after.passed) == (False, True)
    assert after.value < before.value


def test_a_set_that_passes_is_left_alone(assess, tmp_path):
    """Nothing is dropped from a sound set, under either policy; the set that was assessed is the given one, without a copy of its bytes."""
    verdict = assess(lambda prompt, seed: None, configured())
    assert (verdict.passed, verdict.filtering) == (True, None)
    given, assessed = tmp_path / "a" / "set", tmp_path / "a" / "accepted"
    assert tree(assessed, without=("fingerprint.json",)) == tree(given, without=("fingerprint.json",))
    assert all((assessed / path.name).samefile(path) for path in given.glob("*.tar"))


def test_what_replacing_needs(assess, world, tmp_path):
    """Missing flags and another configuration are named before anything is measured."""
    assess(lambda prompt, seed: None, configured())
    with pytest.raises(UsageError, match="replace_rejected: give --accepted"):
        check(world, tmp_path / "a", configured(), accepted=None)
    with pytest.raises(UsageError, match="replace_rejected: give --generator"):
        check(world, tmp_path / "a", configured(), generator=None)
    other = configured().model_copy(update={"seed": 5})
    with pytest.raises(UsageError, match="was not generated by this configuration"):
        check(world, tmp_path / "a", other)


def test_the_assessed_set_comes_back(assess, world, tmp_path):
    """Removed, the given set is put there again by the same command; a replaced one is requested by sampling again, not passed over."""
    from shutil import rmtree

    config = configured()
    assess(lambda prompt, seed: None, config, "sound")
    rmtree(tmp_path / "sound" / "accepted")
    check(world, tmp_path / "sound", config)
    assert verify_snapshot(tmp_path / "sound" / "accepted") == []
    assess(another_colour, config, "spoilt")
    rmtree(tmp_path / "spoilt" / "accepted")
    with pytest.raises(UsageError, match="is gone; remove"):
        check(world, tmp_path / "spoilt", config)
