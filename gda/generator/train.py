"""Fine-tunes one network of a generator, resumably: everything random is a function of (seed, stage, step)."""

import copy
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from gda.config import FinetuneConfig
from gda.errors import DataError
from gda.generator.checkpoints import Checkpoints, TrainingState
from gda.generator.families import load_model
from gda.generator.model import Model, rows
from gda.parallel import tick

_PREPARED_AT_ONCE = 16  # images encoded to latents in one pass: bounds memory, changes no count


@dataclass(frozen=True, kw_only=True)
class StageJob:
    """Fine-tune `stage` of the generator at `base` on `images` (uint8 NCHW at the final size) with one prompt an image."""

    stage: str
    base: str
    images: torch.Tensor
    prompts: tuple[str, ...]
    config: FinetuneConfig
    num_train_steps: int
    seed: int
    work: Path


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """Averaged (EMA) weights by name, the loss of every step, and notes for the user."""

    stage: str
    weights: dict[str, torch.Tensor]
    losses: tuple[float, ...]
    notes: tuple[str, ...] = ()


def finetune_stage(job: StageJob) -> StageResult:
    """Train to `num_train_steps`, continuing from the newest whole checkpoint under `work`.

    An interrupted and an uninterrupted run end in identical weights on the same machine. Raises `DataError` on a non-finite
    loss, naming the step and the last good checkpoint.
    """
    model = load_model(job.base)
    network = model.network(job.stage).requires_grad_(True).train()
    run = _Run(network, job)
    unique = sorted({"", *job.prompts})
    row, text = {prompt: i for i, prompt in enumerate(unique)}, model.encode(unique)
    batches = _Prepared(model, job)
    for step in range(run.step, job.num_train_steps):
        generator = step_generator(job.seed, job.stage, step)
        chosen = batch_indices(len(job.images), job.config.train_batch_size, job.seed, step)
        prepared = batches.take(chosen, generator)
        dropped = torch.rand(len(chosen), generator=generator) < job.config.prompt_dropout
        said = ["" if d else job.prompts[i] for i, d in zip(chosen.tolist(), dropped.tolist(), strict=True)]
        batch_text = rows(text, [row[prompt] for prompt in said])
        run.update(model.loss(job.stage, network, prepared, batch_text, generator, snr_gamma=job.config.snr_gamma))
        tick()
    run.checkpoint()
    return StageResult(stage=job.stage, weights=run.averaged(), losses=tuple(run.losses), notes=tuple(run.notes))


def step_generator(seed: int, stage: str, step: int) -> torch.Generator:
    """The generator of one training step; steps and stages are independent streams."""
    name = hashlib.sha256(f"finetune/{seed}/{stage}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(name[:7], "big"))


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> torch.Tensor:
    """int64 [batch_size]: images of a step; each epoch is a fresh permutation and batches run across epoch ends."""
    first = step * batch_size
    positions = torch.arange(first, first + batch_size)
    chosen = torch.empty(batch_size, dtype=torch.int64)
    for epoch in torch.unique(positions // count).tolist():
        order = torch.randperm(count, generator=step_generator(seed, "order", epoch))
        here = positions // count == epoch
        chosen[here] = order[positions[here] % count]
    return chosen


def jitter(images: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Random small affine of float32 NCHW: at strength 1 up to 15 degrees, 15% scale, 0.2 shear, 8% shift; border is extended."""
    if strength == 0:
        return images
    n = len(images)
    u = (torch.rand(n, 6, generator=generator) * 2 - 1) * strength
    angle, shear = 0.26 * u[:, 0], 0.2 * u[:, 1]
    sx, sy = torch.exp(0.15 * u[:, 2]), torch.exp(0.15 * u[:, 3])
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = sx * torch.cos(angle), sx * (shear - torch.sin(angle))
    theta[:, 1, 0], theta[:, 1, 1] = sy * torch.sin(angle), sy * torch.cos(angle)
    theta[:, :, 2] = 0.08 * 2 * u[:, 4:6]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


class _Prepared:
    """What the loss is computed from: prepared once an image, or at every step where jitter makes each image another."""

    def __init__(self, model: Model, job: StageJob) -> None:
        self.model, self.images, self.strength = model, job.images, job.config.jitter
        self.kept = None if self.strength else torch.cat([model.prepare(_unit(part)) for part in job.images.split(_PREPARED_AT_ONCE)])

    def take(self, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if self.kept is not None:
            return self.kept[chosen]
        return self.model.prepare(jitter(_unit(self.images[chosen]), self.strength, generator))


def _unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


class _Run:
    """Network, its average, optimizer and step counter of one stage, with their checkpoints."""

    def __init__(self, unet: nn.Module, job: StageJob) -> None:
        self.config, self.total = job.config, job.num_train_steps
        self.unet, self.ema = unet, copy.deepcopy(unet).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(unet.parameters(), lr=job.config.learning_rate, weight_decay=job.config.weight_decay)
        self.checkpoints = Checkpoints(job.work, limit=job.config.checkpoints_total_limit)
        state, self.notes = self.checkpoints.load_newest()
        self.step, self.losses = 0, list[float]()
        if state is not None:
            self._restore(state)
            tick(self.step)

    def update(self, loss: torch.Tensor) -> None:
        """One optimizer update, then the average, then a checkpoint where one is due."""
        value = float(loss.detach())
        if not math.isfinite(value):
            saved = self._last_saved()
            kept = f"the checkpoint of step {saved}" if saved else "none, no checkpoint was written yet"
            raise DataError(f"finetune: loss became {value} at step {self.step + 1}; last good state: {kept}. Lower finetune.learning_rate")
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * schedule(self.step, self.config.lr_warmup_steps, self.total)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.unet.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.step += 1
        self.losses.append(value)
        decay = min(self.config.ema_decay, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.unet.parameters()), 1 - decay)
        if self.step % self.config.checkpointing_steps == 0:
            self.checkpoint()

    def checkpoint(self) -> None:
        tensors = {f"unet.{k}": v for k, v in self.unet.state_dict().items()} | {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{k}": v for k, v in moments.items()}
        self.checkpoints.save(TrainingState(step=self.step, tensors=tensors, losses=tuple(self.losses)))

    def averaged(self) -> dict[str, torch.Tensor]:
        return {k: v.detach().clone() for k, v in self.ema.state_dict().items()}

    def _restore(self, state: TrainingState) -> None:
        self.unet.load_state_dict({k[5:]: v for k, v in state.tensors.items() if k.startswith("unet.")})
        self.ema.load_state_dict({k[4:]: v for k, v in state.tensors.items() if k.startswith("ema.")})
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in state.tensors.items():
            if key.startswith("adam."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = value
        whole = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": moments, "param_groups": whole["param_groups"]})
        self.step, self.losses = state.step, list(state.losses)

    def _last_saved(self) -> int:
        state, _ = self.checkpoints.load_newest()
        return state.step if state is not None else 0


def schedule(step: int, warmup: int, total: int) -> float:
    """Share of the peak learning rate at `step` (0-based): linear warm-up, then cosine to 2%."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
