"""Trainings that must give equal results in one and in several processes: small networks, batches half real and half synthetic."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from training_world import TINY, coloured

from gda.runtime.process_group import ProcessGroup
from gda.training.loop.classifier import TrainingSource, TrainRecipe, train_classifier

# No dropout, and an optimizer with plain gradients, which do not magnify rounding. Ten images: the shares of two processes differ.
_STILL = replace(TINY, batch_size=10, optimizer="sgd", learning_rate=0.02, weight_decay=1e-3)
_VIT = replace(_STILL, model="test_vit", model_args={"patch_size": 8})


class StoppedError(Exception):
    """The training was stopped at the step of its case."""


@dataclass(frozen=True, kw_only=True)
class Case:
    recipe: TrainRecipe
    soft: bool = False
    stop_at: int | None = None  # steps


CASES = {
    "plain": Case(recipe=_VIT),
    "weighted": Case(recipe=replace(_VIT, synthetic_weight=5.0), soft=True),
    "mixed": Case(
        recipe=replace(
            _VIT,
            synthetic_weight=5.0,
            mixup=0.8,
            cutmix=1.0,
            crop_area=0.3,
            random_erasing=0.5,
            loss="bce",
            ema_decay=0.9,
            max_grad_norm=0.1,
        )
    ),
    "batch norm": Case(recipe=replace(_STILL, model_args={"channels": [8, 8, 8, 16], "stem_width": 4})),
    # So deep for its size that rounding grows tenfold every second step, hence a short training.
    "batch norm with an activation": Case(
        recipe=replace(_STILL, model="test_efficientnet", model_args={}, num_train_steps=3, learning_rate=0.002)
    ),
    "drop path": Case(recipe=replace(_VIT, model_args={"patch_size": 8, "drop_path_rate": 0.3})),
    "begun": Case(recipe=_VIT, stop_at=8),
    "ended": Case(recipe=_VIT),
}


def train(
    case: Case, folder: Path, *, world: ProcessGroup | None = None, seen: list[int] | None = None, **changes: Any
) -> tuple[nn.Module, Sequence[tuple[int, float]]]:
    """Train a case, with checkpoints in `folder` after every third step; `seen` collects the numbers of the steps run here."""
    case = replace(case, **changes)

    def follow(update: int, _: float) -> None:
        if seen is not None:
            seen.append(update)
        if update == case.stop_at:
            raise StoppedError

    return train_classifier(
        [coloured(15, 0.5), _synthetic(soft=case.soft)],
        case.recipe,
        num_classes=3,
        seed=0,
        checkpoint=folder / "checkpoints",
        checkpoint_every=3,
        progress=follow,
        world=world,
    )


def _synthetic(*, soft: bool) -> TrainingSource:
    source = replace(coloured(15, 0.5, seed=1), synthetic=True)
    if not soft:
        return source
    return replace(source, second=(source.labels + 1) % 3, first_share=torch.linspace(0.3, 0.9, 15))
