"""Separate treatment of synthetic images (weights, soft labels, auxiliary batch norms), compared with computations by hand."""

import copy
import json
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from killing import in_child
from pydantic import ValidationError
from timm.data.mixup import Mixup
from timm.layers import BatchNormAct2d
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy
from torch import Tensor, nn
from training_world import TINY, coloured, kill_at

from gda.artifacts.cards import ClassifierCard
from gda.config.sections import Arm, ClassifyConfig
from gda.errors import ConfigError, DataError, UsageError
from gda.runtime.torch_rng import seeded_globals
from gda.training.loop.auxiliary_norm import AuxiliaryNorms
from gda.training.loop.classifier import (
    TrainingSource,
    TrainRecipe,
    _Run,
    export_classifier,
    load_classifier,
    predict_logits,
    train_classifier,
)
from gda.training.networks.export import model_digest
from gda.training.networks.models import build_model
from gda.training.recipes.mixup_and_loss import Mixing, WeightedLoss, soft_targets

# No randomness, so that a forward pass can be repeated by hand.
STILL = replace(TINY, model_args={"channels": [8, 8, 8, 16], "stem_width": 4})
BATCH_NORM_ACT = replace(TINY, model="test_efficientnet", model_args={})
NO_NORM = replace(TINY, model="test_vit", model_args={"patch_size": 8})


