"""Features kept by `sample`: the same for any number of workers and after any kill, there with every sampled shard, in nobody's way."""

import os

import numpy as np
import pytest
from trees import tree
from two_colours import two_colours

from gda.artifacts.contents import FINGERPRINT_FILE
from gda.config.load import load_config
from gda.data.export import export_snapshot
from gda.data.store.merge import merge_snapshots
from gda.data.store.snapshot import Snapshot, commit_snapshot
from gda.data.store.verify import verify_snapshot
from gda.data.store.writer import ImageRecord, write_image_shard
from gda.errors import ConfigError, DataError, UsageError
from gda.fidelity.accumulated import extract_by_shard, features_path, has_rows, read_rows, read_statistics
from gda.fidelity.extractors import comparison_size, get_extractor
from gda.gate.checks.audit import audit_images
from gda.generator.planning.plan import make_plan
from gda.generator.sampling import sample_shards
from gda.stages import sample

SMALL = (
    "sample.images_per_class=6",
    "sample.batch_size=2",
    "sample.shard_size=4",
    "sample.guidance_scale=1.5",
    "sample.num_inference_steps=2",
    "sample.sr_num_inference_steps=1",
    "classify.image_size=32",
)
ROWS = load_config(None, (*SMALL, "sample.features=rows"))
GLYPH, SIZE = get_extractor("glyph"), comparison_size(ROWS, get_extractor("glyph"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny cascade and a real snapshot of two classes distinguished by colour."""
    return two_colours(tmp_path_factory.mktemp("world"), per_class=12)


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    return tmp_path / "work"


def generate(world, out, config=ROWS, **options):
    return sample.run(config, generator=str(world / "generator"), snapshot=world / "real", out=out, **options)


def files(folder):
    """Every file but the fingerprint."""
    return tree(folder, without=(FINGERPRINT_FILE,))


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """The set with rows, sampled in one go. To be read only."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GDA_WORK_DIR", str(folder / "work"))
        generate(world, folder / "set")
    return folder / "set"


def in_this_process(monkeypatch):
    monkeypatch.setattr(sample, "run_parallel", lambda function, items, **_: [function(item) for item in items])


def test_rows_are_features_of_the_sampled_images(world, whole):
    """What is kept while sampling is, to the last bit, what a second pass over the finished set would give."""
    snapshot = Snapshot.open(whole)
    audit = audit_images(snapshot, size=SIZE)
    assert SIZE == 32
    assert len(snapshot.index.shards) == 3
    assert (read_rows(snapshot, GLYPH, size=SIZE) == extract_by_shard(audit.images, audit.table["shard"].tolist(), GLYPH)).all()


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_keeps_the_same_features(world, whole, tmp_path, workers):
    """Every file of the set is the same, features and their statistics among them."""
    for worker in reversed(range(workers)):
        generate(world, tmp_path / "set", worker=worker, workers=workers)
    assert files(tmp_path / "set") == files(whole)
    assert sum(name.startswith("features/") for name in files(whole)) == 5


@pytest.mark.parametrize("where", ["write_encoded_shard", "save_rows", "finish"])
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_leaves_nothing_half(world, whole, tmp_path, monkeypatch, where, after):
    """Killed before or after any commit of a shard's tar, features and rows, or of the set's statistics, it ends in the same set."""
    in_this_process(monkeypatch)
    owner = sample.FeatureObserver if where == "finish" else sample_shards
    real, calls = getattr(owner, where), []

    def killed(*args, **kwargs):
        calls.append(args)
        if len(calls) == (1 if where == "finish" else 2):
            if after:
                real(*args, **kwargs)
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, where, killed)
        with pytest.raises(KeyboardInterrupt):
            generate(world, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    generate(world, tmp_path / "set")
    assert files(tmp_path / "set") == files(whole)


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_damaged_features_have_their_shard_sampled_again(world, whole, tmp_path, work, monkeypatch, damage):
    """A committed shard always has its features; those that changed since do not count, and no other shard is sampled for them."""
    in_this_process(monkeypatch)
    generate(world, tmp_path / "set", worker=0, workers=2)
    path = min(work.glob("work/*/out/features/*.safetensors"))
    data = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(data[:-9] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    real, sampled = sample_shards.write_encoded_shard, []
    monkeypatch.setattr(
        sample_shards, "write_encoded_shard", lambda *args, **kwargs: sampled.append(kwargs["name"]) or real(*args, **kwargs)
    )
    generate(world, tmp_path / "set")
    assert sorted(sampled) == ["train-000000.tar", "train-000001.tar"]
    assert files(tmp_path / "set") == files(whole)


def test_a_shard_that_is_sampled_again_gets_new_features(world, whole, tmp_path, work):
    """A damaged tar takes its features with it."""
    generate(world, tmp_path / "set", worker=0, workers=2)
    shard = min(work.glob("work/*/out/train-*.tar"))
    shard.write_bytes(shard.read_bytes()[:-512])
    os.utime(features_path(shard), (0, 0))  # shows the old file from a new one, which may take its inode
    generate(world, tmp_path / "set", worker=0, workers=2)
    assert features_path(shard).stat().st_mtime > 0
    generate(world, tmp_path / "set")
    assert files(tmp_path / "set") == files(whole)


def test_statistics_alone_and_nothing_at_all(world, whole, tmp_path):
    """What is kept changes neither images nor statistics; without it there is no folder; the same name does not take another kind."""
    generate(world, tmp_path / "statistics", load_config(None, (*SMALL, "sample.features=statistics")))
    generate(world, tmp_path / "none", load_config(None, SMALL))
    rows, none = files(whole), files(tmp_path / "none")
    kept = files(tmp_path / "statistics")
    assert {name for name in rows if not name.startswith("features/")} == set(none)
    assert all(kept[name] == rows[name] == none[name] for name in none)
    assert kept["features/statistics.npz"] == rows["features/statistics.npz"]
    found = read_statistics(Snapshot.open(tmp_path / "statistics"), GLYPH, size=SIZE)
    assert found.n == 12
    with pytest.raises(DataError, match=r"features\.json: not found"):
        read_statistics(Snapshot.open(tmp_path / "none"), GLYPH, size=SIZE)
    with pytest.raises(UsageError, match=r"config\.features"):
        generate(world, tmp_path / "none")
    with pytest.raises(UsageError, match=r"config\.features\.kept: statistics -> rows"):
        generate(world, tmp_path / "statistics")


def another(folder, classes):
    """A set of one more image, which another program sampled."""
    folder.mkdir()
    record = ImageRecord(key="x", rgb=np.zeros((16, 16, 3), np.uint8), label=0, class_name=classes[0].name)
    rows = write_image_shard(folder, name="train-000000.tar", split="train", records=[record])
    commit_snapshot(folder, kind="synthetic", classes=classes, rows=rows, provenance={}, licence="CC0-1.0")
    return folder


def test_features_are_in_nobodys_way(whole, tmp_path):
    """verify and export work as ever; a merged set carries no features, which would be those of other shards, and says so."""
    assert verify_snapshot(whole) == []
    export_snapshot(whole, "imagefolder", tmp_path / "folder")
    assert len(list((tmp_path / "folder").rglob("*.png"))) == 12
    merged = merge_snapshots([whole, another(tmp_path / "other", Snapshot.open(whole).classes)], tmp_path / "merged").output
    assert verify_snapshot(merged) == []
    assert not (merged / "features").exists()
    assert not has_rows(Snapshot.open(merged), GLYPH, size=SIZE)
    with pytest.raises(DataError, match="not merged since"):
        read_rows(Snapshot.open(merged), GLYPH, size=SIZE)


def test_jpeg_does_not_keep_the_pixels_that_features_are_of(world, tmp_path):
    """Before anything is sampled."""
    config = load_config(None, (*SMALL, "sample.features=rows", "sample.image_format=jpeg"))
    with pytest.raises(ConfigError, match=r"sample\.features: rows .* accepted: png, webp"):
        generate(world, tmp_path / "set", config)


def test_a_single_image_has_no_statistics():
    """Reported before the sampling, not after it."""
    plan = make_plan({"a": 1}, seed=0, shard_size=1, batch_size=1)
    with pytest.raises(ConfigError, match="a single image have no covariance"):
        sample._observer(ROWS, plan)
