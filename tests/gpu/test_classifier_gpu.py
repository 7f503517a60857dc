"""Classifiers on a GPU: trained there, saved from there, and as good as those of a CPU."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gda.runtime.parallel import own_device, sampling_device
from gda.runtime.process_group import ProcessGroup
from gda.training.loop.classifier import TrainingSource, TrainRecipe, predict_logits, top1, train_classifier

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device on this machine"),
]

RECIPE = TrainRecipe(
    model="test_resnet",
    model_args={"channels": [8, 8, 8, 16], "stem_width": 4, "drop_path_rate": 0.1},
    image_size=16,
    num_train_steps=60,
    batch_size=8,
    learning_rate=5e-3,
    weight_decay=0.05,
    warmup_steps=2,
    label_smoothing=0.1,
)
# All that makes a batch, each of which must follow the images to the device.
FULL = replace(RECIPE, mixup=0.2, cutmix=1.0, random_erasing=0.25, crop_area=0.5, synthetic_weight=2.0, ema_decay=0.9, horizontal_flip=True)


class StoppedError(Exception):
    """Where a test ends a training."""


def sources() -> list[TrainingSource]:
    """Noisy red, green and blue images whose colour is their class; the second half are synthetic, with soft labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 3
    images = torch.randint(0, 100, (30, 3, 16, 16), dtype=torch.uint8, generator=generator)
    images[torch.arange(30), labels] += 120
    soft = TrainingSource(
        images=images[15:], labels=labels[15:], share=0.5, second=(labels[15:] + 1) % 3, first_share=torch.full((15,), 0.9), synthetic=True
    )
    return [TrainingSource(images=images[:15], labels=labels[:15], share=0.5), soft]


def train(recipe: TrainRecipe, **rest: object) -> torch.nn.Module:
    world = ProcessGroup.single(own_device(sampling_device()))
    return train_classifier(sources(), recipe, num_classes=3, seed=0, world=world, **rest)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "recipe",
    [RECIPE, FULL, replace(RECIPE, mixed_precision="bf16"), replace(RECIPE, auxiliary_batch_norm=True, augment="strong")],
    ids=["plain", "full", "bf16", "auxiliary"],
)
def test_colours_are_learned_on_a_gpu(recipe: TrainRecipe) -> None:
    """The model is on the GPU when it is trained and when it classifies, and gets every image of a known set right."""
    model = train(recipe)
    assert {value.device.type for value in model.state_dict().values()} == {"cuda"}
    assert top1(predict_logits(model, sources()[0].images, image_size=16), sources()[0].labels) == 1.0


def test_a_stopped_training_goes_on_on_a_gpu(tmp_path: Path) -> None:
    """What is saved comes back to the device, dropped paths included: the weights are those of a whole training."""
    recipe = replace(FULL, num_train_steps=12)

    def stop(update: int, _: float) -> None:
        if update == 8:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(recipe, checkpoint=tmp_path, checkpoint_every=3, progress=stop)
    resumed, whole = train(recipe, checkpoint=tmp_path), train(recipe)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=1e-4, atol=1e-6)
