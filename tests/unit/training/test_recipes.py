"""Additions of recipes to the training loop: each works as documented, and a killed run continues to the same bits with each of them."""

import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from killing import in_child
from torch import Tensor
from training_world import TINY, coloured, kill_at

from gda.config.classifier_recipes import RECIPES
from gda.config.sections import ClassifyConfig
from gda.errors import ConfigError
from gda.training.loop.classifier import TrainingSource, TrainRecipe, _Run, train_classifier
from gda.training.networks.export import model_digest
from gda.training.networks.models import build_model
from gda.training.recipes.augment import augment
from gda.training.recipes.mixup_and_loss import Mixing, make_loss
from gda.training.recipes.optimizing import make_classifier_optimizer, make_schedule
from gda.training.recipes.policies import ErasingPolicy, RandAugmentPolicy

ADDITIONS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.05},
    "momentum": {"optimizer": "momentum", "momentum": 0.8, "learning_rate": 0.05, "max_grad_norm": 0.5},
    "lamb": {"optimizer": "lamb"},
    "rmsproptf": {"optimizer": "rmsproptf", "learning_rate": 1e-3},
    "mixing": {"mixup": 0.2, "cutmix": 1.0},
    "bce": {"loss": "bce", "mixup": 0.2, "bce_threshold": 0.2},
    "average": {"ema_decay": 0.7},
    "randaugment": {"rand_augment": "rand-m7-mstd0.5-inc1"},
    "erasing": {"random_erasing": 0.5},
    "crop": {"crop_area": 0.2},
    "all": {
        "optimizer": "lamb", "max_grad_norm": 1.0, "loss": "bce", "mixup": 0.8, "cutmix": 1.0, "ema_decay": 0.9, "crop_area": 0.08,
        "rand_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.25,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ADDITIONS)
def test_a_killed_run_continues_to_the_same_bits(tmp_path: Path, name: str) -> None:
    """Every state that an addition keeps - slots, step counts, averages, streams - must be in the checkpoint."""
    recipe = replace(TINY, **ADDITIONS[name])
    sources = [coloured(30)]

    def train(**rest: Any) -> torch.nn.Module:
        return train_classifier(sources, recipe, num_classes=3, seed=0, **rest)[0]

    kept = {"checkpoint": tmp_path / "c", "checkpoint_every": 3}
    assert in_child(lambda: train(**kept, progress=kill_at)) == -signal.SIGKILL
    random.seed(5)
    np.random.seed(5)
    seen: list[int] = []
    resumed, whole = train(**kept, progress=lambda step, _: seen.append(step)), train()
    assert seen[0] == 7
    assert model_digest(resumed) == model_digest(whole)
    assert model_digest(whole) != model_digest(train_classifier(sources, TINY, num_classes=3, seed=0)[0])


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_trained(name: str) -> None:
    """timm has its architecture, which accepts its arguments, and its optimizer, schedule, RandAugment and loss can be created."""
    config = ClassifyConfig(recipe=name)
    recipe = TrainRecipe.from_config(config, num_train_steps=300)
    fixed = timm.get_pretrained_cfg(recipe.model).fixed_input_size
    with torch.device("meta"):
        model = timm.create_model(recipe.model, num_classes=7, **recipe.model_args, **({"img_size": recipe.image_size} if fixed else {}))
    optimizer = make_classifier_optimizer(
        model, recipe.optimizer, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay, momentum=recipe.momentum
    )
    schedule = make_schedule(
        optimizer, learning_rate=recipe.learning_rate, num_train_steps=recipe.num_train_steps, warmup_steps=recipe.warmup_steps
    )
    rates = []
    for update in (0, recipe.warmup_steps, recipe.num_train_steps):
        schedule.step_update(update)
        rates.append(max(group["lr"] for group in optimizer.param_groups) / recipe.learning_rate)
    assert rates[0] == pytest.approx(0.01)
    assert 0.9 < rates[1] <= 1
    assert rates[2] < 1e-3
    if recipe.rand_augment:
        RandAugmentPolicy(recipe.rand_augment, image_size=recipe.image_size, mean=recipe.mean)
    loss = make_loss(recipe.loss, label_smoothing=0.1, bce_threshold=recipe.bce_threshold, mixed=bool(recipe.mixup))
    assert torch.isfinite(loss(torch.zeros(2, 7), torch.eye(7)[:2] if recipe.mixup else torch.tensor([0, 1])))


def a_run(**changes: Any) -> _Run:
    recipe = replace(TINY, model_args={"channels": [8, 8, 8, 16], "stem_width": 4}, **changes)
    torch.manual_seed(0)
    model = build_model(recipe.model, recipe.model_args, num_classes=3, image_size=16)
    return _Run(model, [coloured(30)], recipe, 3, seed=0)


def test_averaged_weights_follow_the_formula() -> None:
    """The final weights are the running average with timm's warm-up of the decay, min(d, 1 - k^(-2/3)), not the last weights."""
    run = a_run(ema_decay=0.6)
    expected: dict[str, Tensor] = {}
    for update in range(6):
        run.step()
        decay = min(0.6, 1 - (1 + update) ** (-2 / 3))
        for name, value in run.model.named_parameters():
            now = value.detach().double().clone()
            expected[name] = decay * expected[name] + (1 - decay) * now if update else now
    kept = dict(run.finished().named_parameters())
    for name, value in expected.items():
        torch.testing.assert_close(kept[name].detach().double(), value, rtol=1e-5, atol=1e-6)
    assert not torch.equal(kept["fc.weight"], run.model.fc.weight)


@pytest.mark.parametrize(("clip", "limit"), [(0.01, 0.01), (0.0, float("inf"))])
def test_clipping_bounds_an_update(clip: float, limit: float) -> None:
    """A plain step is rate times gradient, so its length shows whether the gradient was clipped."""
    run = a_run(optimizer="momentum", momentum=0.0, weight_decay=0.0, warmup_steps=0, learning_rate=1.0, max_grad_norm=clip)
    before = [value.detach().clone() for value in run.model.parameters()]
    run.step()
    moved = torch.stack([(b - a).norm() for a, b in zip(before, run.model.parameters(), strict=True)]).norm().item()
    assert 0.009 < moved <= limit * 1.001
    assert clip or moved > 0.1


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_targets_are_mixed_as_the_images_are(mixup: float, cutmix: float) -> None:
    """Every pixel of an image is its label's number: the mean of a mixed image must equal the mean of its target."""
    mixing, generator = Mixing(mixup=mixup, cutmix=cutmix, label_smoothing=0.0, num_classes=4), torch.Generator().manual_seed(0)
    labels = torch.arange(8) % 4
    images = labels.float()[:, None, None, None].expand(8, 3, 16, 16).contiguous()
    changed = 0
    for _ in range(10):
        mixed, targets = mixing(images, labels, generator)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ torch.arange(4.0))
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        changed += int((targets.max(1).values < 0.99).sum())
    assert changed > 8


