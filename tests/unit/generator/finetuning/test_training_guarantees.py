"""What the settings of the trainer promise: the same result in less memory, reduced precision that resumes, a cache that can be trusted."""

import errno
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from stage_jobs import stage_job
from tiny_pipelines import build_tiny_pipeline
from trees import tree

from gda.artifacts.tuning import SamplingSettings
from gda.config.sections import FinetuneConfig
from gda.data.ingest.holdout import hold_out
from gda.errors import DataError, MissingError
from gda.fidelity.held_out import HeldOutScore
from gda.generator.families import diffusers_pipeline
from gda.generator.families.latent import LatentUNet
from gda.generator.families.opening import load_model
from gda.generator.finetuning import prepared, run, train
from gda.generator.finetuning.checkpoints import Checkpoints, TrainingState
from gda.generator.finetuning.divided import like
from gda.generator.finetuning.evaluation import Evaluation
from gda.generator.finetuning.methods import make_method, prepare_network
from gda.generator.finetuning.optimizer import load_optimizer_state, make_optimizer, optimizer_state
from gda.generator.finetuning.order import Order
from gda.generator.finetuning.prepared import Prepared, PreparedSource, Texts, unit
from gda.generator.finetuning.run import TrainingRun
from gda.generator.finetuning.tokens import Tokens
from gda.generator.finetuning.train import finetune_stage
from gda.generator.weights.directory import BASE
from gda.runtime.process_group import ProcessGroup
from gda.runtime.rng import stream_seed
from gda.runtime.torch_rng import RandomStreams

CPU = torch.device("cpu")
PROMPTS = ("a", "b") * 3
WORLD = ProcessGroup(rank=0, size=1, device=CPU)


@pytest.fixture(scope="session")
def sd1(tmp_path_factory):
    """A tiny Stable Diffusion 1."""
    return build_tiny_pipeline("sd1", tmp_path_factory.mktemp("sd1") / "sd1")


def _images(count=6):
    return (torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)


def _job(base, work, **changes):
    return stage_job(base, work, _images(), PROMPTS, **({"learning_rate": 3e-3} | changes))


def _equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _farthest(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def _stop_after(monkeypatch, steps):
    """Interrupt training after so many steps of this process."""
    ticks = []

    def tick(*_, **__):
        ticks.append(1)
        if len(ticks) == steps + 1:  # the first tick shows how far a restart has come already
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "tick", tick)


def _interrupted(job, monkeypatch, after):
    """The result of a job stopped after so many steps and started again."""
    with monkeypatch.context() as patch:
        _stop_after(patch, after)
        with pytest.raises(KeyboardInterrupt):
            finetune_stage(job)
    return finetune_stage(job)


def _evaluation(score):
    settings = SamplingSettings(guidance_scale=1.0, num_inference_steps=1)
    return Evaluation(steps=2, prompts=("a", "b"), seeds=(1, 2), settings=settings, score=score, shown=(0, 1))


class _Scores:
    """Gives the scores that it was given to, in order; `seen` keeps what it was shown."""

    def __init__(self, *scores):
        self.scores, self.seen = scores, []

    def __call__(self, images):
        self.seen.append(images)
        return self.scores[len(self.seen) - 1]


# The same result in less memory


@pytest.mark.parametrize("changes", [{}, {"method": "lora", "lora_rank": 2}, {"jitter": 0.5}])
def test_parts_of_a_batch_give_what_the_whole_gives(sd1, tmp_path, changes):
    """Losses and weights of a step computed in four parts are those of the whole batch, up to rounding."""
    # A plain mean of gradients shows best where nothing divides by their size.
    whole = finetune_stage(_job(sd1, tmp_path / "whole", **changes))
    parts = finetune_stage(_job(sd1, tmp_path / "parts", gradient_accumulation_steps=4, **changes))
    other = finetune_stage(_job(sd1, tmp_path / "other", max_grad_norm=1e-3, **changes))
    assert parts.losses == pytest.approx(whole.losses, abs=1e-5)
    assert _farthest(whole.weights, parts.weights) < 0.05 * _farthest(whole.weights, other.weights)


