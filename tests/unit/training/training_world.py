"""Shared by tests of training: a tiny classifier, images whose colour is their class, and a kill in the middle."""

import os
import signal

import torch

from gda.training.loop.classifier import TrainingSource, TrainRecipe

# drop_path uses torch's global generator during training, which is the hardest state to resume.
TINY = TrainRecipe(
    model="test_resnet",
    model_args={"channels": [8, 8, 8, 16], "stem_width": 4, "drop_path_rate": 0.2},
    image_size=16,
    num_train_steps=12,
    batch_size=8,
    learning_rate=5e-3,
    weight_decay=0.05,
    warmup_steps=2,
    label_smoothing=0.1,
)


def coloured(count: int, share: float = 1.0, *, seed: int = 0) -> TrainingSource:
    """Noisy red, green and blue images whose colour is their class: any classifier that works reaches 1.0."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.randint(0, 100, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    images[torch.arange(count), labels] += 120
    return TrainingSource(images=images, labels=labels, share=share)


def kill_at(update: int, _: float) -> None:
    if update == 8:
        os.kill(os.getpid(), signal.SIGKILL)
