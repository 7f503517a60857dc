"""Sampling: the set is the same for any number of workers and after any damage, and provenance is complete."""

import pytest
from two_colours import two_colours

from gda.config.load import load_config
from gda.data.store.snapshot import Snapshot
from gda.data.store.verify import verify_snapshot
from gda.errors import DataError, UsageError
from gda.generator.sampling import sample_shards
from gda.stages import sample

SMALL = (
    "sample.images_per_class=6",
    "sample.batch_size=3",
    "sample.shard_size=3",
    "sample.guidance_scale=1.5",
    "sample.num_inference_steps=2",
    "sample.sr_num_inference_steps=1",
)
CONFIG = load_config(None, SMALL)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny cascade and a real snapshot of two classes distinguished by colour."""
    return two_colours(tmp_path_factory.mktemp("world"), per_class=12)


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    return tmp_path / "work"


def _in_this_process(function, items, **_):
    return [function(item) for item in items]


def _generate(world, out, **options):
    return sample.run(CONFIG, generator=str(world / "generator"), snapshot=world / "real", out=out, **options)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """The digest of the set sampled in one go."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GDA_WORK_DIR", str(folder / "work"))
        return _generate(world, folder / "set").digest


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_any_number_of_workers_gives_the_same_set(world, whole, tmp_path, workers):
    """Workers in any order sample their own shards; anyone who is last publishes; the digest is that of one worker."""
    outcomes = [_generate(world, tmp_path / "set", worker=i, workers=workers) for i in reversed(range(workers))]
    published = [o.digest for o in outcomes if o.digest]
    assert published == [whole] or set(published) == {whole}
    assert verify_snapshot(tmp_path / "set") == []


def test_an_interrupted_run_samples_only_what_is_missing(world, whole, tmp_path, monkeypatch):
    """Killed after some shards, the same command keeps them and ends in the same set."""
    sampled = []
    real = sample_shards.write_encoded_shard

    def stop_at_third(*args, **kwargs):
        if len(sampled) == 2:
            raise KeyboardInterrupt
        sampled.append(kwargs["name"])
        return real(*args, **kwargs)

    monkeypatch.setattr(sample, "run_parallel", _in_this_process)
    monkeypatch.setattr(sample_shards, "write_encoded_shard", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        _generate(world, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    again = []
    monkeypatch.setattr(sample_shards, "write_encoded_shard", lambda *a, **k: again.append(k["name"]) or real(*a, **k))
    assert _generate(world, tmp_path / "set").digest == whole
    assert len(again) == 2
    assert not set(again) & set(sampled)


def test_a_damaged_shard_alone_is_sampled_again(world, whole, tmp_path, work, monkeypatch):
    """A shard whose bytes changed after its commit does not count as sampled, and the others are kept."""
    _generate(world, tmp_path / "set", worker=0, workers=2)
    shard = min(work.glob("work/*/out/train-*.tar"))
    data = bytearray(shard.read_bytes())
    data[600] ^= 0xFF
    shard.write_bytes(bytes(data))
    real, again = sample_shards.write_encoded_shard, []
    monkeypatch.setattr(sample, "run_parallel", _in_this_process)
    monkeypatch.setattr(sample_shards, "write_encoded_shard", lambda *a, **k: again.append(k["name"]) or real(*a, **k))
    assert _generate(world, tmp_path / "set").digest == whole
    assert shard.name in again
    assert len(again) == 3


def test_every_image_says_where_it_comes_from(world, tmp_path):
    """The manifest has seed, prompt, settings and generator digest of each image, and exactly the planned classes."""
    outcome = _generate(world, tmp_path / "set")
    sampled = Snapshot.open(outcome.output)
    rows = sampled.manifest()
    assert sampled.index.kind == "synthetic"
    assert rows["class"].value_counts().to_dict() == {"red": 6, "blue": 6}
    assert rows["seed"].is_unique
    assert set(rows["prompt"]) == {"red", "blue"}
    assert (rows["guidance_scale"] == 1.5).all()
    assert rows["generator_digest"].nunique() == 1
    assert sampled.index.plan_digest
    assert sampled.index.licence == "Apache-2.0"


def test_another_seed_is_another_set(world, whole, tmp_path):
    """The configuration's seed decides the images."""
    other = load_config(None, (*SMALL, "seed=1"))
    outcome = sample.run(other, generator=str(world / "generator"), snapshot=world / "real", out=tmp_path / "set")
    assert outcome.digest != whole


def test_a_null_guidance_needs_tuned_settings_of_this_generator(world, tmp_path):
    """Without settings the command says what is missing; settings of another generator are refused."""
    config = load_config(None, (*SMALL, "sample.guidance_scale=null"))
    common = {"generator": str(world / "generator"), "snapshot": world / "real", "out": tmp_path / "set"}
    with pytest.raises(UsageError, match="--settings"):
        sample.run(config, **common)
    settings = tmp_path / "settings.json"
    settings.write_text(
        '{"chosen": {"guidance_scale": 2.0}, "points": [], "extractor": "glyph", "fid_floor": null,'
        ' "num_images": 1, "generator_digest": "other", "snapshot_digest": "x"}'
    )
    with pytest.raises(DataError, match="tuned for generator other"):
        sample.run(config, settings=settings, **common)
