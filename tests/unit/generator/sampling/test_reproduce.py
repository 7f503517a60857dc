"""Sampling a published set again: bit for bit from its own folder, and whatever is not what its fingerprint samples is named."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from relisted import relist
from tiny_pipelines import build_tiny_pipeline
from two_colours import two_colours

from gda.cli.main import main
from gda.config.load import load_config
from gda.data.images.codecs import decode, to_array
from gda.data.store.snapshot import Snapshot, commit_snapshot
from gda.data.store.verify import verify_snapshot
from gda.data.store.writer import ImageRecord, write_image_shard
from gda.demo_base.build import build_tiny_cascade
from gda.errors import DataError, MissingError
from gda.generator.planning.plan import image_key, image_seed
from gda.generator.sampling import sample_shards
from gda.generator.sampling.reproduce import BatchComparison, Recorded, choose_batches, compare_batches, find_generator, find_sources
from gda.generator.weights.directory import DEMO_BASE
from gda.io.shards import read_shard
from gda.stages import finetune, sample

SMALL = (
    "sample.images_per_class=7",
    "sample.batch_size=3",
    "sample.shard_size=6",
    "sample.guidance_scale=1.5",
    "sample.num_inference_steps=4",
    "sample.sr_num_inference_steps=2",
)
IMAGES = ("sample.mode=image_to_image", "sample.strengths=[0.5,1.0]", "sample.other_class_fraction=0.3")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny cascade, a real snapshot of two classes distinguished by colour, and a plain set sampled of them."""
    root = two_colours(tmp_path_factory.mktemp("world"), per_class=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GDA_WORK_DIR", str(root / "work"))
        _generate(root, root / "plain")
    return root


@pytest.fixture(autouse=True)
def _work(tmp_path, monkeypatch):
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))


def _generate(world, out, *changes, generator=None):
    """The set that `changes` request; the plain one is sampled once and copied."""
    plain = world / "plain"
    if not changes and generator is None and plain.is_dir():
        shutil.copytree(plain, out)
        return Recorded.open(out)
    config = load_config(None, (*SMALL, *changes))
    sample.run(config, generator=str(generator or world / "generator"), snapshot=world / "real", out=out)
    return Recorded.open(out)


def _key(label, index):
    """The key of an image of the plain set."""
    return image_key("s", label, index, image_seed(0, ("blue", "red")[label], index))


def _compare(recorded, world, *, generator=None, count=99, seed=0):
    sources = find_sources(recorded, world / "real", []) if recorded.sources else None
    context = recorded.context(str(generator or world / "generator"), sources)
    return list(compare_batches(recorded, context, choose_batches(recorded, count, seed=seed)))


@pytest.mark.parametrize(
    "changes",
    [(), ("sample.image_format=jpeg", "sample.jpeg_quality=40"), ("sample.image_format=webp",), ("sample.precision=bf16",), IMAGES],
    ids=["text", "jpeg", "webp", "bf16", "images"],
)
def test_every_batch_is_bit_equal(world, tmp_path, changes):
    """Prompts or images to start from, any format and precision: each batch comes out as it is stored, in the cuts that the plan made."""
    recorded = _generate(world, tmp_path / "set", *changes)
    found = _compare(recorded, world)
    assert [c.batch.place for c in found] == ([1, 2, 1, 2, 1, 2] if changes == IMAGES else [1, 2, 1, 2, 1])
    assert all(c.equal and c.limit is None for c in found)
    assert sorted(i.key for c in found for i in c.batch.images) == sorted(recorded.snapshot.manifest()["key"])


def test_each_class_with_its_own_adapters(world, tmp_path):
    """Adapters of a class each are part of the generator that is sampled from again."""
    changes = ("finetune.num_train_steps=2", "finetune.method=lora", "finetune.lora_scope=class", "finetune.lora_rank=2")
    config = load_config(None, (*changes, "finetune.batch_size=4", "finetune.learning_rate=0.1", "finetune.jitter=0"))
    generator = tmp_path / "adapted"
    finetune.run(config, snapshot=world / "real", base=str(build_tiny_pipeline("sd1", tmp_path / "base")), out=generator)
    found = _compare(_generate(world, tmp_path / "set", generator=generator), world, generator=generator)
    assert len(found) == 5
    assert all(c.equal for c in found)


