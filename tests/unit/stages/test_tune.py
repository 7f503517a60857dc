"""Tuning: ends on CAS, keeps what it sampled and scored, repeats to the byte, and never opens the test split."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from relisted import recard
from trees import tree
from two_colours import two_colours

from gda.artifacts.document import read_document
from gda.artifacts.tuning import Settings
from gda.config.load import load_config
from gda.data.store.in_memory import load_images
from gda.data.store.snapshot import Snapshot
from gda.data.test_split.ledger import read_ledger
from gda.demo_base.build import build_tiny_cascade
from gda.errors import ConfigError, DataError
from gda.fidelity import extractors
from gda.fidelity.compare import fid
from gda.generator.families.opening import load_model
from gda.generator.planning.plan import image_seed
from gda.generator.sampling.sampler import Sampler
from gda.generator.weights import reaverage
from gda.generator.weights.directory import SUPER_RESOLUTION
from gda.runtime.rng import stream_seed
from gda.stages import finetune, tune
from gda.tuning import batches, scores, sweep

SMALL = (
    "tune.images_per_class=6",
    "tune.cas_images_per_class=9",
    "tune.survivors=1",
    "tune.cas_seeds=1",
    "tune.cas_num_train_steps=3",
    "tune.batch_size=6",
    "tune.num_inference_steps=[2]",
    "tune.sr_num_inference_steps=[1]",
    "classify.image_size=16",
    "classify.warmup_steps=1",
)
TWO, THREE = "tune.guidance_scales=[1.0,2.0]", "tune.guidance_scales=[1.0,2.0,4.0]"
FORK = multiprocessing.get_context("fork")  # torch is imported already, and no process here starts threads


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny cascade and a real snapshot of two classes distinguished by colour."""
    return two_colours(tmp_path_factory.mktemp("world"), per_class=30)


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A work folder of its own, and every job in this process, so that it can be counted."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.setattr("gda.runtime.parallel.available_cpus", lambda: 1)


def _run(world, out, *settings, generator=None, progress=False):
    config = load_config(None, (*SMALL, *settings))
    return tune.run(config, generator=str(generator or world / "generator"), snapshot=world / "real", out=out, progress=progress)


def _tune(world, out, *settings, generator=None):
    _run(world, out, *settings, generator=generator)
    return read_document(out / "settings.json", Settings)


class Counter:
    """Counts calls of a function that goes on doing its work; at call number `stop` it is interrupted."""

    def __init__(self, monkeypatch, target, name):
        self.calls, self.stop = [], None
        original = getattr(target, name)

        def counted(*args, **kwargs):
            if self.stop is not None and len(self.calls) >= self.stop:
                raise KeyboardInterrupt
            self.calls.append(args)
            return original(*args, **kwargs)

        monkeypatch.setattr(target, name, counted)

    def take(self):
        """How many calls since the last time."""
        count = len(self.calls)
        self.calls.clear()
        return count


def test_adding_a_point_costs_one_point(world, tmp_path, alone, monkeypatch):
    """A wider sweep samples and scores its new point alone, trains for a new survivor alone, and the others keep their numbers."""
    sampled, fids = Counter(monkeypatch, Sampler, "sample"), Counter(monkeypatch, scores, "fid_to")
    trained, loaded = Counter(monkeypatch, scores, "train_classifier"), Counter(monkeypatch, batches, "load_model")
    first = _tune(world, tmp_path / "first", TWO)
    # 12 images per point in 2 batches of 6, and the survivor's 18 images in 3; the generator is loaded once per pass.
    assert [sampled.take(), fids.take(), trained.take(), loaded.take()] == [2 * 2 + 1, 2, 1, 2]
    second = _tune(world, tmp_path / "second", THREE)
    other = second.chosen != first.chosen  # then the survivor is the new point
    assert [sampled.take(), fids.take(), trained.take(), loaded.take()] == [2 + other, 1, other, 1 + other]
    known = {point.settings: point for point in second.points}
    for point in first.points:
        assert (known[point.settings].fid, known[point.settings].fid_ci95) == (point.fid, point.fid_ci95)
    more = _tune(world, tmp_path / "more", THREE, "tune.survivors=3", "tune.cas_seeds=2")
    before = 1 + other  # points that have their third batch and first seed already
    assert [sampled.take(), fids.take(), trained.take()] == [3 - before, 0, 3 * 2 - before]
    assert {len(point.cas_by_seed) for point in more.points} == {2}