def test_images_of_one_source_are_mixed_with_their_own_too() -> None:
    """A batch is ordered by source: paired by place, two real images would never be mixed."""
    mixing, generator = Mixing(mixup=50.0, cutmix=0.0, label_smoothing=0.0, num_classes=2), torch.Generator().manual_seed(0)
    labels = torch.arange(16) // 8
    purity = torch.cat([mixing(torch.rand(16, 3, 4, 4), labels, generator)[1].max(1).values for _ in range(20)])
    assert 0.3 < (purity > 0.99).float().mean() < 0.65


def test_smoothing_is_in_mixed_targets_and_in_plain_labels_alike() -> None:
    """mixup smooths the targets itself; doing it again in the loss, or not at all, would change the recipe."""
    mixing = Mixing(mixup=1.0, cutmix=0.0, label_smoothing=0.2, num_classes=4)
    _, targets = mixing(torch.rand(6, 3, 4, 4), torch.zeros(6, dtype=torch.int64), torch.Generator().manual_seed(0))
    torch.testing.assert_close(targets, torch.tensor([[0.85, 0.05, 0.05, 0.05]]).expand(6, 4))
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    mixed = make_loss("ce", label_smoothing=0.2, bce_threshold=0.0, mixed=True)
    plain = make_loss("ce", label_smoothing=0.2, bce_threshold=0.0, mixed=False)
    torch.testing.assert_close(mixed(logits, targets), plain(logits, torch.zeros(6, dtype=torch.int64)))


def test_a_threshold_makes_targets_binary() -> None:
    """A2's loss: a class with more than the threshold of a mixed image is fully present."""
    logits, targets = torch.tensor([[3.0, -1.0, 0.5]]), torch.tensor([[0.7, 0.3, 0.0]])
    loss = make_loss("bce", label_smoothing=0.0, bce_threshold=0.2, mixed=True)
    expected = -(torch.sigmoid(torch.tensor([3.0, -1.0, -0.5])).log().mean())
    torch.testing.assert_close(loss(logits, targets), expected)
    soft = make_loss("bce", label_smoothing=0.0, bce_threshold=0.0, mixed=True)
    assert soft(logits, targets) != loss(logits, targets)


