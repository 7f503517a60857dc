"""The training loop of classifiers, built on timm: a fixed number of steps on images in memory, exactly resumable."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from gda.artifacts.fingerprint import digest_of
from gda.errors import DataError
from gda.io.tensors import tensors_digest
from gda.runtime.parallel import single_threaded
from gda.runtime.process_group import ProcessGroup
from gda.runtime.rng import stream_seed
from gda.runtime.torch_rng import torch_stream
from gda.training.loop.auxiliary_norm import AuxiliaryNorms
from gda.training.loop.checkpoint import load_checkpoint, save_checkpoint
from gda.training.loop.forward import Forward, exact_convolutions
from gda.training.loop.mixed_batches import MixedBatch, MixedBatches, TrainingSource
from gda.training.networks.export import export_classifier, load_classifier, model_digest, preparation
from gda.training.networks.models import build_model, freeze_backbone
from gda.training.recipes.augment import augment, normalise_pixels
from gda.training.recipes.mixup_and_loss import Mixing, WeightedLoss, make_loss, soft_targets
from gda.training.recipes.optimizing import make_classifier_optimizer, make_schedule, optimizer_tensors, restore_optimizer
from gda.training.recipes.policies import ErasingPolicy, RandAugmentPolicy
from gda.training.recipes.train_recipe import TrainRecipe

__all__ = ["TrainingSource", "TrainRecipe", "export_classifier", "load_classifier", "predict_logits", "top1", "train_classifier"]

Curve = list[tuple[int, float]]

_CURVE_EVERY = 10  # steps per point


def train_classifier(
    sources: Sequence[TrainingSource],
    recipe: TrainRecipe,
    *,
    num_classes: int,
    seed: int,
    start: nn.Module | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 100,
    progress: Callable[[int, float], None] | None = None,
    world: ProcessGroup | None = None,
) -> tuple[nn.Module, Curve]:
    """Train for `recipe.num_train_steps` steps; returns the model in eval mode and (step, mean loss since the last point).

    The weights are the averaged ones if the recipe has an `ema_decay`. Training starts from a copy of `start`, its head included, or from
    a new network. Each source fills its exact share of every batch. With `checkpoint` (a directory) the state is saved every
    `checkpoint_every` steps, and the same call after a kill ends in bit-identical weights. `progress` is called after each step
    with the number of steps done and its loss. The recipe's settings for synthetic images apply only to mixed batches. `world` gives the
    device, by default the CPU, and the other processes. All processes make the same call: each computes its share of every batch, only the
    first saves, and all return the same model on their device. Raises `ConfigError` for an unknown architecture, arguments it does not
    take, and incompatible settings or processes, `DataError` when the loss is not finite or the pretrained weights belong to another
    network.
    """
    single_threaded()
    world = ProcessGroup.single() if world is None else world
    if len({source.synthetic for source in sources}) == 1:
        recipe = recipe.of_one_origin()
    # timm initialises weights and drops paths with the global generator: seed it by name here, and restore it afterwards.
    with torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []), exact_convolutions(world.device):
        torch.manual_seed(stream_seed("classify", seed, "model"))
        model = copy.deepcopy(start) if start is not None else _new(recipe, num_classes)
        run = _Run(
            model,
            [replace(source, images=_resize(source.images, recipe.image_size)) for source in sources],
            recipe,
            num_classes,
            seed,
            world,
        )
        identity = _identity(sources, recipe, num_classes, seed, start) if checkpoint is not None and world.is_first else ""
        if checkpoint is not None:
            run.restore(world.broadcast(load_checkpoint(checkpoint, identity=identity) if world.is_first else None))
        while run.update < recipe.num_train_steps:
            run.step()
            if checkpoint is not None and run.update % checkpoint_every == 0 and world.is_first:
                save_checkpoint(checkpoint, run.update, run.state(), identity=identity)
            if progress is not None:
                progress(run.update, run.last_loss)
    # Back to contiguous memory, as in a model loaded from a file: the two must give the same bits.
    return run.finished().eval().requires_grad_(True).to(memory_format=torch.contiguous_format), run.curve


def _new(recipe: TrainRecipe, num_classes: int) -> nn.Module:
    return build_model(
        recipe.model,
        recipe.model_args,
        num_classes=num_classes,
        image_size=recipe.image_size,
        test_image_size=recipe.test_image_size,
        weights=recipe.weights,
    )


class _Run:
    """Everything that changes while a classifier trains."""

    def __init__(
        self,
        model: nn.Module,
        sources: Sequence[TrainingSource],
        recipe: TrainRecipe,
        num_classes: int,
        seed: int,
        world: ProcessGroup | None = None,
    ) -> None:
        world = ProcessGroup.single() if world is None else world
        self.device = world.device
        # Channels last is 1.3-1.6 times faster on a CPU at these sizes.
        self.model = model.to(world.device).to(memory_format=torch.channels_last)
        self.recipe = recipe
        if recipe.tune == "linear":
            # Always in eval mode: the batch-norm statistics belong to the frozen weights.
            freeze_backbone(model, recipe.model)
            model.eval()
        else:
            model.train()
        # Real images come first.
        ordered = sorted(sources, key=lambda source: source.synthetic)
        self.batches = MixedBatches(ordered, recipe.batch_size, seed)
        self.num_classes = num_classes
        self.streams = {"augment": torch_stream("classify", seed, "augment")}
        self.policy: RandAugmentPolicy | None = None
        self.erase: ErasingPolicy | None = None
        self.mix: Mixing | None = None
        self.ema: ModelEmaV3 | None = None
        if recipe.rand_augment:
            self.policy = RandAugmentPolicy(recipe.rand_augment, image_size=recipe.image_size, mean=recipe.mean)
        if recipe.random_erasing:
            self.erase = ErasingPolicy(recipe.random_erasing)
            self.streams["erasing"] = torch_stream("classify", seed, "erasing")
        if recipe.mixup or recipe.cutmix:
            smoothing = recipe.label_smoothing
            self.mix = Mixing(mixup=recipe.mixup, cutmix=recipe.cutmix, label_smoothing=smoothing, num_classes=num_classes)
            self.streams["mixing"] = torch_stream("classify", seed, "mixing")
        if recipe.ema_decay:
            self.ema = ModelEmaV3(self.model, decay=recipe.ema_decay, use_warmup=True)
        rate = recipe.learning_rate
        self.optimizer = make_classifier_optimizer(
            model, recipe.optimizer, learning_rate=rate, weight_decay=recipe.weight_decay, momentum=recipe.momentum
        )
        self.norms: AuxiliaryNorms | None = None
        if recipe.auxiliary_batch_norm:
            num_synthetic = sum(count for source, count in zip(ordered, self.batches.counts, strict=True) if source.synthetic)
            self.norms = AuxiliaryNorms(self.model, recipe.model, (recipe.batch_size - num_synthetic, num_synthetic))
            self.optimizer.add_param_group({"params": list(self.norms.parameters.values()), "weight_decay": 0.0})
        self.schedule = make_schedule(
            self.optimizer, learning_rate=rate, num_train_steps=recipe.num_train_steps, warmup_steps=recipe.warmup_steps
        )
        self.loss = make_loss(
            recipe.loss, label_smoothing=recipe.label_smoothing, bce_threshold=recipe.bce_threshold, mixed=self.mix is not None
        )
        self.weights: Tensor | None = None
        if recipe.synthetic_weight != 1 or self.batches.soft:
            weights = self.batches.per_image([recipe.synthetic_weight if source.synthetic else 1.0 for source in ordered])
            self.weights = weights.to(self.device)
            self.loss = WeightedLoss(recipe.loss, bce_threshold=recipe.bce_threshold)
        self.forward = Forward(self.model, recipe, world, seed=seed, norms=self.norms)
        self.update = 0
        self.curve: Curve = []
        self.pending: list[float] = []  # losses since the curve's last point
        self.last_loss = math.nan

    def step(self) -> None:
        """One optimizer step."""
        self.schedule.step_update(self.update)
        inputs, towards = self._batch()
        loss = self.forward.loss(self.loss, inputs, towards, self.update)
        self.optimizer.zero_grad()
        loss.backward()
        if self.recipe.max_grad_norm:
            nn.utils.clip_grad_norm_(self._parameters(), self.recipe.max_grad_norm)
        self.optimizer.step()
        self.update += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.update)
        self._record(self.forward.mean(loss))

    def finished(self) -> nn.Module:
        """The model whose weights are kept."""
        return self.model if self.ema is None else self.ema.module

    def _parameters(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *(() if self.norms is None else self.norms.parameters.values())]

    def _batch(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Inputs, float NCHW, and their targets: labels, mixed targets [n, classes], or targets and weights [n]."""
        recipe = self.recipe
        batch = self.batches.next().to(self.device)
        inputs = augment(
            batch.images,
            recipe.augment,
            self.streams["augment"],
            horizontal_flip=recipe.horizontal_flip,
            crop_area=recipe.crop_area,
            policy=self.policy,
            mean=recipe.mean,
            std=recipe.std,
        )
        if self.erase is not None:
            inputs = self.erase(inputs, self.streams["erasing"])
        if self.weights is not None:
            return self._weighted(inputs, batch, self.weights)
        if self.mix is None:
            return inputs, (batch.labels,)
        mixed, targets = self.mix(inputs, batch.labels, self.streams["mixing"])
        return mixed, (targets,)

    def _weighted(self, inputs: Tensor, batch: MixedBatch, weights: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        smoothing = self.recipe.label_smoothing
        targets = soft_targets(batch.labels, batch.second, batch.first_share, num_classes=self.num_classes, label_smoothing=smoothing)
        if self.mix is None:
            return inputs, (targets, weights)
        mixed, blend = self.mix.blend(inputs, self.streams["mixing"])
        return mixed, (blend @ targets, blend @ weights)

    def _record(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise DataError(f"classifier training diverged: the loss is {loss} at update {self.update}; lower classify.learning_rate")
        self.pending.append(loss)
        self.last_loss = loss
        if self.update % _CURVE_EVERY == 0 or self.update == self.recipe.num_train_steps:
            self.curve.append((self.update, math.fsum(self.pending) / len(self.pending)))
            self.pending = []

    def state(self) -> dict[str, Tensor]:
        """The whole state as one flat mapping of tensors."""
        average = {} if self.ema is None else self.ema.module.state_dict()
        return {
            **{f"model/{name}": value for name, value in self.model.state_dict().items()},
            **{f"ema/{name}": value for name, value in average.items()},
            **{f"optimizer/{name}": value for name, value in optimizer_tensors(self.optimizer).items()},
            **{f"auxiliary/{name}": value for name, value in ({} if self.norms is None else self.norms.state()).items()},
            **{f"batches/{name}": value for name, value in self.batches.state().items()},
            **{f"stream/{name}": generator.get_state() for name, generator in self.streams.items()},
            "stream/global": torch.random.get_rng_state(),
            "update": torch.tensor([self.update]),
            "curve": torch.tensor(self.curve, dtype=torch.float64).view(-1, 2),
            "pending": torch.tensor(self.pending, dtype=torch.float64),
        }

    def restore(self, state: Mapping[str, Tensor] | None) -> None:
        """Resume from `state`; None starts from the beginning."""
        if state is None:
            return
        self.model.load_state_dict(_under(state, "model/"))
        if self.ema is not None:
            self.ema.module.load_state_dict(_under(state, "ema/"))
        if self.norms is not None:
            self.norms.restore(_under(state, "auxiliary/"))
        restore_optimizer(self.optimizer, _under(state, "optimizer/"))
        self.batches.restore(_under(state, "batches/"))
        for name, generator in self.streams.items():
            generator.set_state(state[f"stream/{name}"])
        torch.random.set_rng_state(state["stream/global"])
        self.update = int(state["update"])
        self.curve = [(int(update), loss) for update, loss in state["curve"].tolist()]
        self.pending = state["pending"].tolist()


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _identity(sources: Sequence[TrainingSource], recipe: TrainRecipe, num_classes: int, seed: int, start: nn.Module | None) -> str:
    """A digest that a checkpoint must match to be resumed: of recipe, seed, start, and every training image with its label."""
    apart = recipe != recipe.of_one_origin()
    data = [[_content(source), source.share, *(["synthetic"] if apart and source.synthetic else [])] for source in sources]
    begun = {} if start is None else {"start": model_digest(start)}
    return digest_of({"recipe": recipe.identity(), "num_classes": num_classes, "seed": seed, "sources": data} | begun)


def _content(source: TrainingSource) -> str:
    soft = {"second": source.second, "first_share": source.first_share}
    tensors = {"images": source.images, "labels": source.labels} | {name: value for name, value in soft.items() if value is not None}
    return tensors_digest({name: value.numpy() for name, value in tensors.items()})


@torch.no_grad()
def predict_logits(model: nn.Module, images: Tensor, *, image_size: int, batch_size: int = 256) -> Tensor:
    """Logits (float32 [n, classes], on the CPU) of uint8 NCHW images, resized to `image_size` pixels where they have another size.

    Computed in float32 on the model's device, with the model in eval mode; mean and deviation are those of its `pretrained_cfg`.
    `batch_size` affects the last bits.
    """
    model.eval()
    device = next(model.parameters()).device
    mean, std = preparation(model)
    with exact_convolutions(device):
        parts = [
            model(normalise_pixels(_resize(part.to(device), image_size), mean, std)).float().cpu() for part in images.split(batch_size)
        ]
    return torch.cat(parts)


def top1(logits: Tensor, labels: Tensor) -> float:
    """Share of rows whose largest logit is that of the label, in [0, 1]."""
    return float((logits.argmax(dim=1) == labels).double().mean())


def _resize(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images
    resized = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)