def synthetic(count: int = 15, *, soft: bool = False, seed: int = 1) -> TrainingSource:
    """Coloured images; if `soft`, every second one has a soft label of 0.3, 0.5 or 0.7 and gives the rest to the next class."""
    source = replace(coloured(count, 0.5, seed=seed), synthetic=True)
    if not soft:
        return source
    shared = torch.arange(count) % 2 == 0
    kept = torch.tensor([0.3, 0.5, 0.7])[torch.arange(count) // 2 % 3]
    return replace(
        source, second=torch.where(shared, (source.labels + 1) % 3, -1), first_share=torch.where(shared, kept, torch.ones(count))
    )


def pair(*, soft: bool = False, seed: int = 1) -> list[TrainingSource]:
    """Half a batch each of real and synthetic images."""
    return [coloured(15, 0.5), synthetic(soft=soft, seed=seed)]


def a_run(sources: Sequence[TrainingSource], recipe: TrainRecipe = STILL, **changes: Any) -> _Run:
    recipe = replace(recipe, **changes)
    torch.manual_seed(0)
    model = build_model(recipe.model, recipe.model_args, num_classes=3, image_size=16)
    return _Run(model, sources, recipe, 3, seed=0)


def gradients_of(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def assert_same_gradients(run: _Run, by_hand: dict[str, Tensor]) -> None:
    """Compare the gradients of the step that `run` has just made."""
    found = {name: value.grad for name, value in run.model.named_parameters()}
    assert found.keys() == by_hand.keys()
    for name, value in by_hand.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def seen_first(sources: Sequence[TrainingSource], **changes: Any) -> tuple[nn.Module, Tensor, Any]:
    """An untrained model, and inputs and records of the first batch."""
    run = a_run(sources, **changes)
    batch = copy.deepcopy(run.batches).next()
    inputs, _ = run._batch()
    return run.model, inputs, batch


@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_a_weight_of_three_is_every_synthetic_image_three_times(loss: str) -> None:
    """The gradient equals that of timm's loss over a batch, real images first, in which synthetic images are repeated."""
    run = a_run(pair(), synthetic_weight=3.0, loss=loss)
    run.step()
    model, inputs, batch = seen_first(pair(), loss=loss)
    repeated = torch.tensor([0, 1, 2, 3, *[4, 5, 6, 7] * 3])
    of_timm = LabelSmoothingCrossEntropy(0.1) if loss == "ce" else BinaryCrossEntropy(0.1)
    assert_same_gradients(run, gradients_of(of_timm(model(inputs)[repeated], batch.labels[repeated]), model))


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_the_weight_is_of_synthetic_images_whatever_their_place(order: list[int]) -> None:
    """Swapped weights would train on the wrong origin; with a weight near zero only the real gradient remains."""
    sources = [pair()[i] for i in order]
    run = a_run(sources, synthetic_weight=1e-6)
    run.step()
    model, inputs, batch = seen_first(pair() if order == [0, 1] else sources)
    assert_same_gradients(run, gradients_of(LabelSmoothingCrossEntropy(0.1)(model(inputs)[:4], batch.labels[:4]), model))


@pytest.mark.parametrize("weight", [1.0, 2.0])
@pytest.mark.parametrize("loss", ["ce", "bce"])
def test_a_soft_label_is_the_blend_of_two_losses(loss: str, weight: float) -> None:
    """Both losses are linear in the target, so a soft label's loss is a weighted sum of timm's losses to its two classes."""
    run = a_run(pair(soft=True), loss=loss, synthetic_weight=weight)
    run.step()
    model, inputs, batch = seen_first(pair(soft=True), loss=loss)
    of_timm = LabelSmoothingCrossEntropy(0.1) if loss == "ce" else BinaryCrossEntropy(0.1)
    assert batch.second[:4].tolist() == [-1] * 4
    assert (batch.second[4:] >= 0).any()
    logits, total = model(inputs), torch.zeros(())
    for i in range(8):
        own, kept = logits[i : i + 1], float(batch.first_share[i])
        message = kept * of_timm(own, batch.labels[i : i + 1])
        if kept < 1:
            message = message + (1 - kept) * of_timm(own, batch.second[i : i + 1])
        total = total + (weight if i >= 4 else 1.0) * message
    assert_same_gradients(run, gradients_of(total / (4 + 4 * weight), model))


def test_thresholded_soft_labels_are_both_or_one() -> None:
    """bce_threshold makes soft labels binary, as it does mixed targets."""
    targets = soft_targets(torch.tensor([0, 0]), torch.tensor([1, 1]), torch.tensor([0.7, 0.9]), num_classes=3, label_smoothing=0.0)
    logits = torch.tensor([[0.3, -1.0, 2.0], [0.1, 0.2, 0.3]])
    found = WeightedLoss("bce", bce_threshold=0.2)(logits, targets, torch.ones(2))
    both = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert float(found) == pytest.approx(float(nn.functional.binary_cross_entropy_with_logits(logits, both)))


def test_smoothing_spreads_soft_labels() -> None:
    """(1 - e) t + e / C by hand, and a sum of 1."""
    labels, second, kept = torch.tensor([0, 2]), torch.tensor([1, -1]), torch.tensor([0.75, 1.0])
    targets = soft_targets(labels, second, kept, num_classes=4, label_smoothing=0.2)
    torch.testing.assert_close(targets, torch.tensor([[0.65, 0.25, 0.05, 0.05], [0.05, 0.05, 0.85, 0.05]]))


KINDS = pytest.mark.parametrize("kind", [{"mixup": 0.4, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])


@KINDS
def test_blended_hard_labels_are_those_of_timm(kind: dict[str, float]) -> None:
    """With hard labels and equal weights the code path of soft labels gives timm's inputs bit for bit and its targets to 1e-6."""
    mixing = Mixing(**kind, label_smoothing=0.1, num_classes=5)
    inputs, labels = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(9)), torch.arange(8) % 5
    targets = soft_targets(labels, None, None, num_classes=5, label_smoothing=0.1)
    for seed in range(12):
        expected_inputs, expected = mixing(inputs.clone(), labels, torch.Generator().manual_seed(seed))
        mixed, blend = mixing.blend(inputs.clone(), torch.Generator().manual_seed(seed))
        assert torch.equal(mixed, expected_inputs)
        torch.testing.assert_close(blend @ targets, expected, rtol=0, atol=1e-6)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(8, generator=generator)
        with seeded_globals(generator):
            by_timm = Mixup(mixup_alpha=kind["mixup"], cutmix_alpha=kind["cutmix"], label_smoothing=0.1, num_classes=5)(
                inputs[order], labels[order]
            )[1]
        torch.testing.assert_close(blend @ targets, by_timm, rtol=0, atol=1e-6)


@KINDS
def test_the_blend_says_what_is_in_an_image(kind: dict[str, float]) -> None:
    """If each image is one number, a mixed image's mean is the blend of these numbers; rows in another order would differ."""
    mixing = Mixing(**kind, label_smoothing=0.1, num_classes=5)
    values = torch.tensor([1.0, 20.0, 300.0, 4000.0, 7.0, 60.0])
    for seed in range(12):
        inputs = values[:, None, None, None].expand(6, 3, 16, 16).clone()
        mixed, blend = mixing.blend(inputs, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(blend @ values, mixed.mean((1, 2, 3)), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(blend.sum(1), torch.ones(6))


def test_weights_and_soft_labels_are_mixed_like_the_images() -> None:
    """With real images of class 0 and synthetic ones with a quarter of class 1, each target reveals its weight."""
    real = replace(coloured(15, 0.5), labels=torch.zeros(15, dtype=torch.int64))
    generated = replace(
        synthetic(), labels=torch.ones(15, dtype=torch.int64), second=torch.full((15,), 2), first_share=torch.full((15,), 0.25)
    )
    run = a_run([real, generated], synthetic_weight=3.0, mixup=1.0, label_smoothing=0.0)
    between = False
    for _ in range(6):
        _, (targets, weights) = run._batch()
        torch.testing.assert_close(targets[:, 2], 3 * targets[:, 1])
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        torch.testing.assert_close(weights, targets[:, 0] + 3 * (1 - targets[:, 0]))
        between |= bool(((weights > 1.01) & (weights < 2.99)).any())
    assert between


def norms_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.named_buffers() if "running" in name}


@pytest.mark.parametrize("recipe", [STILL, BATCH_NORM_ACT], ids=["BatchNorm2d", "BatchNormAct2d"])
def test_real_images_alone_make_the_statistics_that_are_kept(recipe: TrainRecipe) -> None:
    """For any synthetic noise, the kept statistics of the first step are those of a pass of the real half alone."""
    runs = [
        a_run(pair(seed=seed), recipe, auxiliary_batch_norm=True, model_args=recipe.model_args | {"drop_path_rate": 0.0}) for seed in (1, 2)
    ]
    by_hand = copy.deepcopy(runs[0].model)
    for run in runs:
        assert any(isinstance(module, BatchNormAct2d) for module in run.model.modules()) == (recipe is BATCH_NORM_ACT)
        inputs, _ = copy.deepcopy(run)._batch()
        run.step()
    by_hand(inputs[:4].contiguous(memory_format=torch.channels_last))
    first, second, alone = (norms_of(model) for model in (runs[0].model, runs[1].model, by_hand))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    for name, value in first.items():
        torch.testing.assert_close(value, alone[name])
    mixed = a_run(pair(), recipe, model_args=recipe.model_args | {"drop_path_rate": 0.0})
    mixed.step()
    assert all(not torch.equal(value, first[name]) for name, value in norms_of(mixed.model).items() if "mean" in name)
    # Shared parameters (kernels, the head) are trained on both.
    assert not torch.equal(next(runs[0].model.parameters()), next(runs[1].model.parameters()))


def test_auxiliary_norms_see_synthetic_images_alone() -> None:
    """Their statistics, and the logits of the synthetic half, equal those of a pass through a separate model."""
    run = a_run(pair(), auxiliary_batch_norm=True)
    by_hand = copy.deepcopy(run.model)
    inputs, _ = copy.deepcopy(run)._batch()
    assert run.norms is not None
    found = run.norms.logits(run.model, inputs)
    real, generated = copy.deepcopy(by_hand)(inputs[:4]), by_hand(inputs[4:])
    torch.testing.assert_close(found, torch.cat([real, generated]))
    kept = run.norms.state()
    for name, value in norms_of(by_hand).items():
        torch.testing.assert_close(kept[name], value)
        assert not torch.equal(kept[name], run.model.get_buffer(name))


def test_batch_norms_of_vectors_are_distinguished_too() -> None:
    """Some transformers have batch norms without scales or as BatchNorm1d: if one were skipped, the origins would mix."""
    model = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Flatten(), nn.BatchNorm1d(12))
    norms = AuxiliaryNorms(model, "small", (2, 4))
    by_hand = [copy.deepcopy(model) for _ in range(2)]
    inputs = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    norms.logits(model, inputs).sum().backward()
    for part, alone in zip((inputs[:2], inputs[2:]), by_hand, strict=True):
        alone(part)
    assert set(norms.parameters) == {"2.weight", "2.bias"}
    kept = norms.state()
    for name, value in model.named_buffers():
        assert torch.equal(value, by_hand[0].get_buffer(name))
        assert torch.equal(kept[name], by_hand[1].get_buffer(name))


def test_auxiliary_scales_are_trained() -> None:
    """Scale and shift are auxiliary too: trained by synthetic images, without weight decay, separate from the kept ones."""
    run = a_run(pair(), auxiliary_batch_norm=True)
    assert run.norms is not None
    before = {name: value.detach().clone() for name, value in run.norms.parameters.items()}
    norms = [name for name, module in run.model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert set(before) == {f"{name}.{key}" for name in norms for key in ("weight", "bias")}
    for _ in range(3):
        run.step()
    kept = dict(run.model.named_parameters())
    for name, value in run.norms.parameters.items():
        assert not torch.equal(value, before[name])
        assert not torch.equal(value, kept[name])
    own = {id(value) for value in run.norms.parameters.values()}
    groups = [group for group in run.optimizer.param_groups if {id(value) for value in group["params"]} & own]
    assert [group["weight_decay"] for group in groups] == [0.0]
    assert groups[0]["lr"] == run.optimizer.param_groups[0]["lr"] > 0


def test_clipping_counts_auxiliary_scales() -> None:
    """Clipping uses the norm of all gradients of the step."""
    run = a_run(pair(), auxiliary_batch_norm=True, max_grad_norm=0.01)
    run.step()
    norm = torch.stack([value.grad.norm() for value in run._parameters() if value.grad is not None]).norm()
    assert run.norms is not None
    assert len(run._parameters()) == len(list(run.model.parameters())) + len(run.norms.parameters)
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("sources", [[coloured(30)], [synthetic(30)], [coloured(15, 0.5), coloured(15, 0.5, seed=1)]])
def test_images_of_one_origin_are_trained_as_ever(sources: list[TrainingSource], tmp_path: Path) -> None:
    """Real arms must not depend on settings about synthetic images: the same bits, and checkpoints that fit."""
    plain, _ = train_classifier(sources, TINY, num_classes=3, seed=0, checkpoint=tmp_path, checkpoint_every=5)
    apart = replace(TINY, synthetic_weight=3.0, auxiliary_batch_norm=True)
    seen: list[int] = []
    again, _ = train_classifier(
        sources, apart, num_classes=3, seed=0, checkpoint=tmp_path, checkpoint_every=5, progress=lambda step, _: seen.append(step)
    )
    assert seen == [11, 12]
    assert model_digest(again) == model_digest(plain) == model_digest(train_classifier(sources, apart, num_classes=3, seed=0)[0])
    train_classifier(sources, replace(NO_NORM, auxiliary_batch_norm=True, num_train_steps=1), num_classes=3, seed=0)


def test_stating_that_images_are_synthetic_changes_no_bits() -> None:
    """With weight 1 and no soft labels, training equals that without these settings."""
    settings = train_classifier(pair(), TINY, num_classes=3, seed=0)[0]
    untold = train_classifier([replace(source, synthetic=False) for source in pair()], TINY, num_classes=3, seed=0)[0]
    assert model_digest(settings) == model_digest(untold)


ALL = {
    "weighted, soft and mixed": {"synthetic_weight": 3.0, "mixup": 0.4, "cutmix": 1.0, "ema_decay": 0.9},
    "auxiliary": {"synthetic_weight": 0.5, "auxiliary_batch_norm": True, "ema_decay": 0.7, "max_grad_norm": 1.0, "random_erasing": 0.25},
    "auxiliary, lamb": {"auxiliary_batch_norm": True, "optimizer": "lamb", "loss": "bce"},
    "auxiliary, sgd": {"auxiliary_batch_norm": True, "optimizer": "sgd", "learning_rate": 0.05},
}


@pytest.mark.parametrize("name", ALL)
def test_a_killed_run_continues_to_the_same_bits(tmp_path: Path, name: str) -> None:
    """Auxiliary norms and their optimizer's state must be in the checkpoint, and mixing must sample as before."""
    recipe = replace(TINY, **ALL[name])

    def train(recipe: TrainRecipe, **rest: Any) -> nn.Module:
        return train_classifier(pair(soft=True), recipe, num_classes=3, seed=0, **rest)[0]

    kept = {"checkpoint": tmp_path / "c", "checkpoint_every": 3}
    assert in_child(lambda: train(recipe, **kept, progress=kill_at)) == -signal.SIGKILL
    seen: list[int] = []
    resumed, whole = train(recipe, **kept, progress=lambda step, _: seen.append(step)), train(recipe)
    assert seen[0] == 7
    assert model_digest(resumed) == model_digest(whole)
    off = replace(recipe, synthetic_weight=1.0, auxiliary_batch_norm=False)
    assert model_digest(whole) != model_digest(train(off))


def test_a_checkpoint_knows_shares_and_origins(tmp_path: Path) -> None:
    """Resuming with other soft labels, or with other images marked as synthetic, would give weights that match no recipe."""
    recipe = replace(TINY, synthetic_weight=2.0)

    def go_on(sources: list[TrainingSource]) -> None:
        train_classifier(sources, recipe, num_classes=3, seed=0, checkpoint=tmp_path, checkpoint_every=5)

    go_on(pair(soft=True))
    real, generated = pair(soft=True)
    assert generated.first_share is not None
    with pytest.raises(UsageError, match="belongs to another"):
        go_on(pair())
    with pytest.raises(UsageError, match="belongs to another"):
        go_on([real, replace(generated, first_share=torch.where(generated.first_share < 1, 0.9, 1.0))])
    with pytest.raises(UsageError, match="belongs to another"):
        go_on([replace(real, synthetic=True), replace(generated, synthetic=False)])


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_plain_timm_loads_what_auxiliary_norms_trained(tmp_path: Path, ema_decay: float) -> None:
    """The published model, averaged or not, holds no auxiliary norms: timm gives equal logits from the directory alone."""
    recipe = replace(TINY, auxiliary_batch_norm=True, ema_decay=ema_decay)
    model, _ = train_classifier(pair(), recipe, num_classes=3, seed=0)
    plain = build_model(TINY.model, TINY.model_args, num_classes=3, image_size=16)
    assert [(name, type(module)) for name, module in model.named_modules()] == [
        (name, type(module)) for name, module in plain.named_modules()
    ]
    assert list(model.state_dict()) == list(plain.state_dict())
    card = ClassifierCard(arm=Arm.MIXED, seed=0, model=TINY.model, image_size=16, classes=("r", "g", "b"), snapshot_digest="0" * 64)
    export_classifier(model, tmp_path / "out", card)
    images = coloured(20, seed=3).images
    expected = predict_logits(model, images, image_size=16)
    by_timm = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert torch.equal(predict_logits(by_timm, images, image_size=16), expected)
    assert torch.equal(predict_logits(load_classifier(tmp_path / "out"), images, image_size=16), expected)


def test_auxiliary_norms_need_norms_and_images() -> None:
    """Without batch norms the setting would do nothing, and one image has no variance: both are reported by name."""
    apart = {"auxiliary_batch_norm": True}
    with pytest.raises(ConfigError, match=r"classify\.auxiliary_batch_norm: test_vit has no batch norm; leave it off"):
        train_classifier(pair(), replace(NO_NORM, **apart), num_classes=3, seed=0)
    real, generated = pair()
    with pytest.raises(ConfigError, match=r"a batch has 7 real and 1 synthetic images.*use a larger classify\.batch_size"):
        train_classifier([replace(real, share=0.9), replace(generated, share=0.1)], replace(TINY, **apart), num_classes=3, seed=0)


@pytest.mark.parametrize(
    ("second", "kept", "message"),
    [
        (None, torch.ones(4), "soft labels need both"),
        (torch.full((4,), -1), None, "soft labels need both"),
        (torch.zeros(3, dtype=torch.int64), torch.ones(4), "4 labels with 3 second labels and 4 shares"),
        (torch.zeros(4, dtype=torch.int64), torch.tensor([1, 0.5, 1.5, 1]), "image 2 keeps 1.5 for its label"),
        (torch.tensor([0, -1, 0, 0]), torch.tensor([0.5, 0.5, 1, 1]), "image 1 keeps 0.5 for its label and has second label -1"),
    ],
)
def test_shares_that_cannot_be_are_refused(second: Tensor | None, kept: Tensor | None, message: str) -> None:
    """A share without a class, or above 1, would give targets that do not sum to 1."""
    given = coloured(4)
    with pytest.raises(DataError, match=message):
        replace(given, second=second, first_share=kept)


def test_settings_reach_the_recipe_and_its_digest() -> None:
    """They are part of the digests of the section and of the recipe, but not of a one-origin recipe."""
    plain, apart = ClassifyConfig(), ClassifyConfig(synthetic_weight=0.5, auxiliary_batch_norm=True)
    assert apart.decided() == plain.decided() | {"synthetic_weight": 0.5, "auxiliary_batch_norm": True}
    of_plain, of_apart = (TrainRecipe.from_config(config, num_train_steps=3) for config in (plain, apart))
    assert of_apart.identity() == of_plain.identity() | {"synthetic_weight": 0.5, "auxiliary_batch_norm": True}
    assert of_apart.of_one_origin() == of_plain
    assert json.dumps(of_apart.identity())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"auxiliary_batch_norm": True, "mixup": 0.2}, "auxiliary_batch_norm keeps real and synthetic images apart"),
        ({"auxiliary_batch_norm": True, "cutmix": 1.0}, "which mixup and cutmix blend"),
        ({"auxiliary_batch_norm": True, "tune": "linear", "pretrained": "timm"}, "which tune: linear freezes"),
        ({"synthetic_weight": 0.0}, "greater than 0"),
        ({"synthetic_weight": 101.0}, "less than or equal to 100"),
        ({"synthetic_weight": float(np.nan)}, "synthetic_weight"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    """Incompatible settings are refused by name, before anything is trained."""
    with pytest.raises(ValidationError, match=message):
        ClassifyConfig(**settings)
