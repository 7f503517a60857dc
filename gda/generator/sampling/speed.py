"""Speed settings of sampling, which change an image's last bits: precision, memory layout, compilation."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from gda.errors import MissingError
from gda.generator.families.protocol import Model


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Precision of the sampling networks, and whether they are compiled; both change an image's last bits."""

    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False


def speed_up(model: Model, speed: Speed) -> None:
    """Apply `speed` to every sampling network, in place; text encoders stay as they are, since they run once per prompt.

    The denoised images stay float32 between the passes. On a GPU, convolutions get the memory layout of its tensor cores.
    """
    for network in model.sampling_networks:
        if speed.precision != "fp32":
            # Bypasses diffusers' own `to`, which warns of parts kept in float32 although there are none.
            nn.Module.to(network, torch.bfloat16)
        if next(network.parameters()).device.type == "cuda":
            network.to(memory_format=torch.channels_last)
        if speed.compile:
            # Sampling calls an autoencoder's `decode`, which runs only its decoder.
            getattr(network, "decoder", network).compile(dynamic=False)


@contextmanager
def compiler_errors(speed: Speed) -> Iterator[None]:
    """Turn compiler errors, which occur at a network's first pass, into a `MissingError` with their first line."""
    if not speed.compile:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    try:
        yield
    except TorchDynamoException as error:
        why = str(error).strip().splitlines()[0]
        raise MissingError(f"sample.compile: the networks cannot be compiled here ({why}); sample with sample.compile=false") from None
