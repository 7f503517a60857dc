"""The finetune stage: every method ends in a directory that plain diffusers loads, evaluations choose, and --resume shows works apart."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from relisted import relist
from tiny_pipelines import build_tiny_pipeline
from two_colours import two_colours

from gda.artifacts.cards import GeneratorCard
from gda.artifacts.document import read_document
from gda.artifacts.tuning import SamplingSettings
from gda.config.load import load_config
from gda.data.ingest.holdout import hold_out
from gda.data.store.snapshot import Snapshot
from gda.errors import ConfigError, UsageError
from gda.fidelity.held_out import held_out_score
from gda.generator.families.opening import load_model
from gda.generator.finetuning import train
from gda.generator.sampling.sampler import Sampler
from gda.generator.weights.lora import LORA_FILE
from gda.generator.weights.reaverage import average_generator
from gda.io.atomic import work_root
from gda.io.up_to_date import read_fingerprint
from gda.stages import finetune

SMALL = (
    "finetune.num_train_steps=4",
    "finetune.sr_num_train_steps=2",
    "finetune.batch_size=4",
    "finetune.warmup_steps=1",
    "finetune.learning_rate=0.01",
    "finetune.checkpointing_steps=2",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two colours with a tiny cascade, and tiny pipelines next to them."""
    root = two_colours(tmp_path_factory.mktemp("colours"), per_class=30)
    for kind in ("sd1", "sdxl"):
        build_tiny_pipeline(kind, root / kind)
    return root


@pytest.fixture(autouse=True)
def _work(tmp_path, monkeypatch):
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))


def _finetune(world, out, *settings, base="sd1", resume=None):
    config = load_config(None, SMALL + settings)
    return finetune.run(config, snapshot=world / "real", base=str(world / base), out=out, resume=resume)


def _plain(folder):
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _generate(pipeline, prompts):
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    return pipeline(
        list(prompts), guidance_scale=2.0, num_inference_steps=3, generator=generators, output_type="np", height=16, width=16
    ).images


@pytest.mark.parametrize("base", ["sd1", "sdxl"])
def test_lora_is_a_whole_pipeline_and_an_adapter_for_its_base(world, tmp_path, base):
    """Plain diffusers samples the same from the exported pipeline and from the base with the adapter's file."""
    _finetune(world, tmp_path / "g", "finetune.method=lora", "finetune.lora_rank=2", base=base)
    prompts = ("blue", "red")
    merged, adapted, plain = _plain(tmp_path / "g"), _plain(world / base), _plain(world / base)
    adapted.load_lora_weights(tmp_path / "g", weight_name=LORA_FILE)
    # The file leaves out what lies beyond four times the rank, which is nothing in four steps.
    assert np.abs(_generate(merged, prompts) - _generate(adapted, prompts)).max() < 2 / 255
    assert np.abs(_generate(merged, prompts) - _generate(plain, prompts)).max() > 4 / 255
    card = read_document(tmp_path / "g" / "generator.json", GeneratorCard)
    assert (card.training["method"], card.training["lora_rank"]) == ("lora", 2)


def test_lora_of_a_cascade_lies_next_to_each_stage(world, tmp_path):
    """Both stages of a cascade get adapters and their merged weights; what is sampled is not what the base samples."""
    outcome = _finetune(world, tmp_path / "g", "finetune.method=lora", "finetune.lora_rank=2", base="generator")
    assert {p.parent.name for p in (tmp_path / "g").rglob(LORA_FILE)} == {"base", "super_resolution"}
    assert set(outcome.metrics) == {"base_loss", "super_resolution_loss"}
    settings = SamplingSettings(guidance_scale=1.0, num_inference_steps=2, sr_num_inference_steps=2)
    sampled = [Sampler(load_model(str(g)), ["red"]).sample(["red"], [1], settings) for g in (tmp_path / "g", world / "generator")]
    assert not torch.equal(*sampled)


