"""Optimizers by name, the learning rate schedule, and optimizer state by parameter name."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from gda.config.sections import FinetuneConfig
from gda.errors import MissingError
from gda.generator.finetuning.divided import like, whole


def make_optimizer(parameters: Sequence[nn.Parameter], config: FinetuneConfig) -> torch.optim.Optimizer:
    """The optimizer of `finetune.optimizer`. Raises `MissingError` if the package that adamw_8bit needs is not installed."""
    given: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(parameters, **given)
    if config.optimizer == "adamw_8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise MissingError("finetune.optimizer: adamw_8bit needs the package bitsandbytes; install it, or choose adafactor") from None
        optimizer: torch.optim.Optimizer = AdamW8bit(parameters, **given)
        return optimizer
    # The fused kernel takes a third of the time, also on CPUs. It is not available everywhere for sharded parameters.
    fused = not any(isinstance(parameter, DTensor) for parameter in parameters)
    return torch.optim.AdamW(parameters, fused=fused, **given)


def rate_at(step: int, total: int, config: FinetuneConfig) -> float:
    """The learning rate of the 0-based `step`: linear warm-up, then cosine to 2% of the peak, linear to 0, or constant."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / (config.warmup_steps + 1)
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    match config.lr_scheduler:
        case "cosine":
            return config.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        case "linear":
            return config.learning_rate * (1 - progress)
        case "constant":
            return config.learning_rate


def optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Full tensors and plain numbers of the optimizer's state, keyed `<parameter>/<entry>`; every process must call this."""
    tensors, numbers = {}, {}
    for name, parameter in parameters.items():
        for entry, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{name}/{entry}"] = whole(value)
            else:
                numbers[f"{name}/{entry}"] = value
    return tensors, numbers


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
    numbers: Mapping[str, Any],
) -> None:
    """Restore the result of `optimizer_state`, sharded over the processes in the same way as the parameters."""
    for key, value in [*tensors.items(), *numbers.items()]:
        name, entry = key.rsplit("/", 1)
        parameter = parameters[name]
        if isinstance(value, torch.Tensor):
            # State of a parameter's shape is placed and sharded like it; step counters are on the device where the optimizer creates them.
            on_device = value.dim() or any(group.get("fused") for group in optimizer.param_groups)
            value = like(value, parameter) if value.shape == parameter.shape else value.to(parameter.device if on_device else "cpu")
        optimizer.state[parameter][entry] = value
