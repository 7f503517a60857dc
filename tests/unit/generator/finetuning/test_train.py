"""Fine-tuning: learns, resumes to identical weights, and stops loudly on a diverging loss."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stage_jobs import stage_job

from gda.demo_base.build import noise_schedule
from gda.errors import DataError
from gda.generator.families import cascade
from gda.generator.families.cascade import denoising_loss
from gda.generator.families.opening import load_model
from gda.generator.finetuning import train
from gda.generator.finetuning.checkpoints import Checkpoints, TrainingState
from gda.generator.finetuning.prepared import jitter
from gda.generator.finetuning.train import finetune_stage
from gda.generator.weights.directory import BASE, SUPER_RESOLUTION
from gda.runtime.torch_rng import RandomStreams


def _images():
    return (torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)


def _job(tiny, work, *, stage=BASE, **changes):
    return stage_job(tiny, work, _images(), ("a", "b") * 3, stage=stage, **changes)


def _equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def _stop_at(monkeypatch, step):
    """Interrupt training at that step of this process."""
    steps = []

    def tick(*_, **__):
        steps.append(1)
        if len(steps) == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "tick", tick)


@pytest.mark.parametrize("stage", [BASE, SUPER_RESOLUTION])
def test_an_interrupted_run_ends_in_identical_weights(tiny, tmp_path, monkeypatch, stage):
    """Killed after its second checkpoint and run again, a stage ends bit for bit where the uninterrupted run ends."""
    whole = finetune_stage(_job(tiny, tmp_path / "whole", stage=stage))
    _stop_at(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        finetune_stage(_job(tiny, tmp_path / "cut", stage=stage))
    monkeypatch.undo()
    resumed = finetune_stage(_job(tiny, tmp_path / "cut", stage=stage))
    assert _equal(whole.weights, resumed.weights)
    assert whole.losses == resumed.losses


@pytest.mark.parametrize("changes", [{"stage": BASE}, {"stage": SUPER_RESOLUTION}, {"method": "lora", "lora_rank": 2}])
def test_weights_lie_between_the_base_and_the_fine_tuned_ones(tiny, tmp_path, monkeypatch, changes):
    """Interpolated weights are so far from the base's to the fine-tuned ones, whether the run was interrupted or not."""
    tuned = finetune_stage(_job(tiny, tmp_path / "tuned", **changes))
    base = load_model(str(tiny)).network(tuned.stage).state_dict()
    between = finetune_stage(_job(tiny, tmp_path / "between", weight_interpolation=0.25, **changes))
    assert between.losses == tuned.losses
    for name, start in base.items():
        assert torch.allclose(between.weights[name], start + 0.25 * (tuned.weights[name] - start), atol=1e-6), name
    assert max(float((tuned.weights[name] - start).abs().max()) for name, start in base.items()) > 1e-4
    with monkeypatch.context() as patch:
        _stop_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            finetune_stage(_job(tiny, tmp_path / "cut", weight_interpolation=0.25, **changes))
    assert _equal(finetune_stage(_job(tiny, tmp_path / "cut", weight_interpolation=0.25, **changes)).weights, between.weights)


def test_a_damaged_checkpoint_falls_back_and_says_so(tiny, tmp_path):
    """The newest checkpoint with flipped bytes is passed over, reported, and the end result is unchanged."""
    whole = finetune_stage(_job(tiny, tmp_path / "whole"))
    newest = max((tmp_path / "whole" / BASE).glob("checkpoint-*"))
    weights = newest / "state.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 0xFF
    weights.write_bytes(bytes(data))
    again = finetune_stage(_job(tiny, tmp_path / "whole"))
    assert _equal(whole.weights, again.weights)
    assert len(again.notes) == 1
    assert "checkpoint-00000006 is damaged" in again.notes[0]


def test_a_diverging_loss_names_step_and_last_good_state(tiny, tmp_path, monkeypatch):
    """A loss that is not finite stops training with where it was and what is left."""
    real, calls = cascade.denoising_loss, []

    def bad_at_four(*args, **kwargs):
        calls.append(1)
        return real(*args, **kwargs) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(cascade, "denoising_loss", bad_at_four)
    with pytest.raises(DataError, match=r"nan at step 4 on image image-\d, .*; last good state: the checkpoint of step 2"):
        finetune_stage(_job(tiny, tmp_path))


@pytest.mark.learning
def test_training_overfits_a_tiny_set(tiny, tmp_path):
    """A real learning test: the loss on six images falls well below where it started."""
    losses = finetune_stage(_job(tiny, tmp_path, steps=120, learning_rate=3e-3, jitter=0.0, checkpointing_steps=1000)).losses
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:10])


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    """`checkpoints_total_limit` bounds disk use and always leaves the newest."""
    store = Checkpoints(tmp_path, limit=2)
    for step in (1, 2, 3):
        store.save(TrainingState(step=step, tensors={"w": torch.tensor([step])}, losses=(0.5,)))
    state, damaged = store.load_newest()
    assert state is not None
    assert (state.step, state.tensors["w"].item(), damaged) == (3, 3, [])
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2


def test_jitter_is_bounded_and_off_at_zero():
    """Strength 0 returns the images untouched; strength 1 moves them but keeps their range."""
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(jitter(images, 0.0, RandomStreams(range(4))), images)
    moved = jitter(images, 1.0, RandomStreams(range(4)))
    assert not torch.equal(moved, images)
    assert moved.abs().max() <= 1.0


def test_super_resolution_is_trained_on_the_small_image_upsampled_and_noised():
    """The condition is the small image, upsampled as diffusers does and noised at its own level: never the large image itself."""
    schedule_ = noise_schedule()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    seen = {}

    def network(noisy, t, *, encoder_hidden_states, class_labels):
        seen.update(noisy=noisy, level=class_labels)
        return SimpleNamespace(sample=torch.zeros(2, 6, 16, 16, requires_grad=True))

    denoising_loss(network, schedule_, images, torch.zeros(2, 77, 8), RandomStreams([0, 1]), low_size=8, super_resolution=True)
    replay = RandomStreams([0, 1])
    replay.integers(1000)
    replay.normal(3, 16, 16)
    level = replay.integers(1000)
    small = F.interpolate(images, (8, 8), mode="bilinear", antialias=True)
    up = F.interpolate(small, (16, 16), mode="bilinear", align_corners=True)
    expected = schedule_.add_noise(up, replay.normal(3, 16, 16), level)
    assert torch.equal(seen["level"], level)
    assert torch.allclose(seen["noisy"][:, 3:], expected)
