"""The state of a training run: parameters, averages, optimizer, step counter and scores, saved and restored together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gda.config.sections import FinetuneConfig
from gda.generator.finetuning.checkpoints import Checkpoints, TrainingState
from gda.generator.finetuning.divided import like, local, whole
from gda.generator.finetuning.methods import Method
from gda.generator.finetuning.optimizer import load_optimizer_state, make_optimizer, optimizer_state, rate_at
from gda.generator.weights.posthoc import PowerAverages
from gda.runtime.process_group import ProcessGroup


@dataclass
class TrainingRun:
    """Everything that a step changes. Each process holds a copy or its shard, and the first process saves for all."""

    method: Method
    config: FinetuneConfig
    total: int
    world: ProcessGroup
    checkpoints: Checkpoints | None  # None except in the first process
    step: int = 0
    losses: list[float] = field(default_factory=list)
    scores: list[tuple[int, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parameters = self.method.parameters()
        self.averages = self._copies()
        self.base_values = self._copies() if self.config.weight_interpolation < 1 else None
        self.power = PowerAverages(self.method.snapshot_values()) if self.config.ema_snapshot_steps else None
        self.optimizer = make_optimizer(list(self.parameters.values()), self.config)
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.config.mixed_precision == "fp16")

    def update(self, loss: float) -> None:
        """Take one optimizer step with the accumulated gradients, then update the averages."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.step, self.total, self.config)
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.config.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.losses.append(loss)
        self._average()

    def averaged(self) -> dict[str, torch.Tensor]:
        """The averaged values, interpolated with the base's if configured, unsharded and on the CPU; every process must call this."""
        averages = {name: whole(value) for name, value in self.averages.items()}
        if self.base_values is None:
            return averages
        alpha = self.config.weight_interpolation  # WiSE-FT, Wortsman et al. 2022, equation 1
        return {name: torch.lerp(whole(value), averages[name], alpha) for name, value in self.base_values.items()}

    def save(self) -> None:
        """Write a checkpoint; every process must call this."""
        moments, numbers = optimizer_state(self.optimizer, self.parameters)
        tensors = {f"trained.{name}": whole(parameter) for name, parameter in self.parameters.items()}
        tensors |= {f"average.{name}": whole(value) for name, value in self.averages.items()}
        tensors |= {f"optimizer.{name}": value for name, value in moments.items()}
        if self.power is not None:
            tensors |= {f"power.{name}": value for name, value in self.power.tensors().items()}
        extra = {"optimizer": numbers, "scaler": self.scaler.state_dict(), "scores": self.scores}
        if self.checkpoints is not None:
            self.checkpoints.save(TrainingState(step=self.step, tensors=tensors, losses=tuple(self.losses), extra=extra))

    def restore(self, *, at_most: int | None = None) -> None:
        """Continue from the newest undamaged checkpoint, if any; every process must call this."""
        found = self.checkpoints.load_newest(at_most=at_most) if self.checkpoints is not None else (None, [])
        state, notes = self.world.broadcast(found)
        self.notes += notes
        if state is not None:
            self._restore(state)

    def _copies(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.method.values().items()}

    def _average(self) -> None:
        decay = min(self.config.ema_decay, self.step / (self.step + 10))
        values = self.method.values()
        with torch.no_grad():
            torch._foreach_lerp_([local(v) for v in self.averages.values()], [local(values[k]) for k in self.averages], 1 - decay)
            if self.power is not None:
                self.power.update(self.method.snapshot_values(), self.step)

    def _restore(self, state: TrainingState) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                local(parameter).copy_(local(like(state.tensors[f"trained.{name}"], parameter)))
            for name, value in self.averages.items():
                local(value).copy_(local(like(state.tensors[f"average.{name}"], value)))
        if self.power is not None:
            self.power.load(_under("power.", state.tensors))
        load_optimizer_state(self.optimizer, self.parameters, _under("optimizer.", state.tensors), state.extra["optimizer"])
        self.scaler.load_state_dict(state.extra["scaler"])
        self.step, self.losses = state.step, list(state.losses)
        self.scores = [(int(step), float(value)) for step, value in state.extra["scores"]]


def _under(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