def test_a_batch_sampled_in_parts_is_sampled_again_in_them(world, tmp_path, monkeypatch):
    """Where memory sufficed for halves alone the same halves are sampled, or the bits would be others."""
    real, sizes = sample_shards._pixels, []

    def short_of_memory(sampler, sampling, batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return real(sampler, sampling, batch)

    monkeypatch.setattr(sample_shards, "_pixels", short_of_memory)
    recorded = _generate(world, tmp_path / "set", "sample.images_per_class=6", "sample.shard_size=12")
    sizes.clear()
    assert all(c.equal for c in _compare(recorded, world))
    assert sizes == [1, 2] * 4


def test_a_batch_that_no_longer_fits_is_reported(world, tmp_path, monkeypatch):
    """A smaller device than the one that sampled the set is something that the machine lacks, not a defect."""
    recorded = _generate(world, tmp_path / "set")

    def no_memory(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(sample_shards, "_pixels", no_memory)
    with pytest.raises(MissingError, match="batch of 3 images does not fit in the memory of cpu"):
        _compare(recorded, world)


def _forge(folder, change):
    """Rewrite the set with `change` applied to its records, all checksums right."""
    snapshot, rows = Snapshot.open(folder), []
    for shard in snapshot.index.shards:
        records = [
            change(
                ImageRecord(
                    key=r.key,
                    rgb=to_array(decode(r.image, name=r.key)),
                    label=r.label,
                    class_name=snapshot.classes[r.label].name,
                    meta=r.meta,
                )
            )
            for r in read_shard(folder / shard.name)
        ]
        (folder / shard.name).unlink()
        rows.append(write_image_shard(folder, name=shard.name, split="train", records=records))
    index = snapshot.index
    message = {"classes": index.classes, "provenance": index.provenance, "licence": index.licence, "plan_digest": index.plan_digest}
    commit_snapshot(folder, kind="synthetic", rows=pd.concat(rows), **message)
    relist(folder)
    assert verify_snapshot(folder) == []


def test_an_image_that_its_plan_does_not_sample_is_named(world, tmp_path, capsys):
    """A set whose checksums are all right, but with one pixel changed by one level, is found out: key, distance, exit code."""
    _generate(world, tmp_path / "set")

    def by_one(record):
        rgb = record.rgb.copy()
        rgb[3, 4, 1] = rgb[3, 4, 1] - 1 if rgb[3, 4, 1] else 1
        return replace(record, rgb=rgb) if record.key.startswith("s0001-0000002") else record

    _forge(tmp_path / "set", by_one)
    generator = str(world / "generator")
    assert main(["verify", str(tmp_path / "set"), "--reproduce", "9", "--generator", generator]) == 3
    printed = capsys.readouterr()
    assert printed.err.strip().endswith(f"1 images differ from those of its plan: {_key(1, 2)} (by up to 1 grey levels)")
    assert printed.out.count("bit-equal") == 4
    assert "batch 2 sampled again, 1 of 3 images differ" in printed.out
    assert main(["verify", str(tmp_path / "set")]) == 0


def test_images_of_another_size_are_as_far_as_can_be(world, tmp_path):
    """A picture that was put in larger is named like any other, not stumbled over."""
    _generate(world, tmp_path / "set")
    _forge(tmp_path / "set", lambda r: replace(r, rgb=np.zeros((20, 20, 3), np.uint8)) if r.key.startswith("s0000-0000000") else r)
    found = [c.differing for c in _compare(Recorded.open(tmp_path / "set"), world) if c.differing]
    assert found == [{_key(0, 0): 255}]


@pytest.mark.parametrize(("name", "value"), [("prompt", "pink"), ("generator_digest", "0" * 64), ("num_inference_steps", 7)])
def test_a_record_that_contradicts_the_fingerprint_is_named(world, tmp_path, name, value):
    """What an image's own JSON says of its origin is compared too, not its pixels alone."""
    _generate(world, tmp_path / "set")
    _forge(tmp_path / "set", lambda r: replace(r, meta={**r.meta, name: value}) if r.key.startswith("s0000-0000001") else r)
    with pytest.raises(DataError, match=rf"{_key(0, 1)}': its JSON says {name} {value!r}, manifest and fingerprint"):
        _compare(Recorded.open(tmp_path / "set"), world)


@pytest.mark.parametrize("size", [0, 2, "3", 4])
def test_parts_that_cannot_be_are_refused(world, tmp_path, size):
    """A record of parts that the batch does not consist of is bad data, not a loop without end."""
    _generate(world, tmp_path / "set")
    _forge(tmp_path / "set", lambda r: replace(r, meta={**r.meta, "batch_size": size}) if r.key.startswith("s0001-0000000") else r)
    with pytest.raises(DataError, match=r"sampled in a batch of .*, which is not there"):
        _compare(Recorded.open(tmp_path / "set"), world)


def test_on_another_environment_rounding_is_accepted_and_another_image_is_not(world, tmp_path, capsys):
    """Where bits are not claimed a few grey levels pass, with the difference stated, and an exchanged image still does not."""
    _generate(world, tmp_path / "set")
    fingerprint = tmp_path / "set" / "fingerprint.json"
    content = json.loads(fingerprint.read_text())
    content["environment"]["torch"] = "1.0"
    fingerprint.write_text(json.dumps(content))
    relist(tmp_path / "set")

    def rounded(record):
        rgb = record.rgb
        rgb = np.where(rgb < 255, rgb + 1, rgb).astype(np.uint8) if record.key.startswith("s0001-0000001") else rgb
        return replace(record, rgb=rgb)

    _forge(tmp_path / "set", rounded)
    command = ["verify", str(tmp_path / "set"), "--reproduce", "9", "--generator", str(world / "generator")]
    assert main(command) == 0
    message = capsys.readouterr().out
    assert "bits are not claimed here (torch 1.0 then" in message
    assert "accepted: 2 grey levels rms" in message
    assert f"1 of 3 images differ: {_key(1, 1)} most, by 1.00 grey levels rms, at most 1" in message or "by 0.9" in message
    _forge(tmp_path / "set", lambda r: replace(r, rgb=255 - r.rgb) if r.key.startswith("s0000-0000001") else r)
    assert main(command) == 3
    assert f"1 images differ from those of its plan: {_key(0, 1)}" in capsys.readouterr().err


def test_what_is_sampled_again_follows_from_digest_and_seed(world, tmp_path):
    """The same command chooses the same batches, another seed others in the end, and never one twice."""
    recorded = _generate(world, tmp_path / "set")
    assert choose_batches(recorded, 2) == choose_batches(recorded, 2)
    assert len({str(batch) for seed in range(20) for batch in choose_batches(recorded, 2, seed=seed)}) == 5
    assert all(len({str(b) for b in choose_batches(recorded, 4, seed=seed)}) == 4 for seed in range(9))


def test_another_generator_is_refused(world, tmp_path):
    """One of another digest is not sampled from; both are named."""
    recorded = _generate(world, tmp_path / "set")
    other = build_tiny_cascade(tmp_path / "other", seed=5)
    with pytest.raises(DataError, match=rf"other: is generator [0-9a-f]{{12}}, but .*set was sampled with {recorded.generator[:12]}"):
        find_generator(recorded, str(other), [])
    with pytest.raises(DataError, match=r"set: is snapshot [0-9a-f]{12}, but .*images was sampled from images of"):
        find_sources(_generate(world, tmp_path / "images", *IMAGES), tmp_path / "set", [])


def test_the_generator_is_found(world, tmp_path, capsys):
    """Where the set says that it comes from, or next to it; else the error says which one is wanted and how to give it."""
    recorded = _generate(world, tmp_path / "data" / "set")
    with pytest.raises(MissingError, match=rf"generator {recorded.generator[:12]} is not next to it; give --generator"):
        find_generator(recorded, None, [])
    assert main(["verify", str(tmp_path / "data" / "set"), "--reproduce", "1"]) == 5
    assert "--generator" in capsys.readouterr().err
    shutil.copytree(world / "generator", tmp_path / "models" / "own")
    assert main(["verify", str(tmp_path / "data" / "set"), "--reproduce", "1"]) == 0
    _generate(world, tmp_path / "data" / "images", *IMAGES)
    assert main(["verify", str(tmp_path / "data" / "images"), "--reproduce", "1"]) == 5
    assert "--snapshot" in capsys.readouterr().err
    shutil.copytree(world / "real", tmp_path / "data" / "real")
    assert main(["verify", str(tmp_path / "data" / "images"), "--reproduce", "1"]) == 0
    provenance = {**recorded.snapshot.index.provenance, "generator_source": DEMO_BASE}
    recorded.snapshot.index = recorded.snapshot.index.model_copy(update={"provenance": provenance})
    with pytest.raises(MissingError):  # it says the demo's, but was sampled with another, as those fine-tuned from it are
        find_generator(recorded, None, [])
    inputs = {
        "generator": json.loads((sample.Path(finetune.__file__).parent.parent / "assets/demo_base/generator.json").read_text())["digest"]
    }
    assert (
        find_generator(Recorded(snapshot=recorded.snapshot, fingerprint=replace(recorded.fingerprint, inputs=inputs)), None, [])
        == DEMO_BASE
    )


def test_sets_that_say_nothing_are_refused(world, tmp_path, capsys):
    """A real snapshot, one without a fingerprint, and a fingerprint that lacks a field are bad data."""
    with pytest.raises(DataError, match="real: was made by snapshot; only a set of gda sample can be reproduced"):
        Recorded.open(world / "real")
    assert main(["verify", str(world / "real"), "--reproduce", "1"]) == 3
    assert "gda sample" in capsys.readouterr().err
    recorded = _generate(world, tmp_path / "set")
    lacking = replace(recorded.fingerprint, config={k: v for k, v in recorded.fingerprint.config.items() if k != "prompts"})
    with pytest.raises(DataError, match=r"fingerprint\.json: config\.prompts is missing"):
        Recorded(snapshot=recorded.snapshot, fingerprint=lacking).context("x", None)
    wrong = replace(recorded.fingerprint, config=recorded.fingerprint.config | {"codec": {"format": "gif"}})
    with pytest.raises(DataError, match="says no usable settings"):
        Recorded(snapshot=recorded.snapshot, fingerprint=wrong).context("x", None)
    (tmp_path / "set" / "fingerprint.json").unlink()
    with pytest.raises(DataError, match=r"has no fingerprint\.json"):
        Recorded.open(tmp_path / "set")


def test_a_limit_is_of_the_root_mean_square():
    """With a limit, the largest difference alone says nothing; without one, a single level is too much."""
    batch = type("B", (), {"images": (type("I", (), {"key": "a"}), type("I", (), {"key": "b"}))})()
    common = {"batch": batch, "largest": (90, 9), "rms": (1.9, 2.1)}
    assert BatchComparison(**common, limit=2.0).differing == {"b": 9}
    assert BatchComparison(**common, limit=None).differing == {"a": 90, "b": 9}
