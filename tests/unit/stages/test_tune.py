"""Tuning: ends on CAS, keeps what it drew, and never opens the test split."""

import json

import pytest
from two_colours import two_colours

from gda.artifacts import Settings, TuningPoint, read_document
from gda.config import load_config
from gda.stages import tune

SMALL = (
    "tune.images_per_class=6",
    "tune.cas_images_per_class=9",
    "tune.survivors=1",
    "tune.cas_seeds=1",
    "tune.cas_num_updates=3",
    "tune.batch_size=6",
    "tune.num_inference_steps=2",
    "tune.sr_num_inference_steps=1",
    "classify.image_size=16",
    "classify.warmup_updates=1",
    "snapshot.demo_val_per_class=10",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny cascade and a real snapshot of two classes told apart by colour."""
    return two_colours(tmp_path_factory.mktemp("world"), per_class=30)


def _tune(world, out, scales):
    config = load_config(None, (*SMALL, f"tune.guidance_scales={scales}"))
    tune.run(config, generator=str(world / "generator"), snapshot=world / "real", out=out)
    return read_document(out / "settings.json", Settings)


def _point(guidance, fid, cas):
    return TuningPoint(guidance_scale=guidance, fid=fid, cas=cas, cas_by_seed=() if cas is None else (cas,))


def test_cas_decides_and_fid_breaks_ties():
    """The best FID does not win against a better CAS; among equal CAS the lower FID does."""
    assert tune.choose((_point(1.0, 1.0, 0.80), _point(2.0, 2.0, 0.90), _point(3.0, 0.5, None))) == 2.0
    assert tune.choose((_point(1.0, 3.0, 0.90), _point(2.0, 2.0, 0.90))) == 2.0
    assert tune.choose((_point(2.0, 2.0, 0.90), _point(1.0, 2.0, 0.90))) == 1.0


def test_adding_a_point_costs_one_point(world, tmp_path, monkeypatch):
    """A wider sweep reads back every batch that was drawn before, and its shared points have the same FID."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    first = _tune(world, tmp_path / "first", "[1.0, 2.0]")
    before = {path.name for path in (tmp_path / "work" / "points").iterdir()}
    # 12 images a point in 2 batches of 6, and the survivor's 18 images in 3.
    assert len(before) == 2 * 2 + 1
    drawn = []
    real = tune.Sampler.draw
    monkeypatch.setattr(tune, "run_parallel", lambda function, items: [function(item) for item in items])
    monkeypatch.setattr(tune.Sampler, "draw", lambda self, *args: drawn.append(1) or real(self, *args))
    second = _tune(world, tmp_path / "second", "[1.0, 2.0, 4.0]")
    after = {path.name for path in (tmp_path / "work" / "points").iterdir()}
    assert before < after
    assert len(after - before) in (2, 3)
    assert len(drawn) == len(after - before), "a batch that was drawn before is read back"
    known = {point.guidance_scale: point.fid for point in second.points}
    assert all(known[point.guidance_scale] == point.fid for point in first.points)


def test_settings_repeat_and_say_what_they_were_measured_with(world, tmp_path, monkeypatch):
    """The same sweep from scratch gives the same table; N, extractor and floor are stated; the test split stays shut."""
    tables = []
    for name in ("one", "two"):
        monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / name))
        tables.append(_tune(world, tmp_path / f"out-{name}", "[1.0, 2.0]"))
        assert not (tmp_path / name / "test_ledger.jsonl").exists()
    assert tables[0] == tables[1]
    assert tables[0].num_images == 12
    assert tables[0].extractor.startswith("glyph@")
    assert tables[0].fid_floor is not None
    assert sum(point.cas is not None for point in tables[0].points) == 1
    assert json.loads((tmp_path / "out-one" / "settings.json").read_text())["guidance_scale"] == tables[0].guidance_scale