@pytest.mark.parametrize("base", ["sd1", "generator"])
def test_an_adapter_of_each_class_is_used_for_its_images_alone(world, tmp_path, base):
    """With lora_scope class the base's weights stay, each class is sampled with its own adapter, and a batch's order does not matter."""
    outcome = _finetune(world, tmp_path / "g", "finetune.method=lora", "finetune.lora_scope=class", "finetune.lora_rank=2", base=base)
    card = read_document(tmp_path / "g" / "generator.json", GeneratorCard)
    assert card.adapters == {"blue": "adapters/0000", "red": "adapters/0001"}
    stages = load_model(str(world / base)).stages
    assert set(outcome.metrics) == {f"{stage}/class-000{c}_loss" for stage in stages for c in (0, 1)}
    settings = SamplingSettings(guidance_scale=2.0, num_inference_steps=3, sr_num_inference_steps=1)
    sampler = Sampler(load_model(str(tmp_path / "g")), ("blue", "red"))
    mixed = sampler.sample(["blue", "red", "blue"], [1, 1, 2], settings)
    assert torch.equal(mixed[[1]], sampler.sample(["red"], [1], settings))
    assert torch.equal(mixed[[0, 2]], sampler.sample(["blue", "blue"], [1, 2], settings))
    plain = Sampler(load_model(str(world / base)), ("blue", "red")).sample(["red"], [1], settings)
    assert not torch.equal(plain, mixed[[1]])
    swapped = tmp_path / "swapped"
    shutil.copytree(tmp_path / "g", swapped)
    (swapped / "generator.json").write_text(card.model_copy(update={"adapters": {"red": "adapters/0000"}}).model_dump_json())
    relist(swapped)
    assert not torch.equal(Sampler(load_model(str(swapped)), ("red",)).sample(["red"], [1], settings), mixed[[1]])
    if base == "sd1":
        pipeline = _plain(tmp_path / "g")
        before = _generate(pipeline, ["red"])
        pipeline.load_lora_weights(tmp_path / "g" / card.adapters["red"])
        ours = sampler.sample(["red"], [0], SamplingSettings(guidance_scale=2.0, num_inference_steps=3)).permute(0, 2, 3, 1).numpy() / 255
        assert np.abs(ours - _generate(pipeline, ["red"])).max() < 2 / 255 < np.abs(ours - before).max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("finetune.lora_scope=class",), "lora_scope: must be dataset for finetune.method full"),
        (("finetune.lora_scope=class", "finetune.method=lora", "finetune.evaluation_steps=2"), "lora_scope: must be dataset where"),
        (("finetune.method=textual_inversion", "finetune.ema_snapshot_steps=2"), "ema_snapshot_steps: must be null for textual_inversion"),
        (("finetune.weight_interpolation=0.5", "finetune.ema_snapshot_steps=2"), "weight_interpolation: must be 1 where"),
        (("finetune.batch_size=5", "finetune.gradient_accumulation_steps=2"), "batch_size: must be a multiple of"),
        (("finetune.lora_target_modules=[nothing]", "finetune.method=lora"), "'nothing' matches no layer"),
        (("finetune.optimizer=sgd",), "optimizer"),
    ],
)
def test_what_does_not_go_together_is_reported(world, tmp_path, settings, message):
    """Settings that contradict each other are one line that names the field, and nothing is published."""
    with pytest.raises(ConfigError, match=message):
        _finetune(world, tmp_path / "g", *settings)
    assert not (tmp_path / "g").exists()


def test_learned_tokens_are_words_of_the_export(world, tmp_path):
    """Each class has a token of its own in its prompt, which the exported tokenizer knows as one word and plain diffusers samples."""
    _finetune(world, tmp_path / "g", "finetune.method=textual_inversion", "finetune.prompt_template=a photo of {class_name}")
    card = read_document(tmp_path / "g" / "generator.json", GeneratorCard)
    assert card.prompts == {"blue": "a photo of <blue>", "red": "a photo of <red>"}
    pipeline = _plain(tmp_path / "g")
    assert len(pipeline.tokenizer("<red>", add_special_tokens=False).input_ids) == 1
    ours = Sampler(load_model(str(tmp_path / "g")), card.prompts.values())
    settings = SamplingSettings(guidance_scale=2.0, num_inference_steps=3)
    sampled = ours.sample(list(card.prompts.values()), [0, 1], settings).permute(0, 2, 3, 1).numpy() / 255
    assert np.abs(sampled - _generate(pipeline, card.prompts.values())).max() < 2 / 255


