"""The methods of fine-tuning: every weight, low-rank adapters, or tokens. A method defines what is trained and what is averaged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gda.config.sections import FinetuneConfig
from gda.errors import ConfigError
from gda.generator.families.protocol import Model, Text
from gda.generator.finetuning.prepared import Texts
from gda.generator.finetuning.tokens import Tokens, make_inversion
from gda.generator.weights.lora import Adapter, add_adapter
from gda.runtime.process_group import ProcessGroup


class Method(Protocol):
    """One way to fine-tune one network. `parameters` and `values` return references, always in the same order."""

    network: nn.Module  # called by the loss; possibly wrapped for several processes

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the optimizer updates, by name."""
        ...

    def values(self) -> dict[str, torch.Tensor]:
        """The tensors that are averaged over the steps, by name."""
        ...

    def snapshot_values(self) -> dict[str, torch.Tensor]:
        """The content of snapshots for averaging after training: weights under the network's own names."""
        ...

    def text(self, prompts: Sequence[str]) -> Text:
        """Text states of a batch's prompts, on the device."""
        ...

    def exchange(self, world: ProcessGroup) -> None:
        """Average gradients over the processes, unless the network's wrapper already does."""
        ...

    def weights(self, averaged: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The network's full state with the `averaged` values, on the CPU, under diffusers' names."""
        ...

    def install(self, model: Model, averaged: Mapping[str, torch.Tensor]) -> None:
        """Load the `averaged` values into another copy of the model, to sample with them."""
        ...


@dataclass
class Full:
    """Every weight of the network."""

    network: nn.Module
    texts: Texts
    stage: str
    plain: nn.Module

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.plain.named_parameters())

    def values(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach() for name, parameter in self.plain.named_parameters()}

    def snapshot_values(self) -> dict[str, torch.Tensor]:
        return self.values()

    def text(self, prompts: Sequence[str]) -> Text:
        return self.texts.take(prompts)

    def exchange(self, world: ProcessGroup) -> None:
        pass

    def weights(self, averaged: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        buffers = {name: value.detach().cpu() for name, value in self.plain.state_dict().items() if name not in averaged}
        return buffers | {name: value.clone() for name, value in averaged.items()}

    def install(self, model: Model, averaged: Mapping[str, torch.Tensor]) -> None:
        model.network(self.stage).load_state_dict(self.weights(averaged))


@dataclass
class Lora:
    """Low-rank adapters on a frozen network; their products are averaged, because the product of averaged factors is a different matrix."""

    network: nn.Module
    texts: Texts
    stage: str
    adapter: Adapter

    def parameters(self) -> dict[str, nn.Parameter]:
        return self.adapter.parameters()

    def values(self) -> dict[str, torch.Tensor]:
        return self.adapter.products()

    def snapshot_values(self) -> dict[str, torch.Tensor]:
        weights = self.adapter.merged(self.adapter.products())
        return {f"{layer}.weight": weights[f"{layer}.weight"].detach() for layer in self.adapter.layers}

    def text(self, prompts: Sequence[str]) -> Text:
        return self.texts.take(prompts)

    def exchange(self, world: ProcessGroup) -> None:
        pass

    def weights(self, averaged: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value.detach().cpu() for name, value in self.adapter.merged(dict(averaged)).items()}

    def install(self, model: Model, averaged: Mapping[str, torch.Tensor]) -> None:
        model.network(self.stage).load_state_dict(self.weights(averaged))


def make_method(
    model: Model, stage: str, config: FinetuneConfig, texts: Texts | None, world: ProcessGroup, *, tokens: Tokens | None, seed: int
) -> Method:
    """The method of `finetune.method`, with the network on the device and wrapped for the processes.

    Raises `ConfigError` for settings that the method does not support.
    """
    _require_possible(config, world)
    plain = model.network(stage).requires_grad_(config.method == "full")
    adapter = add_adapter(plain, config, seed=seed) if config.method == "lora" else None
    prepare_network(plain, config, world)
    if config.method == "textual_inversion":
        assert tokens is not None
        return make_inversion(model, stage, config, tokens=tokens.names, initial=tokens.initial, seed=seed)
    assert texts is not None
    shared = divide(plain, config, world)
    if adapter is not None:
        return Lora(network=shared, texts=texts, stage=stage, adapter=adapter)
    return Full(network=shared, texts=texts, stage=stage, plain=plain)


def _require_possible(config: FinetuneConfig, world: ProcessGroup) -> None:
    if config.parallelism == "fsdp" and world.size > 1:
        if config.method != "full":
            raise ConfigError(f"finetune.parallelism: must be ddp for finetune.method {config.method}, got fsdp")
        if config.ema_snapshot_steps:
            raise ConfigError("finetune.parallelism: must be ddp where finetune.ema_snapshot_steps is set, got fsdp")
    if config.weight_interpolation < 1 and config.ema_snapshot_steps:
        raise ConfigError(
            "finetune.weight_interpolation: must be 1 where finetune.ema_snapshot_steps is set, whose averages do not hold the base, "
            f"got {config.weight_interpolation:g}"
        )
    if config.lora_scope == "class":
        if config.method != "lora":
            raise ConfigError(f"finetune.lora_scope: must be dataset for finetune.method {config.method}, got class")
        if config.ema_snapshot_steps or config.evaluation_steps:
            raise ConfigError("finetune.lora_scope: must be dataset where ema_snapshot_steps or evaluation_steps is set, got class")
    if config.method == "textual_inversion" and config.ema_snapshot_steps:
        raise ConfigError("finetune.ema_snapshot_steps: must be null for textual_inversion, whose network does not change")


def prepare_network(network: nn.Module, config: FinetuneConfig, world: ProcessGroup) -> None:
    """Move a network to the device in train mode, with checkpointing and compilation as configured."""
    network.to(world.device).train()
    if config.gradient_checkpointing:
        enable: Any = network.enable_gradient_checkpointing
        enable()
    if config.compile:
        network.compile()


def divide(network: nn.Module, config: FinetuneConfig, world: ProcessGroup) -> nn.Module:
    """The network wrapped for several processes: whole copies whose gradients are averaged (ddp), or one shard per process (fsdp)."""
    if world.size == 1:
        return network
    if config.parallelism == "ddp":
        return DistributedDataParallel(network)
    return _sharded(network, world)


def _sharded(network: nn.Module, world: ProcessGroup) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    # diffusers lists the blocks that must not be split; each is gathered and freed as a unit. Inner blocks are wrapped first.
    blocks: Any = getattr(network, "_no_split_modules", None) or ()
    for module in reversed(list(network.modules())):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    fully_shard(network, mesh=mesh)
    return network