def test_global_generators_are_given_back() -> None:
    """timm uses Python's, numpy's and torch's global generators: their state must neither change for the caller nor affect the result."""
    inputs, labels, images = torch.rand(4, 3, 16, 16), torch.arange(4), coloured(4).images
    policy = RandAugmentPolicy("rand-m9-mstd0.5-inc1", image_size=16, mean=(0.5, 0.5, 0.5))
    mixing = Mixing(mixup=0.2, cutmix=1.0, label_smoothing=0.0, num_classes=4)

    def generated(seed: int) -> list[Tensor]:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = (random.getstate(), np.random.get_state()[1].tobytes(), torch.random.get_rng_state().tolist())
        generator = torch.Generator().manual_seed(3)
        found = [ErasingPolicy(1.0)(inputs.clone(), generator), policy(images, generator), *mixing(inputs, labels, generator)]
        assert before == (random.getstate(), np.random.get_state()[1].tobytes(), torch.random.get_rng_state().tolist())
        return found

    assert all(torch.equal(a, b) for a, b in zip(generated(0), generated(1), strict=True))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_erasing_covers_a_rectangle_of_a_share_of_the_images(share: float) -> None:
    """Only the configured share of images is erased, and pixels outside the rectangle do not change."""
    inputs = torch.full((400, 3, 16, 16), 9.0)
    erased = (ErasingPolicy(share)(inputs.clone(), torch.Generator().manual_seed(0)) != inputs).all(1)  # [n, height, width]
    hit = erased.flatten(1).any(1)
    assert abs(hit.float().mean().item() - share) <= (0.08 if share < 1 else 0.02)
    for mask in erased[hit][:50]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns[None, :])
        assert mask.float().mean() < 0.5


def test_randaugment_changes_each_image_for_itself() -> None:
    """One operation for a whole batch would be another method: equal images must come out different, and reproducibly so."""
    images = coloured(1).images.expand(12, 3, 16, 16).contiguous()
    policy = RandAugmentPolicy("rand-m9-mstd0.5-inc1", image_size=16, mean=(0.5, 0.5, 0.5))
    out, again = (policy(images, torch.Generator().manual_seed(0)) for _ in range(2))
    assert (out.dtype, out.shape) == (torch.uint8, images.shape)
    assert torch.equal(out, again)
    assert len({image.numpy().tobytes() for image in out}) > 6


def test_unknown_randaugment_is_one_line() -> None:
    """A misspelt key of the name becomes a configuration error that names the field."""
    with pytest.raises(ConfigError, match=r"classify\.rand_augment: timm does not know 'rand-q7'"):
        RandAugmentPolicy("rand-q7", image_size=16, mean=(0.5, 0.5, 0.5))


def test_a_resized_crop_keeps_its_share_of_the_area() -> None:
    """On a ramp, the remaining range is the width kept: never below the limit of share and aspect, and not always the whole."""
    ramp = torch.linspace(0, 255, 64).round().to(torch.uint8).expand(200, 3, 64, 64).contiguous()
    crops = augment(ramp, "standard", torch.Generator().manual_seed(0), crop_area=0.5) * 127.5 + 127.5
    widths = (crops[:, 0, 0].max(1).values - crops[:, 0, 0].min(1).values) / 255
    assert widths.min() > (0.5 * 3 / 4) ** 0.5 - 0.03
    assert widths.min() < 0.75
    assert widths.max() > 0.95
    assert torch.equal(crops[:, :, 0], crops[:, :, -1])
    starts = crops[:, 0, 0].min(1).values / 255
    assert starts.max() > 0.15
    assert starts.min() < 0.05


def test_channels_are_normalised_each_by_its_own_figures() -> None:
    """Pretrained weights expect the preparation that they were trained with, by channel."""
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    out = augment(image, "standard", torch.Generator(), mean=(0.5, 0.4, 0.2), std=(0.5, 0.1, 0.4))
    torch.testing.assert_close(out.flatten(), torch.tensor([-1.0, -2.0, 2.0]))


def test_dropping_reaches_the_model_unless_its_arguments_say_otherwise() -> None:
    """drop_path and dropout become arguments of timm's model; arguments given as JSON override them."""
    config = ClassifyConfig(drop_path=0.1, dropout=0.2, model="resnet50", model_args_json='{"drop_rate": 0.4}')
    assert TrainRecipe.from_config(config, num_train_steps=1).model_args == {"drop_path_rate": 0.1, "drop_rate": 0.4}
    with pytest.raises(ConfigError, match="does not take"):
        build_model("test_efficientnet", {"no_rate": 0.1}, num_classes=3, image_size=16)


def test_sources_are_needed_in_even_batches_only_for_mixing() -> None:
    """Without mixing an odd batch is trained as before."""
    source = TrainingSource(images=coloured(9).images, labels=coloured(9).labels)
    train_classifier([source], replace(TINY, batch_size=5, num_train_steps=2), num_classes=3, seed=0)