def test_evaluations_choose_the_weights_and_leave_their_pictures(world, tmp_path):
    """With a real score: images held out of train, a curve, a picture each in the output, and the best step's weights on the card."""
    settings = ("finetune.evaluation_steps=2", "finetune.evaluation_images_per_class=3", "finetune.evaluation_num_inference_steps=2")
    outcome = _finetune(world, tmp_path / "g", *settings)
    curve = outcome.curves["unet_evaluation"]
    assert [step for step, _ in curve] == [2, 4]
    best = min(curve, key=lambda point: point[1])
    card = read_document(tmp_path / "g" / "generator.json", GeneratorCard)
    assert card.num_train_steps == {"unet": best[0]}
    assert card.metrics["unet_evaluation"] == best[1]
    assert f"weights of step {best[0]}, the best of 2 evaluated" in outcome.summary
    assert [step for step, path in outcome.images["unet"] if path.is_file()] == [2, 4]
    assert not list((tmp_path / "g").rglob("averaged-*"))
    count = len(Snapshot.open(world / "real").manifest("train"))
    used = int(outcome.summary.split("fine-tuned on ")[1].split()[0])
    assert 0 < used < count


def test_the_score_prefers_images_like_the_held_out_ones(world):
    """By both distances, the real images themselves score better than darker ones and than noise."""
    generator = torch.Generator().manual_seed(0)
    real = torch.full((12, 3, 16, 16), 100, dtype=torch.uint8) + torch.arange(12, dtype=torch.uint8)[:, None, None, None]
    noise = (torch.rand(12, 3, 16, 16, generator=generator) * 255).to(torch.uint8)
    for metric in ("fid", "kid"):
        score = held_out_score(real, extractor="glyph", metric=metric)
        assert score(real) < min(score(real // 2), score(noise))


def test_each_class_lends_and_keeps_images():
    """A held-out share of every class, at least one and never the last, decided by the image's key alone."""
    labels = torch.tensor([0] * 10 + [1] * 2 + [2])
    keys = [f"image-{i}" for i in range(13)]
    held = hold_out(keys, labels, 0.3)
    assert [int(held[labels == c].sum()) for c in range(3)] == [3, 1, 0]
    assert [int(hold_out(keys, labels, 0.89)[labels == c].sum()) for c in range(3)] == [9, 1, 0]
    order = torch.randperm(13, generator=torch.Generator().manual_seed(1))
    again = hold_out([keys[i] for i in order], labels[order], 0.3)
    assert {keys[i] for i in held.nonzero().flatten()} == {keys[order[i]] for i in again.nonzero().flatten()}


def _interrupt(monkeypatch, world, out, *settings, at=3):
    ticks = []

    def stop(*_, **__):
        ticks.append(1)
        if len(ticks) == at + 1:  # the first tick reports steps that were done before
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train, "tick", stop)
        with pytest.raises(KeyboardInterrupt):
            _finetune(world, out, *settings)
    return next((work_root() / "work").iterdir())


def test_resume_of_another_fingerprint_is_refused_with_the_difference(world, tmp_path, monkeypatch):
    """Changed configuration, seed, data or base: refused, each field with what it was and is."""
    work = _interrupt(monkeypatch, world, tmp_path / "g")
    with pytest.raises(UsageError, match=r"config\.learning_rate: 0\.01 -> 0\.02; config\.seed: 0 -> 7"):
        _finetune(world, tmp_path / "g", "finetune.learning_rate=0.02", "seed=7", resume=work)
    with pytest.raises(UsageError, match=r"inputs\.base: [0-9a-f]{64} -> [0-9a-f]{64}"):
        _finetune(world, tmp_path / "g", base="sdxl", resume=work / "unet" / "checkpoint-00000002")
    other = two_colours(tmp_path / "other", per_class=31)
    shutil.copytree(world / "sd1", other / "sd1")
    with pytest.raises(UsageError, match=r"inputs\.snapshot: "):
        _finetune(other, tmp_path / "g", resume=work)
    with pytest.raises(UsageError, match="neither a work folder nor a checkpoint"):
        _finetune(world, tmp_path / "g", resume=tmp_path / "nothing")
    assert not (tmp_path / "g").exists()


def test_resume_continues_what_was_brought_from_elsewhere(world, tmp_path, monkeypatch):
    """A work folder or checkpoint of the same fingerprint is continued, from another place too, to the weights of the uninterrupted run."""
    whole = _finetune(world, tmp_path / "whole")
    moved = shutil.move(_interrupt(monkeypatch, world, tmp_path / "g"), tmp_path / "moved")
    steps = []
    monkeypatch.setattr(train, "tick", lambda *count, **_: steps.extend(count))
    resumed = _finetune(world, tmp_path / "g", resume=tmp_path / "moved" / "unet" / "checkpoint-00000002")
    assert steps[0] == 2
    assert resumed.digest == whole.digest
    assert moved == tmp_path / "moved"


def test_a_changed_prompt_file_is_another_work(world, tmp_path):
    """What a class is called goes into the fingerprint by content, not by the file's path."""
    file = tmp_path / "prompts.yaml"
    file.write_text("red: a red square\n")
    setting = f"finetune.prompt_file={file}"
    _finetune(world, tmp_path / "g", setting)
    assert read_document(tmp_path / "g" / "generator.json", GeneratorCard).prompts == {"blue": "blue", "red": "a red square"}
    assert _finetune(world, tmp_path / "g", setting).reused
    file.write_text("red: a crimson square\n")
    with pytest.raises(UsageError, match="a red square -> a crimson square"):
        _finetune(world, tmp_path / "g", setting)
    file.write_text("red: blue\n")
    with pytest.raises(ConfigError, match="share the prompt"):
        _finetune(world, tmp_path / "h", setting)


def test_names_that_the_encoder_cannot_tell_apart_are_listed_before_training(world, tmp_path):
    """Prompts of unknown letters are one and the same to the text encoder: refused, with the way out, before any step."""
    file = tmp_path / "prompts.yaml"
    file.write_text("red: 红\nblue: 蓝\n")
    with pytest.raises(ConfigError, match=r"'blue'.*'red'.*textual_inversion"):
        _finetune(world, tmp_path / "g", f"finetune.prompt_file={file}")


def test_names_and_places_do_not_change_a_fingerprint(world, tmp_path):
    """How often checkpoints are written and what the model is called in the registry are no part of the work's identity."""
    _finetune(world, tmp_path / "g")
    assert _finetune(world, tmp_path / "g", "finetune.checkpointing_steps=3", "finetune.model_name=null").reused
    fingerprint = read_fingerprint(tmp_path / "g")
    assert {"base", "snapshot"} == set(fingerprint.inputs)
    assert fingerprint.config["prompts"] == {"blue": "blue", "red": "red"}


def test_every_setting_is_part_of_the_fingerprint_and_of_the_card(world, tmp_path):
    """Another value of any setting makes another generator, and the card of each has it."""
    _finetune(world, tmp_path / "g")
    _finetune(world, tmp_path / "h", "finetune.weight_interpolation=0.5")
    cards = [read_document(tmp_path / name / "generator.json", GeneratorCard) for name in "gh"]
    recorded = [read_fingerprint(tmp_path / name).config["weight_interpolation"] for name in "gh"]
    assert recorded == [card.training["weight_interpolation"] for card in cards] == [1.0, 0.5]
    assert cards[0].digest != cards[1].digest


def test_two_processes_write_one_generator(world, tmp_path):
    """Under torchrun the command prints one line and publishes once, and what it publishes is what one process makes, but for rounding."""
    command = ["finetune", "--snapshot", str(world / "real"), "--base", str(world / "sd1"), "--json"]
    command += [word for setting in SMALL for word in ("--set", setting)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "gda"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }
    done = subprocess.run([*launcher, *command, "--out", "g"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    assert len(lines) == 1
    metrics = json.loads(lines[0])["metrics"]
    alone = _finetune(world, tmp_path / "alone")
    assert metrics["unet_loss"] == pytest.approx(alone.metrics["unet_loss"], abs=1e-4)
    assert _plain(tmp_path / "g").unet is not None


@pytest.mark.parametrize("method", ["full", "lora"])
def test_another_average_is_made_of_the_snapshots_of_a_run(world, tmp_path, method):
    """`gda ema` takes what the trainer kept, for adapters too: the width stored is the one given back, and diffusers loads it."""
    settings = (f"finetune.method={method}", "finetune.ema_snapshot_steps=2", "finetune.lora_rank=2", "finetune.num_train_steps=6")
    _finetune(world, tmp_path / "g", *settings)
    outcome = average_generator(tmp_path / "g", 0.10, tmp_path / "wide")
    narrow = average_generator(tmp_path / "g", 0.05, tmp_path / "narrow")
    assert len({outcome.digest, narrow.digest, read_document(tmp_path / "g" / "generator.json", GeneratorCard).digest}) == 3
    assert not (tmp_path / "wide" / LORA_FILE).exists()
    assert not (tmp_path / "wide" / "ema").exists()
    images = [_generate(_plain(tmp_path / name), ["red"]) for name in ("wide", "narrow")]
    assert np.abs(images[0] - images[1]).max() > 0