def test_gradients_of_parts_are_averaged_and_not_summed(sd1, tmp_path, monkeypatch):
    """The gradient that the optimizer is given is the mean over all images of the step, and it is clipped as such."""
    given = []
    clip = torch.nn.utils.clip_grad_norm_

    def keep(parameters, limit):
        given.append(torch.cat([p.grad.flatten().clone() for p in parameters]))
        norm = clip(parameters, limit)
        assert torch.cat([p.grad.flatten() for p in parameters]).norm() <= limit * 1.001
        return norm

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", keep)
    for parts in (1, 2):
        finetune_stage(_job(sd1, tmp_path / str(parts), steps=1, gradient_accumulation_steps=parts, max_grad_norm=0.01))
    whole, summed = given
    assert whole.norm() > 0.01
    assert torch.allclose(whole, summed, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("base", ["cascade", "sd1"])
def test_gradient_checkpointing_changes_nothing(sd1, tiny, tmp_path, base):
    """Activations computed twice are the same activations: losses and weights agree, and the network did compute in pieces."""
    base = tiny if base == "cascade" else sd1
    plain = finetune_stage(_job(base, tmp_path / "plain"))
    checked = finetune_stage(_job(base, tmp_path / "checked", gradient_checkpointing=True))
    assert checked.losses == pytest.approx(plain.losses, abs=1e-5)
    network = load_model(str(sd1)).network("unet")
    prepare_network(network, FinetuneConfig(gradient_checkpointing=True), WORLD)
    assert network.is_gradient_checkpointing
    assert network.training


def test_compilation_leaves_the_loss_curve(sd1, tmp_path, monkeypatch):
    """A compiled network has the same losses, checkpoints under the same names, and weights that an export takes."""
    compiled_by_torch, compiled = torch.nn.Module.compile, []

    def trace_alone(network):
        """Without the code generator, which takes a minute: what the trainer meets is the same wrapping."""
        compiled.append(type(network).__name__)
        compiled_by_torch(network, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", trace_alone)
    results = {name: finetune_stage(_job(sd1, tmp_path / name, steps=2, compile=name == "compiled")) for name in ("plain", "compiled")}
    assert compiled == ["UNet2DConditionModel"]
    assert results["compiled"].losses == pytest.approx(results["plain"].losses, abs=1e-5)
    assert results["compiled"].weights.keys() == results["plain"].weights.keys()
    names = [load_file(folder / "unet" / "checkpoint-00000002" / "state.safetensors").keys() for folder in tmp_path.iterdir()]
    assert names[0] == names[1]


# Resume


@pytest.mark.parametrize(
    "changes",
    [
        {"mixed_precision": "bf16"},
        {"mixed_precision": "fp16"},
        {"optimizer": "adafactor"},
        {"method": "lora", "lora_rank": 2},
        {"gradient_accumulation_steps": 2, "class_balanced": True, "horizontal_flip": True},
    ],
)
def test_settings_resume_to_identical_weights(sd1, tmp_path, monkeypatch, changes):
    """Stopped between two checkpoints and started again, a run ends bit for bit as one left alone, and learns something."""
    whole = finetune_stage(_job(sd1, tmp_path / "whole", **changes))
    resumed = _interrupted(_job(sd1, tmp_path / "cut", **changes), monkeypatch, after=3)
    assert resumed.losses == whole.losses
    assert _equal(resumed.weights, whole.weights)
    base = load_model(str(sd1)).network("unet").state_dict()
    assert any(not torch.equal(whole.weights[name], base[name]) for name in base)


def test_learned_tokens_resume_to_identical_rows(sd1, tmp_path, monkeypatch):
    """The rows of new tokens, their averages and their optimizer's state are all in the checkpoint."""
    tokens = Tokens(names={"a": "<a>", "b": "<b>"}, initial={"a": "a", "b": "b"})
    job = replace(_job(sd1, tmp_path / "whole", method="textual_inversion"), tokens=tokens, prompts=("<a>", "<b>") * 3)
    whole = finetune_stage(job)
    resumed = _interrupted(replace(job, work=tmp_path / "cut"), monkeypatch, after=3)
    assert resumed.losses == whole.losses
    assert _equal(resumed.averaged, whole.averaged)
    assert whole.averaged


def test_interpolated_tokens_lie_between_their_words_and_what_was_learned(sd1, tmp_path):
    """Two shares of the way lie on the line from the initial rows: the part learned grows in proportion."""
    tokens = Tokens(names={"a": "<a>", "b": "<b>"}, initial={"a": "a", "b": "b"})
    rows = {}
    for share in (0.25, 0.5, 1.0):
        job = _job(sd1, tmp_path / str(share), method="textual_inversion", weight_interpolation=share)
        rows[share] = finetune_stage(replace(job, tokens=tokens, prompts=("<a>", "<b>") * 3)).averaged
    for role, learned in rows[1.0].items():
        half, quarter = rows[0.5][role], rows[0.25][role]
        initial = 2 * half - learned
        assert float((learned - initial).abs().max()) > 1e-3
        assert torch.allclose(quarter, initial + 0.25 * (learned - initial), atol=1e-6)
        assert torch.allclose(initial.norm(dim=1), learned.norm(dim=1), rtol=0.2)


def test_the_scale_of_half_precision_survives_a_restart(sd1, tmp_path):
    """After a restart the loss scale and its count of good steps are what they were, not what a fresh scaler starts with."""

    def start(work):
        model = load_model(str(sd1))
        texts = Texts(model, ("a",), cache=None, device=CPU)
        config = FinetuneConfig(mixed_precision="fp16", optimizer="adafactor")
        method = make_method(model, "unet", config, texts, WORLD, tokens=None, seed=0)
        return TrainingRun(method, config, 4, WORLD, Checkpoints(work, limit=2))

    first = start(tmp_path)
    for parameter in first.parameters.values():
        parameter.grad = torch.full_like(parameter, float("inf"))
    first.scaler.scale(torch.ones(()))  # makes the scale
    before = {name: value.detach().clone() for name, value in first.parameters.items()}
    first.update(1.0)
    assert _equal(before, {name: value.detach() for name, value in first.parameters.items()})  # an overflow changes no weight
    assert first.step == 1
    first.save()
    second = start(tmp_path)
    fresh = second.scaler.state_dict()
    second.restore()
    assert second.scaler.state_dict() == first.scaler.state_dict() != fresh


def test_a_restart_between_evaluation_and_checkpoint_agrees(sd1, tmp_path, monkeypatch):
    """Killed after weights were evaluated and kept but before the checkpoint, the evaluation is made again and all ends alike."""
    scores = {"whole": _Scores(3.0, 1.0, 2.0), "cut": _Scores(3.0, 1.0), "again": _Scores(1.0, 2.0)}
    whole = finetune_stage(replace(_job(sd1, tmp_path / "whole"), evaluation=_evaluation(scores["whole"])))
    save, saves = TrainingRun.save, []

    def die_at_the_second(self):
        saves.append(1)
        if len(saves) == 2:
            raise KeyboardInterrupt
        save(self)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "save", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            finetune_stage(replace(_job(sd1, tmp_path / "cut"), evaluation=_evaluation(scores["cut"])))
    again = finetune_stage(replace(_job(sd1, tmp_path / "cut"), evaluation=_evaluation(scores["again"])))
    assert again.scores == whole.scores
    assert again.step == whole.step == 4
    assert _equal(again.weights, whole.weights)
    assert torch.equal(scores["cut"].seen[1], scores["again"].seen[0])


def test_falling_back_past_a_damaged_checkpoint_finds_its_best(sd1, tmp_path):
    """With the newest checkpoint damaged, the best weights of the one before are still there to be compared with."""
    job = replace(_job(sd1, tmp_path), evaluation=_evaluation(_Scores(1.0, 2.0, 0.5)))
    finetune_stage(job)
    (tmp_path / "unet" / "checkpoint-00000006" / "state.safetensors").write_bytes(b"")
    result = finetune_stage(replace(job, evaluation=_evaluation(_Scores(3.0))))
    assert result.scores == ((2, 1.0), (4, 2.0), (6, 3.0))
    assert result.step == 2


def test_the_checkpoint_requested_is_where_it_continues(sd1, tmp_path, monkeypatch):
    """`resume_at` passes over later checkpoints, says nothing of them, and takes the steps in between again."""
    job = _job(sd1, tmp_path, checkpoints_total_limit=9)
    whole = finetune_stage(job)
    steps, advance = [], train._Loop.advance
    monkeypatch.setattr(train._Loop, "advance", lambda loop: steps.append(loop.run.step) or advance(loop))
    again = finetune_stage(replace(job, resume_at=2))
    assert steps == [2, 3, 4, 5]
    assert again.notes == ()
    assert _equal(whole.weights, again.weights)


def test_a_checkpoint_whose_bytes_changed_is_not_read(tmp_path):
    """A flipped bit that leaves the file readable is still damage; so is a missing or empty half of a checkpoint."""
    for damage in ("flip", "no index", "no weights", "empty index"):
        store = Checkpoints(tmp_path / damage, limit=2)
        for step in (1, 2):
            folder = store.save(TrainingState(step=step, tensors={"w": torch.ones(64)}, losses=(0.5,)))
        data = bytearray((folder / "state.safetensors").read_bytes())
        data[-1] ^= 1
        if damage == "flip":
            (folder / "state.safetensors").write_bytes(bytes(data))
        elif damage == "empty index":
            (folder / "state.json").write_text("")
        else:
            (folder / ("state.json" if damage == "no index" else "state.safetensors")).unlink()
        state, notes = store.load_newest()
        assert state is not None
        assert state.step == 1
        assert len(notes) == 1


def test_leftovers_of_a_killed_writer_are_cleared(tmp_path):
    """A half-written checkpoint has no name that is read, and goes with the next save."""
    store = Checkpoints(tmp_path, limit=2)
    (tmp_path / ".checkpoint-00000009.123").mkdir(parents=True)
    assert store.load_newest() == (None, [])
    store.save(TrainingState(step=1, tensors={"w": torch.ones(1)}, losses=()))
    store.save(TrainingState(step=1, tensors={"w": torch.zeros(1)}, losses=()))  # a step that is done again replaces its checkpoint
    state, _ = store.load_newest()
    assert state is not None
    assert not state.tensors["w"].any()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000001"]


def test_every_step_takes_the_rate_that_its_number_says(sd1, tmp_path, monkeypatch):
    """Rates are requested by the run's own step and length, restart or not."""
    request, rate_at = [], run.rate_at
    monkeypatch.setattr(run, "rate_at", lambda step, total, config: request.append((step, total)) or rate_at(step, total, config))
    _interrupted(_job(sd1, tmp_path, steps=4), monkeypatch, after=3)
    assert request == [(0, 4), (1, 4), (2, 4), (2, 4), (3, 4)]


def test_averages_follow_the_weights_and_warm_up(sd1, tmp_path):
    """The first average forgets its start almost wholly, later ones move by the decay that is requested at most."""
    job = _job(sd1, tmp_path / "a", steps=2, ema_decay=0.0, checkpointing_steps=1, checkpoints_total_limit=9)
    finetune_stage(job)
    finetune_stage(replace(job, config=job.config.model_copy(update={"ema_decay": 0.99}), work=tmp_path / "b"))
    first, second = (load_file(tmp_path / "a" / "unet" / f"checkpoint-0000000{i}" / "state.safetensors") for i in (1, 2))
    assert all(torch.equal(first[f"average.{n}"], first[f"trained.{n}"]) for n in _names(first))
    averaged = load_file(tmp_path / "b" / "checkpoint-00000002" / "state.safetensors")
    start = load_model(str(job.base)).network("unet").state_dict()
    for name in _names(second):
        one, two, old = first[f"trained.{name}"], second[f"trained.{name}"], start[name]
        after_one = old + (one - old) * (1 - 1 / 11)
        assert torch.allclose(averaged[f"average.{name}"], after_one + (two - after_one) * (1 - 2 / 12), atol=1e-6)


def _names(state):
    return [name.removeprefix("trained.") for name in state if name.startswith("trained.")]


def test_step_counters_stay_where_the_optimizer_made_them():
    """A restored optimizer's entries lie as a fresh one's do: moments with their parameter in its type, counters on the CPU."""
    parameters = {"w": torch.nn.Parameter(torch.ones(3, 2)), "b": torch.nn.Parameter(torch.ones(2))}
    config = FinetuneConfig()
    one, two = (make_optimizer(list(parameters.values()), config) for _ in range(2))
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    one.step()
    load_optimizer_state(two, parameters, *optimizer_state(one, parameters))
    for parameter in parameters.values():
        assert two.state[parameter].keys() == one.state[parameter].keys()
        assert all(torch.equal(two.state[parameter][k], one.state[parameter][k]) for k in one.state[parameter])
        assert two.state[parameter]["step"].device.type == "cpu"
    assert like(torch.ones(2), torch.empty(2, device="meta")).device.type == "meta"  # placed as the example is


def test_optimizers_take_what_the_configuration_says():
    """Rate and weight decay reach the optimizer that is named."""
    for name, kind in (("adamw", torch.optim.AdamW), ("adafactor", torch.optim.Adafactor)):
        optimizer = make_optimizer(
            [torch.nn.Parameter(torch.ones(2))], FinetuneConfig(optimizer=name, learning_rate=0.25, weight_decay=0.125)
        )
        assert type(optimizer) is kind
        assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.25, 0.125)


# Trouble


def test_out_of_memory_says_what_to_set_and_loses_nothing(sd1, tmp_path, monkeypatch):
    """The message names the settings that help and their values; run again, it continues from its checkpoint to the same end."""
    whole = finetune_stage(_job(sd1, tmp_path / "whole"))
    real, calls = LatentUNet.loss, []

    def no_room(*args, **given):
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return real(*args, **given)

    with monkeypatch.context() as patch:
        patch.setattr(LatentUNet, "loss", no_room)
        with pytest.raises(MissingError) as raised:
            finetune_stage(_job(sd1, tmp_path / "cut"))
    message = str(raised.value)
    assert "out of memory in stage unet (CUDA out of memory. Tried to allocate 2.00 GiB.); " in message
    for way in ("gradient_accumulation_steps (now 1)", "gradient_checkpointing: true", "mixed_precision: bf16", "batch_size (now 4)"):
        assert f"finetune.{way}" in message
    steps, advance = [], train._Loop.advance
    monkeypatch.setattr(train._Loop, "advance", lambda loop: steps.append(loop.run.step) or advance(loop))
    again = finetune_stage(_job(sd1, tmp_path / "cut"))
    assert steps == [2, 3, 4, 5]
    assert _equal(whole.weights, again.weights)


def test_out_of_memory_proposes_nothing_that_is_set_already(sd1, tmp_path, monkeypatch):
    """What is in use is not proposed again; the CPU's allocator is understood too, and another error is left alone."""

    def fail(message):
        def loss(*_, **__):
            raise RuntimeError(message)

        return loss

    monkeypatch.setattr(LatentUNet, "loss", fail("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."))
    with pytest.raises(MissingError, match="batch_size") as raised:
        finetune_stage(_job(sd1, tmp_path, gradient_checkpointing=True, mixed_precision="bf16"))
    assert "gradient_checkpointing" not in str(raised.value)
    assert "mixed_precision" not in str(raised.value)
    monkeypatch.setattr(LatentUNet, "loss", fail("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        finetune_stage(_job(sd1, tmp_path))


def test_a_full_disk_leaves_the_checkpoint_before(sd1, tmp_path, monkeypatch):
    """A checkpoint that cannot be written is one line naming it; the one before is whole, and with room again the run goes on."""
    whole = finetune_stage(_job(sd1, tmp_path / "whole"))
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(1)
        if len(calls) > 3:  # the first checkpoint is two files and the name of their folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(MissingError, match=r"checkpoint-00000004: cannot be written \(No space left on device\)"):
            finetune_stage(_job(sd1, tmp_path / "cut"))
    state, notes = Checkpoints(tmp_path / "cut" / "unet", limit=2).load_newest()
    assert state is not None
    assert (state.step, notes) == (2, [])
    assert _equal(whole.weights, finetune_stage(_job(sd1, tmp_path / "cut")).weights)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_a_number_is_never_learned_from(sd1, tmp_path, monkeypatch, value):
    """One bad image in one part of the batch stops the run before the optimizer moves, and that image alone is named."""
    real, calls = LatentUNet.loss, []

    def bad(*args, **given):
        calls.append(1)
        losses = real(*args, **given)
        return losses * torch.tensor([1.0, float(value)]) if len(calls) == 2 else losses

    def moved(*_):
        pytest.fail("the optimizer moved")

    monkeypatch.setattr(LatentUNet, "loss", bad)
    monkeypatch.setattr(TrainingRun, "update", moved)
    job = _job(sd1, tmp_path, gradient_accumulation_steps=2)
    named = job.keys[int(Order(job.labels, seed=0).indices(0, 4)[3])]
    kind = "nan" if value == "nan" else "infinite"
    with pytest.raises(DataError, match=rf"loss became {kind} at step 1 on image {named}; last good state: none"):
        finetune_stage(job)


# What the network is fed with


def test_a_second_run_encodes_nothing(sd1, tmp_path, monkeypatch):
    """Latents and text states come from the cache, and what is learned is what a run without one learns."""
    plain = finetune_stage(_job(sd1, tmp_path / "plain"))
    first = finetune_stage(_job(sd1, tmp_path / "a", cache=tmp_path / "cache"))
    files = tree(tmp_path / "cache", "*.safetensors")
    assert len(files) == 2

    def never(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr(diffusers_pipeline, "latent_moments", never)
    monkeypatch.setattr(LatentUNet, "encode", never)
    second = finetune_stage(_job(sd1, tmp_path / "b", cache=tmp_path / "cache", learning_rate=1e-3))
    third = finetune_stage(_job(sd1, tmp_path / "c", cache=tmp_path / "cache"))
    assert plain.losses == first.losses == third.losses != second.losses
    assert _equal(plain.weights, third.weights)
    assert files == tree(tmp_path / "cache", "*.safetensors")


@pytest.mark.parametrize("part", ["latents", "text"])
@pytest.mark.parametrize("left", [0, 4, -1])
def test_a_damaged_cache_file_is_made_again(sd1, tmp_path, part, left):
    """A file that ends early is noticed, replaced, and changes nothing."""
    plain = finetune_stage(_job(sd1, tmp_path / "a", cache=tmp_path / "cache"))
    (path,) = (p for p in (tmp_path / "cache").rglob("*.safetensors") if part in str(p.relative_to(tmp_path / "cache")))
    data = path.read_bytes()
    path.write_bytes(data[:left])
    again = finetune_stage(_job(sd1, tmp_path / "b", cache=tmp_path / "cache"))
    assert path.read_bytes() == data
    assert again.losses == plain.losses


def test_what_changes_latents_or_text_has_a_file_of_its_own(sd1, tmp_path):
    """Other images, another autoencoder, mirrored images and another size get latents of their own; other encoders and prompts, text."""
    cache = tmp_path / "cache"

    def kept(base, prompts=("a", "b"), *, images=None, flip=False):
        images = _images() if images is None else images
        model = load_model(str(base))
        source = PreparedSource(images=images, digest=str(stream_seed(images.numpy().tobytes().hex())), cache=cache)
        Prepared(model, source, jitter=0.0, flip=flip, device=CPU)
        Texts(model, prompts, cache=cache, device=CPU)
        return {path.name for path in cache.iterdir() if path.name.startswith("latents")}, {path.name for path in cache.glob("text*")}

    def counts(*args, **given):
        latents, texts = kept(*args, **given)
        return len(latents), len(texts)

    assert counts(sd1) == (1, 1)
    assert counts(sd1, ("b", "a", "a")) == (1, 1)  # the same prompts
    assert counts(sd1, images=_images().flip(0)) == (2, 1)
    assert counts(sd1, flip=True) == (3, 1)
    assert counts(sd1, ("a", "c")) == (3, 2)
    for file, change, expected in (
        ("vae/config.json", {"force_upcast": False}, (4, 2)),
        ("text_encoder/config.json", {"attention_dropout": 0.25}, (4, 3)),
        ("tokenizer/tokenizer_config.json", {"unk_token": "<|endoftext|>", "clean_up_tokenization_spaces": True}, (4, 4)),
        ("unet/config.json", {"dropout": 0.25}, (4, 4)),
        ("scheduler/scheduler_config.json", {"clip_sample_range": 2.0}, (4, 4)),
        ("text_encoder/extra.json", {}, (4, 4)),  # no file in use
    ):
        other = shutil.copytree(sd1, tmp_path / file.replace("/", "-"))
        content = json.loads((other / file).read_text()) if (other / file).is_file() else {}
        (other / file).write_text(json.dumps(content | change))
        assert counts(other) == expected, file
    small = torch.nn.functional.interpolate(_images().float(), 8).to(torch.uint8)
    model, source = (
        load_model(str(sd1)),
        PreparedSource(images=small, digest=str(stream_seed(small.numpy().tobytes().hex())), cache=cache),
    )
    Prepared(model, source, jitter=0.0, flip=False, device=CPU)
    assert len(list(cache.glob("latents*"))) == 5


@pytest.mark.parametrize("cached", [True, False])
def test_latents_of_many_files_are_those_of_their_images(sd1, tmp_path, monkeypatch, cached):
    """Across file borders and passes every row, mirrored or not, is the encoding of its own image."""
    monkeypatch.setattr(prepared, "_ROWS_A_FILE", 4)
    monkeypatch.setattr(prepared, "_AT_ONCE", 3)
    images, model = _images(10), load_model(str(sd1))
    rows = Prepared(model, PreparedSource(images=images, digest="d", cache=tmp_path if cached else None), jitter=0.0, flip=True, device=CPU)
    chosen = torch.tensor([9, 3, 4, 0, 8, 7, 3])
    found = rows.take(chosen, RandomStreams(range(7)))
    mirrored = RandomStreams(range(7)).uniform() < 0.5
    assert mirrored.any()
    assert not mirrored.all()
    for row, index, flipped in zip(found, chosen.tolist(), mirrored.tolist(), strict=True):
        image = images[index].flip(2) if flipped else images[index]
        assert torch.allclose(row, model.prepare(unit(image[None]))[0], atol=1e-5)
    assert len(list(tmp_path.rglob("*.safetensors"))) == (3 if cached else 0)


def test_processes_share_the_files_that_are_missing(sd1, tmp_path, monkeypatch):
    """Each of two processes encodes its half of the files, and then both read all of them."""
    monkeypatch.setattr(prepared, "_ROWS_A_FILE", 4)
    encoded, real = [], diffusers_pipeline.latent_moments
    monkeypatch.setattr(diffusers_pipeline, "latent_moments", lambda vae, images: encoded.append(len(images)) or real(vae, images))
    model, source = load_model(str(sd1)), PreparedSource(images=_images(10), digest="d", cache=tmp_path)
    both = [Prepared(model, source, jitter=0.0, flip=False, device=CPU, share=slice(rank, None, 2)) for rank in (0, 1)]
    assert encoded == [4, 2, 4]
    every = torch.arange(10)
    assert torch.equal(both[0].take(every, RandomStreams(range(10))), both[1].take(every, RandomStreams(range(10))))


def test_pixels_are_mirrored_where_their_streams_say(tiny):
    """In pixel space too, the images that are mirrored are those whose samples say so, and none without the setting."""
    model, images = load_model(str(tiny)), _images()
    source, every = PreparedSource(images=images, digest="d"), torch.arange(6)
    found = Prepared(model, source, jitter=0.0, flip=True, device=CPU).take(every, RandomStreams(range(6)))
    mirrored = RandomStreams(range(6)).uniform() < 0.5
    assert mirrored.any()
    assert not mirrored.all()
    assert torch.equal(found, torch.where(mirrored[:, None, None, None], unit(images).flip(3), unit(images)))
    assert torch.equal(Prepared(model, source, jitter=0.0, flip=False, device=CPU).take(every, RandomStreams(range(6))), unit(images))


def test_a_batch_is_of_the_order_and_its_own_prompts(tiny, tmp_path, monkeypatch):
    """Step by step the network is given the images of the order, each with its own prompt, or the empty one where it was dropped."""
    seen = []
    real = prepared.Prepared.take
    monkeypatch.setattr(prepared.Prepared, "take", lambda self, chosen, streams: seen.append(chosen) or real(self, chosen, streams))
    message, text = [], Texts.take
    monkeypatch.setattr(Texts, "take", lambda self, prompts: message.append(list(prompts)) or text(self, prompts))
    job = stage_job(tiny, tmp_path, _images(), ("a", "b", "b", "b", "b", "b"), stage=BASE, class_balanced=True, prompt_dropout=0.5)
    finetune_stage(job)
    order = Order(job.labels, seed=0, balanced=True)
    assert torch.equal(torch.cat(seen), order.indices(0, 24))
    assert torch.cat(seen).bincount(minlength=6)[0] == 12
    meant = [job.prompts[i] for i in torch.cat(seen).tolist()]
    flat = [prompt for batch in message for prompt in batch]
    assert {(m, s) for m, s in zip(meant, flat, strict=True)} == {("a", "a"), ("a", ""), ("b", "b"), ("b", "")}
    dropped = [float(train.step_streams(0, BASE, p // 4, slice(p % 4, p % 4 + 1)).uniform()) < 0.5 for p in range(24)]
    assert [s == "" for s in flat] == dropped


def test_prompts_are_dropped_as_often_as_configured(tiny, tmp_path, monkeypatch):
    """At 0 no prompt is replaced, at 1 every one is."""
    message, text = [], Texts.take
    monkeypatch.setattr(Texts, "take", lambda self, prompts: message.extend(prompts) or text(self, prompts))
    finetune_stage(_job(tiny, tmp_path / "a", stage=BASE, steps=3, prompt_dropout=0.0))
    assert set(message) == {"a", "b"}
    message.clear()
    finetune_stage(_job(tiny, tmp_path / "b", stage=BASE, steps=3, prompt_dropout=1.0))
    assert set(message) == {""}


def test_stages_and_seeds_learn_from_other_noise(tiny, tmp_path):
    """Another seed is another run; the same one is the same, whatever happened to the global generator meanwhile."""
    one = finetune_stage(_job(tiny, tmp_path / "a", stage=BASE, steps=2))
    torch.manual_seed(99)
    assert finetune_stage(_job(tiny, tmp_path / "b", stage=BASE, steps=2)).losses == one.losses
    assert finetune_stage(_job(tiny, tmp_path / "c", stage=BASE, steps=2, seed=1)).losses != one.losses


# Choice of weights


def test_an_evaluation_does_not_disturb_the_training(sd1, tmp_path):
    """With and without evaluations a run has the same losses, checkpoints and last averages."""
    plain = finetune_stage(_job(sd1, tmp_path / "plain"))
    assessed = finetune_stage(replace(_job(sd1, tmp_path / "accepted"), evaluation=_evaluation(_Scores(3.0, 2.0, 1.0))))
    assert assessed.losses == plain.losses
    assert _equal(assessed.weights, plain.weights)
    paths = [tmp_path / name / "unet" / "checkpoint-00000006" / "state.safetensors" for name in ("plain", "accepted")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_kept_weights_that_are_damaged_are_reported(sd1, tmp_path):
    """The best weights so far cannot be read: an error that names the file, rather than other weights."""
    job = replace(_job(sd1, tmp_path), evaluation=_evaluation(_Scores(1.0, 2.0, 3.0)))
    finetune_stage(job)
    kept = tmp_path / "unet" / "evaluations" / "averaged-00000002.safetensors"
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"averaged-00000002\.safetensors: the best weights so far cannot be read"):
        finetune_stage(job)


def test_the_last_step_is_evaluated_saved_and_kept(sd1, tmp_path):
    """Whatever the intervals, the last step is evaluated, has a snapshot and a checkpoint."""
    job = _job(sd1, tmp_path, steps=3, checkpointing_steps=50, ema_snapshot_steps=50)
    result = finetune_stage(replace(job, evaluation=_evaluation(_Scores(2.0, 1.0))))
    assert result.scores == ((2, 2.0), (3, 1.0))
    assert result.step == 3
    assert Checkpoints(tmp_path / "unet", limit=2).steps() == [3]
    assert {path.name[:13] for path in (tmp_path / "unet" / "ema").iterdir()} == {"step-00000003"}


def test_each_class_holds_out_its_share_and_keeps_the_rest():
    """A fifth of every class, at least one and never all, the same ones whatever the order of the images."""
    labels = torch.tensor([0] * 20 + [1] * 3 + [2] * 2 + [3])
    keys = [f"k{i}" for i in range(len(labels))]
    held = hold_out(keys, labels, 0.2)
    assert [int(held[labels == c].sum()) for c in range(4)] == [4, 1, 1, 0]
    assert int(hold_out(keys, labels, 0.89)[labels == 2].sum()) == 1
    back = torch.arange(len(labels)).flip(0)
    assert torch.equal(hold_out([keys[i] for i in back.tolist()], labels[back], 0.2).flip(0), held)
    smaller = hold_out(keys[:20], labels[:20], 0.2)
    assert torch.equal(smaller, held[:20])


def test_the_score_is_of_the_metric_that_is_requested(monkeypatch):
    """FID and KID both fall where the sampled images are the real ones, and are different numbers."""
    images = torch.randint(0, 256, (12, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    other = images // 4
    from gda.fidelity.held_out import held_out_score

    for metric in ("fid", "kid"):
        score = held_out_score(images, extractor="glyph", metric=metric)
        assert isinstance(score, HeldOutScore)
        assert score(images) < score(other)
    fid, kid = (held_out_score(images, extractor="glyph", metric=metric)(other) for metric in ("fid", "kid"))
    assert fid != pytest.approx(kid)
