"""Plans beyond equal quotas of prompts: real images to start from, unequal quotas, other formats, averages, precision."""

import json
import shutil

import pytest
import torch
from two_colours import two_colours

from gda.artifacts.document import dump_document
from gda.artifacts.tuning import SamplingSettings, Settings
from gda.config.load import load_config
from gda.data.store.in_memory import load_images
from gda.data.store.merge import merge_snapshots
from gda.data.store.snapshot import Snapshot
from gda.data.store.verify import verify_snapshot
from gda.errors import ConfigError, DataError, MissingError, UsageError
from gda.generator.sampling import sample_shards
from gda.generator.sampling.reproduce import Recorded, choose_batches, compare_batches, find_generator
from gda.generator.sampling.request import prompts_of
from gda.generator.weights.directory import read_card
from gda.generator.weights.reaverage import average_generator
from gda.io.shards import read_shard
from gda.stages import finetune, sample, snapshot, validate

SMALL = (
    "sample.images_per_class=6",
    "sample.batch_size=2",
    "sample.shard_size=4",
    "sample.guidance_scale=1.5",
    "sample.num_inference_steps=4",
    "sample.sr_num_inference_steps=4",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Twelve red and twelve blue pictures as a snapshot, and a tiny cascade."""
    return two_colours(tmp_path_factory.mktemp("world"), per_class=12)


@pytest.fixture(autouse=True)
def _work(tmp_path, monkeypatch):
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))


def _generate(world, out, *changes, **options):
    config = load_config(None, (*SMALL, *changes))
    return sample.run(config, generator=str(world / "generator"), snapshot=world / "real", out=out, **options)


def _records(out):
    return [record for shard in sorted(out.glob("*.tar")) for record in read_shard(shard)]


def test_images_start_from_real_training_images(world, tmp_path):
    """Every record names the training image it came from and how far it was noised; sources and strengths take turns."""
    out = _generate(world, tmp_path / "set", "sample.mode=image_to_image", "sample.strengths=[0.5, 1.0]").output
    assert verify_snapshot(out) == []
    rows, real = Snapshot.open(out).manifest(), Snapshot.open(world / "real").manifest("train").set_index("key")
    assert rows["class"].value_counts().to_dict() == {"red": 6, "blue": 6}
    assert set(rows["source_image"]) <= set(real.index)
    assert (real.loc[rows["source_image"], "class"].to_numpy() == rows["class"].to_numpy()).all()
    assert rows["strength"].value_counts().to_dict() == {0.5: 6, 1.0: 6}
    assert Snapshot.open(out).index.provenance["sources"] == Snapshot.open(world / "real").digest


def test_what_is_sampled_depends_on_the_source(world, tmp_path):
    """Low strengths keep the colour of their source: red pictures stay redder than blue ones, whatever the untrained network thinks."""
    out = _generate(world, tmp_path / "set", "sample.mode=image_to_image", "sample.strengths=[0.25]", "sample.guidance_scale=1").output
    sampled = load_images(Snapshot.open(out), "train", size=16)
    redness = (sampled.images[:, 0].float() - sampled.images[:, 2].float()).mean((1, 2))
    red = [info.name for info in Snapshot.open(out).classes].index("red")
    assert redness[sampled.labels == red].min() > redness[sampled.labels != red].max()


def test_images_towards_another_class_say_so(world, tmp_path):
    """Label and prompt are the target's; the source's class and the soft label by strength are on record, and that is what is trained."""
    changes = ("sample.mode=image_to_image", "sample.strengths=[0.75]", "sample.other_class_fraction=0.5")
    out = _generate(world, tmp_path / "set", *changes).output
    rows = Snapshot.open(out).manifest()
    other = rows[rows["class"] != rows["source_class"]]
    assert len(other) == 6
    assert (rows["prompt"] == rows["class"]).all()
    real = Snapshot.open(world / "real").manifest("train").set_index("key")
    assert (real.loc[other["source_image"], "class"].to_numpy() == other["source_class"].to_numpy()).all()
    soft = {record.key: record.meta["soft_label"] for record in _records(out)}
    for row in rows.to_dict("records"):
        mixed = {row["class"]: 0.75, row["source_class"]: 0.25}
        assert soft[row["key"]] == (mixed if row["class"] != row["source_class"] else {row["class"]: 1.0})
    loaded = load_images(Snapshot.open(out), "train", size=8)
    for key, label, second, share in zip(loaded.keys, loaded.labels, loaded.second, loaded.first_share, strict=True):
        rest = {} if second < 0 else {loaded.classes[second]: 1 - float(share)}
        assert soft[key] == {loaded.classes[label]: float(share)} | rest


def test_sources_are_part_of_what_is_requested(world, tmp_path):
    """Another real snapshot of the same classes is another fingerprint in image-to-image, and none where images come from prompts alone."""
    other = snapshot.run(load_config(None, ("snapshot.split_key=other",)), source=str(world / "images"), out=tmp_path / "other").output
    config = load_config(None, (*SMALL, "sample.mode=image_to_image"))
    one = sample.run(config, generator=str(world / "generator"), snapshot=world / "real", out=tmp_path / "one")
    two = sample.run(config, generator=str(world / "generator"), snapshot=other, out=tmp_path / "two")
    assert one.digest != two.digest
    with pytest.raises(UsageError, match="made with other settings"):
        sample.run(config, generator=str(world / "generator"), snapshot=other, out=tmp_path / "one")


@pytest.mark.parametrize(("name", "extension"), [("webp", "webp"), ("jpeg", "jpg")])
def test_other_formats_verify_and_stay_marked(world, tmp_path, name, extension):
    """The manifest holds what a reader decodes, and a copy of the files is refused as a real set."""
    out = _generate(world, tmp_path / "set", f"sample.image_format={name}").output
    assert verify_snapshot(out) == []
    records = _records(out)
    assert {record.extension for record in records} == {extension}
    for number, record in enumerate(records):
        folder = tmp_path / "copied" / ("red" if number % 2 else "blue")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{record.key}.{extension}").write_bytes(record.image)
    with pytest.raises(DataError, match="marked as synthetic"):
        snapshot.run(load_config(None), source=str(tmp_path / "copied"), out=tmp_path / "real")


def test_lossless_formats_hold_equal_pixels(world, tmp_path):
    """The content digest is that of the pixels, whatever they are stored in."""
    assert _generate(world, tmp_path / "png").digest == _generate(world, tmp_path / "webp", "sample.image_format=webp").digest


def test_features_of_lossy_images_are_refused(world, tmp_path):
    """What is measured while sampling would not be what a reader measures."""
    with pytest.raises(ConfigError, match=r"sample\.features.*accepted: png, webp"):
        _generate(world, tmp_path / "set", "sample.image_format=jpeg", "sample.features=rows")


def test_unequal_quotas_are_sampled_and_assessed_by_their_plan(world, tmp_path):
    """A set as unbalanced as its plan is not refused for that; the same set against an equal plan is."""
    table = tmp_path / "quotas.yaml"
    table.write_text("red: 8\nblue: 2\n")
    changes = ("sample.quota=table", f"sample.quota_file={table}")
    out = _generate(world, tmp_path / "set", *changes).output
    assert Snapshot.open(out).manifest()["class"].value_counts().to_dict() == {"red": 8, "blue": 2}
    real = Snapshot.open(world / "real")
    planned = validate.original_plan(load_config(None, (*SMALL, *changes)), Snapshot.open(out), real)
    assert dict(zip([info.name for info in real.classes], planned.counts, strict=True)) == {"red": 8, "blue": 2}
    assert validate._with_planned_ratio(load_config(None, SMALL), planned).validate_.max_class_ratio == pytest.approx(1.5 * 4)
    assert validate.original_plan(load_config(None, SMALL), Snapshot.open(out), real) is None


def test_each_class_is_sampled_from_its_own_prompt(world):
    """Prompts go with the class, whatever the order in which the card has them and however they sort."""
    card = read_card(str(world / "generator")).model_copy(update={"prompts": {"red": "a red one", "blue": "the blue one"}})
    classes = Snapshot.open(world / "real").classes
    assert [(info.name, prompt) for info, prompt in zip(classes, prompts_of(card, classes), strict=True)] == [
        ("blue", "the blue one"),
        ("red", "a red one"),
    ]


def test_a_class_that_the_generator_was_not_taught_is_named(world, tmp_path):
    """A fine-tuned generator's card lists its prompts: a class beyond them is refused, not sampled from its bare name."""
    generator = tmp_path / "taught"
    shutil.copytree(world / "generator", generator)
    card = read_card(str(generator)).model_copy(update={"prompts": {"red": "a red one"}})
    (generator / "generator.json").write_bytes(dump_document(card))
    with pytest.raises(DataError, match="not taught class 'blue'; it knows 'red'"):
        sample.run(load_config(None, SMALL), generator=str(generator), snapshot=world / "real", out=tmp_path / "set")


def test_tuned_settings_fill_what_is_null(world, tmp_path):
    """Every setting that the configuration leaves open is the tuned one; what it names holds."""
    digest = read_card(str(world / "generator")).digest
    chosen = SamplingSettings(guidance_scale=2.0, num_inference_steps=3, guidance_interval=(0.2, 0.8), scheduler="ddim", sr_noise_level=2)
    tuned = Settings(
        chosen=chosen, points=(), extractor="glyph", fid_floor=None, num_images=1, generator_digest=digest, snapshot_digest="x"
    )
    (tmp_path / "settings.json").write_bytes(dump_document(tuned))
    config = load_config(
        None, ("sample.images_per_class=1", "sample.batch_size=2", "sample.shard_size=2", "sample.sr_num_inference_steps=2")
    )
    out = sample.run(
        config, generator=str(world / "generator"), snapshot=world / "real", settings=tmp_path / "settings.json", out=tmp_path / "set"
    ).output
    request = json.loads((out / "fingerprint.json").read_text())["config"]["settings"]
    assert request == json.loads(chosen.model_copy(update={"sr_num_inference_steps": 2}).model_dump_json())


def test_the_set_says_on_what_its_bits_depend(world, tmp_path):
    """Device, libraries, threads, precision and batch are on record: bits are claimed for equal ones alone."""
    message = Snapshot.open(_generate(world, tmp_path / "set").output).index.provenance
    assert {"torch", "diffusers", "numpy", "device", "threads", "precision", "compiled", "batch_size", "generator"} <= message.keys()
    assert (message["device"], message["precision"], message["batch_size"]) == ("cpu", "fp32", "2")


def test_bf16_is_another_set(world, tmp_path):
    """Precision is part of what was requested, and each record says it."""
    exact = _generate(world, tmp_path / "exact")
    close = _generate(world, tmp_path / "close", "sample.precision=bf16")
    assert exact.digest != close.digest
    assert {record.meta["precision"] for record in _records(close.output)} == {"bf16"}


def test_a_worker_loads_its_generator_once(world, tmp_path, monkeypatch):
    """Shards after the first take the loaded generator and its encoded prompts."""
    loaded, real = [], sample_shards.load_model
    monkeypatch.setattr(sample_shards, "load_model", lambda name: loaded.append(name) or real(name))
    monkeypatch.setattr(sample, "run_parallel", lambda function, items, **_: [function(item) for item in items])
    sample_shards._sampler.cache_clear()
    outcome = _generate(world, tmp_path / "set")
    assert len(list(outcome.output.glob("*.tar"))) == 3
    assert len(loaded) == 1


def test_too_little_memory_splits_the_batch_and_says_so(world, tmp_path, monkeypatch):
    """Out of memory samples the batch in halves: same plan, same keys and seeds, equal images within rounding, and a word in the record."""
    whole = _generate(world, tmp_path / "whole").output
    real = sample_shards._pixels

    def little(sampler, shared, batch):
        if len(batch) > 1:
            raise torch.OutOfMemoryError("no")
        return real(sampler, shared, batch)

    monkeypatch.setattr(sample, "run_parallel", lambda function, items, **_: [function(item) for item in items])
    monkeypatch.setattr(sample_shards, "_pixels", little)
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "elsewhere"))
    split = _generate(world, tmp_path / "split").output
    assert Snapshot.open(split).index.plan_digest == Snapshot.open(whole).index.plan_digest
    assert {record.meta["batch_size"] for record in _records(split)} == {1}
    assert all("batch_size" not in record.meta for record in _records(whole))
    one, two = (load_images(Snapshot.open(path), "train", size=16).images.int() for path in (whole, split))
    assert (one - two).abs().max() <= 2


