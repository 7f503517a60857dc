"""Fine-tuning jobs over a handful of images, for any generator."""

import hashlib

import torch

from gda.config.sections import FinetuneConfig
from gda.generator.families.opening import load_model
from gda.generator.finetuning.prepared import PreparedSource
from gda.generator.finetuning.train import StageJob


def stage_job(base, work, images, prompts, *, stage=None, steps=6, cache=None, evaluation=None, seed=0, **changes):
    """A job of `steps` steps with batches of four; `changes` are configuration fields. Prompts are the classes."""
    settings = FinetuneConfig(batch_size=4, checkpointing_steps=2, warmup_steps=1).model_copy(update=changes)
    stage = stage or load_model(str(base)).stages[0]
    digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    return StageJob(
        stage=stage,
        base=str(base),
        source=PreparedSource(images=images, digest=digest, cache=cache),
        labels=torch.tensor([sorted(set(prompts)).index(prompt) for prompt in prompts]),
        prompts=tuple(prompts),
        keys=tuple(f"image-{i}" for i in range(len(images))),
        config=settings,
        num_train_steps=steps,
        seed=seed,
        work=work / stage,
        evaluation=evaluation,
    )