def test_another_question_is_measured_again(world, tmp_path, alone, monkeypatch):
    """Other classifiers do not take the scores of the old ones, nor another seed the images of this."""
    _tune(world, tmp_path / "first", TWO)
    sampled, fids = Counter(monkeypatch, Sampler, "sample"), Counter(monkeypatch, scores, "fid_to")
    trained = Counter(monkeypatch, scores, "train_classifier")
    _tune(world, tmp_path / "longer", TWO, "tune.cas_num_train_steps=4")
    assert [sampled.take(), fids.take(), trained.take()] == [0, 0, 1]
    _tune(world, tmp_path / "fewer", TWO, "tune.cas_images_per_class=7")
    assert [sampled.take(), fids.take(), trained.take()] == [1, 0, 1], "its last batch holds 2 images instead of 6"
    _tune(world, tmp_path / "seed", TWO, "seed=1")
    assert [sampled.take(), fids.take(), trained.take()] == [5, 2, 1]


@pytest.mark.parametrize("where", ["sample", "fid_to", "train_classifier"])
def test_an_interrupted_sweep_goes_on_where_it_was(world, tmp_path, monkeypatch, alone, where):
    """Interrupted in either pass and started again, it does nothing twice and ends in the bytes of a sweep left alone."""
    more = (THREE, "tune.survivors=2")
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "whole"))
    counters = {"sample": Counter(monkeypatch, Sampler, "sample")}
    counters |= {name: Counter(monkeypatch, scores, name) for name in ("fid_to", "train_classifier")}
    _tune(world, tmp_path / "a", *more)
    whole = {name: counter.take() for name, counter in counters.items()}
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "broken"))
    counters[where].stop = whole[where] - 1
    with pytest.raises(KeyboardInterrupt):
        _tune(world, tmp_path / "b", *more)
    assert not (tmp_path / "b").exists()
    counters[where].stop = None
    _tune(world, tmp_path / "b", *more)
    assert {name: counter.take() for name, counter in counters.items()} == whole
    for name in ("settings.json", "fid.png", "pareto.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_killed_in_the_first_pass_and_started_again(world, tmp_path, monkeypatch):
    """A process that is killed outright leaves whole batches alone, which the next run reads back."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "whole"))
    whole = _tune(world, tmp_path / "a", THREE)
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "killed"))
    monkeypatch.setattr("gda.runtime.parallel.available_cpus", lambda: 1)
    process = FORK.Process(target=_tune, args=(world, tmp_path / "b", THREE))
    process.start()
    while process.is_alive() and len(list((tmp_path / "killed").glob("points/*.safetensors"))) < 2:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("points/*.safetensors")}
    assert len(kept) >= 2
    assert not (tmp_path / "b").exists()
    assert _tune(world, tmp_path / "b", THREE) == whole
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_any_number_of_processes_gives_the_same_settings(world, tmp_path, monkeypatch):
    """One process or three: the same bytes, plots included."""
    written = []
    for workers in (1, 3):
        monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / f"work-{workers}"))
        monkeypatch.setattr("gda.runtime.parallel.available_cpus", lambda workers=workers: workers)
        out = tmp_path / f"out-{workers}"
        _tune(world, out, THREE, "tune.survivors=2", "tune.cas_seeds=2")
        written.append(tree(out))
    assert written[0] == written[1]
    assert set(written[0]) == {"settings.json", "fid.png", "pareto.png", "fingerprint.json"}


def test_settings_say_what_they_were_measured_with(world, tmp_path, alone):
    """N, extractor, floor, intervals and costs are stated; the test split stays shut."""
    found = _tune(world, tmp_path / "out", THREE, "tune.survivors=2", "tune.num_inference_steps=[2,3]")
    assert read_ledger() == []
    assert (found.num_images, len(found.points)) == (12, 6)
    assert found.extractor.startswith("glyph@")
    assert found.fid_floor is not None
    assert found.fid_floor < min(point.fid for point in found.points)
    assert sorted(p.nfe for p in found.points) == [2 + 1, 3 + 1, 4 + 1, 4 + 1, 6 + 1, 6 + 1]
    assert all(point.fid_ci95[0] < point.fid < point.fid_ci95[1] for point in found.points)
    assert sum(point.cas is not None for point in found.points) == 2
    assert any(point.pareto for point in found.points)
    raw = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert raw["chosen"] == found.chosen_point.settings.model_dump(mode="json")


def test_fid_and_cas_are_what_other_means_give(world, tmp_path, alone):
    """The numbers of the table, worked out again from the kept images by hand."""
    found = _tune(world, tmp_path / "out", TWO).chosen_point
    seeds = [image_seed(stream_seed("tune", 0), name, index) for index in range(9) for name in ("blue", "red")]
    sampler = Sampler(load_model(str(world / "generator")), ("blue", "red"))
    images = [sampler.sample(["blue", "red"] * 3, seeds[start : start + 6], found.settings) for start in (0, 6, 12)]
    val = load_images(Snapshot.open(world / "real"), "val", size=images[0].shape[-1])
    features = extractors.get_extractor("glyph").features
    kept = np.concatenate([features(part) for part in images[:2]])
    assert found.fid == pytest.approx(fid(kept, features(val.images)), rel=1e-4)
    recipe = sweep.cas_recipe(load_config(None, (*SMALL, TWO)))
    source = scores.TrainingSource(images=torch.cat(images), labels=torch.tensor([0, 1] * 9), share=1.0)
    model, _ = scores.train_classifier([source], recipe, num_classes=2, seed=0)
    assert found.cas == scores.top1(scores.predict_logits(model, val.images, image_size=16), val.labels)


def test_a_point_that_cannot_be_sampled_is_recorded_and_never_chosen(world, tmp_path, alone):
    """A noise level that this cascade does not know costs its own points and no others; where nothing is left that is reported."""
    generator = shutil.copytree(world / "generator", tmp_path / "generator")
    config = generator / SUPER_RESOLUTION / "image_noising_scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_train_timesteps": 100}))
    recard(generator)
    outcome = _run(world, tmp_path / "out", TWO, "tune.sr_noise_levels=[0,500]", "tune.survivors=4", generator=generator)
    found = read_document(tmp_path / "out" / "settings.json", Settings)
    failed = [point for point in found.points if point.settings.sr_noise_level == 500]
    assert len(failed) == 2
    for point in failed:
        assert (point.fid, point.cas, point.pareto) == (None, None, False)
        assert "sr_noise_level: must be below 100 for this cascade, got 500" in point.failed
    assert all(point.cas is not None for point in found.points if point not in failed)
    assert found.chosen.sr_noise_level == 0
    assert "2 of 4 points failed, the first: sample.sr_noise_level" in outcome.summary
    assert outcome.metrics["failed_points"] == 2
    with pytest.raises(DataError, match=r"none of 2 points could be sampled and measured; the first: sample\.sr_noise_level"):
        _run(world, tmp_path / "none", TWO, "tune.sr_noise_levels=[500]", generator=generator)


def test_a_fid_that_is_no_number_is_recorded_and_never_chosen(world, tmp_path, alone, monkeypatch):
    """A point whose features are not finite has no FID, says so, and leaves the choice to the others."""
    glyph = extractors.get_extractor("glyph")
    seen = []

    def features(images):
        seen.append(len(images))
        found = glyph.forward(images)
        return found * float("nan") if len(seen) == 2 else found  # after the reference comes the first point

    broken = extractors.Extractor(name="glyph", digest="0" * 64, dim=glyph.dim, input_px=glyph.input_px, forward=features)
    monkeypatch.setitem(extractors._REGISTRY, "glyph", lambda weights: broken)
    found = _tune(world, tmp_path / "out", TWO, "tune.survivors=2")
    assert [point.fid is None for point in found.points] == [True, False]
    assert "its FID cannot be measured" in found.points[0].failed
    assert found.guidance_scale == 2.0


def test_a_damaged_batch_is_sampled_again(world, tmp_path, alone, monkeypatch):
    """A flipped bit or a cut file among the kept batches is found by its checksum and costs that batch."""
    whole = _tune(world, tmp_path / "a", TWO)
    kept = sorted((tmp_path / "work" / "points").glob("*.safetensors"))
    content = bytearray(kept[0].read_bytes())
    content[-1] ^= 1
    kept[0].write_bytes(bytes(content))
    kept[1].write_bytes(kept[1].read_bytes()[:-7])
    for path in (tmp_path / "work" / "points").glob("*.json"):
        path.write_text("{" if path.name.endswith(".fid.json") else '{"value": null}')
    sampled = Counter(monkeypatch, Sampler, "sample")
    shutil.rmtree(tmp_path / "a")
    assert _tune(world, tmp_path / "a", TWO) == whole
    assert sampled.take() == 2


def test_points_share_seeds_that_sampling_does_not_use(world, tmp_path, alone, monkeypatch):
    """Points differ in their settings alone, and settings are not chosen on the very images that are used."""
    sampled = Counter(monkeypatch, Sampler, "sample")
    _tune(world, tmp_path / "out", TWO)
    by_guidance = {guidance: [call[2] for call in sampled.calls if call[3].guidance_scale == guidance] for guidance in (1.0, 2.0)}
    assert by_guidance[1.0][:2] == by_guidance[2.0][:2]
    used = {image_seed(0, name, index) for name in ("blue", "red") for index in range(100)}
    assert not used & {seed for call in sampled.calls for seed in call[2]}


def test_a_large_grid_is_reported_before_it_is_sampled(world, tmp_path, alone, capsys):
    """Points, images and passes are on stderr beforehand and in the metrics of `--json`; `--quiet` says nothing."""
    outcome = _run(world, tmp_path / "out", THREE, "tune.survivors=2", progress=True)
    # 3 points of 12 images, and 6 more for each of 2; 3 + 5 + 5 passes per image
    message = "3 points, 2 of them to CAS: 48 images, 156 network evaluations for FID alone"
    assert capsys.readouterr().err.splitlines()[0] == f"tune: {message}"
    assert message in outcome.summary
    assert (outcome.metrics["points"], outcome.metrics["images"]) == (3, 48)
    assert [name.name for name in outcome.files] == ["settings.json", "fid.png", "pareto.png"]
    assert all(path.is_file() for path in outcome.files)
    assert [place for place, _ in outcome.curves["point_fid"]] == [0, 1, 2]
    _run(world, tmp_path / "quiet", TWO)
    assert capsys.readouterr().err == ""
    assert _run(world, tmp_path / "out", THREE, "tune.survivors=2").reused


def test_the_bar_ends_where_the_sweep_does(world, tmp_path, alone, monkeypatch):
    """What was sampled, what was read back and what was scored before all count, so that a resumed sweep does not end at half."""
    counted = []
    for module in (batches, sweep):
        monkeypatch.setattr(module, "tick", counted.append)
    generator, bars = str(world / "generator"), []
    monkeypatch.setattr(tune, "Bar", lambda total, *args, **kwargs: bars.append(total) or contextlib.nullcontext())
    for name, more in (("first", ()), ("again", ()), ("wider", ("tune.survivors=3",))):
        _run(world, tmp_path / name, THREE, *more, generator=generator)
        assert sum(counted) == bars.pop()
        counted.clear()


def test_axes_a_generator_does_not_have_are_noted(world, tmp_path, alone):
    """A base alone has no super-resolution to sweep, and nothing to average: the sweep runs without those axes and says so."""
    generator = build_tiny_cascade(tmp_path / "generator")
    shutil.rmtree(generator / SUPER_RESOLUTION)
    recard(generator)
    outcome = _run(world, tmp_path / "out", TWO, "tune.sr_noise_levels=[0,100]", "tune.ema_sigma_rels=[null,0.1]", generator=generator)
    found = read_document(tmp_path / "out" / "settings.json", Settings)
    assert len(found.points) == 2
    assert [note.split(":")[0] for note in found.notes] == ["tune.sr_num_inference_steps", "tune.sr_noise_levels", "tune.ema_sigma_rels"]
    assert all(note in outcome.summary for note in found.notes)


@pytest.fixture(scope="module")
def averaged_world(world, tmp_path_factory):
    """A fine-tuned generator that kept snapshots of its averages."""
    out = tmp_path_factory.mktemp("averaged") / "generator"
    settings = ("num_train_steps=6", "sr_num_train_steps=0", "batch_size=4", "jitter=0", "ema_snapshot_steps=2", "learning_rate=0.01")
    config = load_config(None, tuple(f"finetune.{item}" for item in settings))
    finetune.run(config, snapshot=world / "real", base=str(world / "generator"), out=out)
    return out


def test_widths_of_the_average_are_an_axis(world, averaged_world, tmp_path, alone, monkeypatch):
    """Each width is averaged once, loaded once a pass, sampled with its own weights, and the chosen one is recorded."""
    written, loaded = Counter(monkeypatch, reaverage, "_write_generator"), Counter(monkeypatch, batches, "load_model")
    axes = ("tune.guidance_scales=[1.0,2.0]", "tune.survivors=6", "tune.ema_sigma_rels=[null,0.05,0.1]")
    found = _tune(world, tmp_path / "out", *axes, generator=averaged_world)
    assert (written.take(), loaded.take()) == (2, 3 + 3)
    assert [point.ema_sigma_rel for point in found.points] == [None, 0.05, 0.1] * 2
    assert len({point.fid for point in found.points}) == 6
    assert (found.ema_sigma_rel, found.chosen) == (found.chosen_point.ema_sigma_rel, found.chosen_point.settings)
    more = _tune(world, tmp_path / "more", *axes[:2], "tune.ema_sigma_rels=[0.05,0.1]", "tune.cas_seeds=2", generator=averaged_world)
    assert written.take() == 0
    assert [point.fid for point in more.points] == [point.fid for point in found.points if point.ema_sigma_rel is not None]


def test_a_width_that_cannot_be_had_is_refused_before_anything_is_sampled(world, averaged_world, tmp_path, alone, monkeypatch):
    """Without snapshots, or with snapshots too sparse, one line names the field and nothing is sampled."""
    sampled = Counter(monkeypatch, Sampler, "sample")
    bare = shutil.copytree(averaged_world, tmp_path / "bare")
    shutil.rmtree(bare / "ema")
    with pytest.raises(DataError, match=r"tune\.ema_sigma_rels: .*finetune\.ema_snapshot_steps"):
        _tune(world, tmp_path / "out", "tune.ema_sigma_rels=[0.1]", generator=bare)
    with pytest.raises(ConfigError, match=r"tune\.ema_sigma_rels: "):
        _tune(world, tmp_path / "out", "tune.ema_sigma_rels=[0.5]", generator=averaged_world)
    assert sampled.take() == 0