def test_runs_of_different_seeds_are_merged(world, tmp_path):
    """A set grows by a second run: keys tell the runs apart, so that the shards are joined as they are."""
    one, two = (_generate(world, tmp_path / name, f"seed={seed}").output for seed, name in enumerate(("one", "two")))
    merged = merge_snapshots([one, two], tmp_path / "both").output
    assert verify_snapshot(merged) == []
    assert len(Snapshot.open(merged).manifest()) == 24


def test_the_tuned_average_is_what_is_sampled_from(world, tmp_path):
    """Where tuning chose a width, the set is sampled with that average, records this, passes as the generator's, and is reproducible."""
    settings = ("num_train_steps=6", "sr_num_train_steps=0", "batch_size=4", "jitter=0", "ema_snapshot_steps=2", "learning_rate=0.01")
    config = load_config(None, tuple(f"finetune.{item}" for item in settings))
    taught = finetune.run(config, snapshot=world / "real", base=str(world / "generator"), out=tmp_path / "models" / "taught").output
    digest = read_card(str(taught)).digest
    tuned = Settings(
        chosen=SamplingSettings(guidance_scale=1.5, num_inference_steps=2, sr_num_inference_steps=2),
        ema_sigma_rel=0.1,
        points=(),
        extractor="glyph",
        fid_floor=None,
        num_images=1,
        generator_digest=digest,
        snapshot_digest="x",
    )
    (tmp_path / "settings.json").write_bytes(dump_document(tuned))
    config = load_config(None, ("sample.images_per_class=1", "sample.batch_size=2", "sample.shard_size=2"))
    out = sample.run(
        config, generator=str(taught), snapshot=world / "real", settings=tmp_path / "settings.json", out=tmp_path / "data" / "set"
    ).output
    message = Snapshot.open(out).index.provenance
    assert (message["generator_averaged_from"], message["ema_sigma_rel"]) == (digest, "0.1")
    assert message["generator"] != digest
    assert validate.expected_digest(Snapshot.open(out), str(taught)) == message["generator"]
    recorded = Recorded.open(out)
    with pytest.raises(MissingError, match=r"gda ema --sigma-rel 0\.1"):
        find_generator(recorded, None, [])
    average = average_generator(taught, 0.1, tmp_path / "average").output
    sampling_again = recorded.context(find_generator(recorded, str(average), []), None)
    assert all(found.equal for found in compare_batches(recorded, sampling_again, choose_batches(recorded, 1)))
