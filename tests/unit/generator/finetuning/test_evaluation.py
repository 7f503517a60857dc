"""Choice among the weights of a run: always the same noise, scored on held-out images, the best kept, and a restart agrees."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from stage_jobs import stage_job
from trees import tree

from gda.artifacts.tuning import SamplingSettings
from gda.errors import DataError
from gda.generator.finetuning import train
from gda.generator.finetuning.evaluation import Evaluation, best_step, png_grid
from gda.generator.finetuning.train import EVALUATIONS, finetune_stage
from gda.generator.weights.directory import BASE


class _Stopped:
    """A score that gives the numbers it was given to, in order, and keeps the images."""

    def __init__(self, scores):
        self.scores, self.seen = list(scores), []

    def __call__(self, images):
        self.seen.append(images)
        return self.scores[len(self.seen) - 1]


def _job(tiny, work, scores, **changes):
    images = (torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    score = _Stopped(scores)
    evaluation = Evaluation(
        steps=2,
        prompts=("a", "a", "b", "b"),
        seeds=(1, 2, 3, 4),
        settings=SamplingSettings(guidance_scale=1.0, num_inference_steps=2, sr_num_inference_steps=1),
        score=score,
        shown=(0, 2),
        batch_size=3,
    )
    return stage_job(tiny, work, images, ("a", "b") * 3, stage=BASE, evaluation=evaluation, learning_rate=5e-3, **changes), score


def test_the_best_evaluated_weights_are_returned(tiny, tmp_path):
    """Of three evaluations the second is best: the result is what a run of as many steps would average, not the last."""
    job, score = _job(tiny, tmp_path / "a", [3.0, 1.0, 2.0])
    result = finetune_stage(job)
    assert result.scores == ((2, 3.0), (4, 1.0), (6, 2.0))
    assert result.step == 4
    last = finetune_stage(replace(job, evaluation=None, work=tmp_path / "b"))
    assert last.step == 6
    assert any(not torch.equal(result.weights[k], last.weights[k]) for k in last.weights)
    four = finetune_stage(replace(job, evaluation=None, resume_at=4, num_train_steps=4))
    assert all(torch.equal(result.weights[k], four.weights[k]) for k in four.weights)
    assert not torch.equal(score.seen[0], score.seen[1])


def test_a_restart_samples_the_same_and_keeps_the_same_best(tiny, tmp_path, monkeypatch):
    """Stopped after the best evaluation and continued, scores, pictures and chosen weights are those of the uninterrupted run."""
    whole, score = _job(tiny, tmp_path / "whole", [3.0, 1.0, 2.0])
    expected = finetune_stage(whole)
    ticks = []

    def stop_at_six(*_, **__):
        ticks.append(1)
        if len(ticks) == 6:
            raise KeyboardInterrupt

    cut, before = _job(tiny, tmp_path / "cut", [3.0, 1.0], checkpointing_steps=4)
    monkeypatch.setattr(train, "tick", stop_at_six)
    with pytest.raises(KeyboardInterrupt):
        finetune_stage(cut)
    monkeypatch.undo()
    again, after = _job(tiny, tmp_path / "cut", [2.0], checkpointing_steps=4)
    result = finetune_stage(again)
    assert len(before.seen) == 2
    assert len(after.seen) == 1
    assert torch.equal(after.seen[0], score.seen[2])
    assert result.scores == expected.scores
    assert all(torch.equal(result.weights[k], expected.weights[k]) for k in expected.weights)
    pictures = tree(tmp_path / "cut" / BASE / EVALUATIONS, "*.png")
    assert pictures == tree(tmp_path / "whole" / BASE / EVALUATIONS, "*.png")
    assert len(pictures) == 3


def test_only_weights_that_a_restart_may_need_are_kept(tiny, tmp_path):
    """Averages of steps that are best for no kept checkpoint are dropped, so that evaluations do not fill the disk."""
    job, _ = _job(tiny, tmp_path, [5.0, 4.0, 3.0, 2.0, 6.0], steps=10, checkpoints_total_limit=1)
    result = finetune_stage(job)
    assert result.step == 8
    assert [p.name for p in (tmp_path / BASE / EVALUATIONS).glob("averaged-*")] == ["averaged-00000008.safetensors"]


def test_evaluations_that_give_no_number_are_an_error(tiny, tmp_path):
    """With no finite score there is no best: that is reported, rather than any weights taken."""
    job, _ = _job(tiny, tmp_path, [float("nan")] * 3)
    with pytest.raises(DataError, match="no evaluation gave a number"):
        finetune_stage(job)


def test_the_best_step_is_the_lowest_and_earliest():
    """NaN never wins, and of equal scores the earlier weights are taken."""
    assert best_step([(1, 2.0), (2, 1.0), (3, 1.0), (4, float("nan"))]) == 2
    assert best_step([(1, float("nan")), (2, 7.0)]) == 2
    assert best_step([(1, float("nan"))]) is None
    assert best_step([]) is None


def test_a_grid_shows_every_image_in_its_place():
    """Three images in rows of two: the third begins the second row, and what is empty stays white."""
    images = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None, None].expand(3, 3, 4, 5)
    sheet = np.asarray(Image.open(io.BytesIO(png_grid(images, columns=2))))
    assert sheet.shape == (11, 13, 3)
    assert (sheet[1:5, 1:6] == 10).all()
    assert (sheet[1:5, 7:12] == 20).all()
    assert (sheet[6:10, 1:6] == 30).all()
    assert (sheet[6:10, 7:12] == 255).all()
    assert (sheet[5] == 255).all()
