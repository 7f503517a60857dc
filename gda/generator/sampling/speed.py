"""How fast a generator samples, at what closeness to its own bits: precision, memory layout, compilation."""

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
    """Precision of the networks that sample, and whether they are compiled; both change an image's last bits."""

    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False


def speed_up(model: Model, speed: Speed) -> None:
    """Bring every network that samples to `speed`, in place; text encoders stay as they are, since they run once a prompt.

    What is denoised stays float32 between the passes. On a GPU convolutions get the layout that its tensor cores read.
    """
    for network in model.sampling_networks:
        if speed.precision != "fp32":
            # Past diffusers' own `to`, which warns of parts that it would keep in float32 and names none.
            nn.Module.to(network, torch.bfloat16)
        if next(network.parameters()).device.type == "cuda":
            network.to(memory_format=torch.channels_last)
        if speed.compile:
            # An autoencoder is entered by `decode`, which runs its decoder alone.
            getattr(network, "decoder", network).compile(dynamic=False)


@contextmanager
def compiler_errors(speed: Speed) -> Iterator[None]:
    """Networks are compiled when they first run: turn what goes wrong there into a `MissingError` with its first line."""
    if not speed.compile:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    try:
        yield
    except TorchDynamoException as error:
        why = str(error).strip().splitlines()[0]
        raise MissingError(f"sample.compile: the networks cannot be compiled here ({why}); sample with sample.compile=false") from None
