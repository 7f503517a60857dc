"""How fast a generator draws, at what closeness to its own bits: precision, memory layout, compilation."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from gda.generator.model import Model


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Precision of the networks that draw, and whether they are compiled; both change an image's last bits."""

    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False


def speed_up(model: Model, speed: Speed) -> None:
    """Bring every network that draws to `speed`, in place; text encoders stay as they are, since they run once a prompt.

    What is denoised stays float32 between the passes. On a GPU convolutions get the layout that its tensor cores read.
    """
    for network in model.drawing:
        if speed.precision != "fp32":
            # Past diffusers' own `to`, which warns of parts that it would keep in float32 and names none.
            nn.Module.to(network, torch.bfloat16)
        if next(network.parameters()).device.type == "cuda":
            network.to(memory_format=torch.channels_last)
        if speed.compile:
            # An autoencoder is entered by `decode`, which runs its decoder alone.
            getattr(network, "decoder", network).compile(dynamic=False)
