"""The denoising loop of pixel-space stages: one generator an image, guided and unguided passes in one batch."""

from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel


def denoise(
    unet: UNet2DConditionModel,
    scheduler: Any,
    text: torch.Tensor,
    empty: torch.Tensor,
    *,
    guidance: float,
    size: int,
    generators: list[torch.Generator],
    condition: torch.Tensor | None = None,
    level: torch.Tensor | None = None,
) -> torch.Tensor:
    """Denoise from pure noise to float32 NCHW; guided and unguided passes share a batch, and guidance 1 makes one pass."""
    x = noise(generators, size) * scheduler.init_noise_sigma
    guided = guidance != 1.0
    states = torch.cat([empty, text]) if guided else text
    levels = torch.cat([level, level]) if guided and level is not None else level
    extra = {"generator": generators} if isinstance(scheduler, DDPMScheduler) else {}
    for t in scheduler.timesteps:
        given = x if condition is None else torch.cat([x, condition], dim=1)
        given = scheduler.scale_model_input(torch.cat([given, given]) if guided else given, t)
        predicted = unet(given, t, encoder_hidden_states=states, class_labels=levels).sample[:, : x.shape[1]]
        if guided:
            without, with_prompt = predicted.chunk(2)
            predicted = without + guidance * (with_prompt - without)
        x = scheduler.step(predicted, t, x, return_dict=False, **extra)[0]
    return x


def noise(generators: list[torch.Generator], size: int) -> torch.Tensor:
    """Standard normal float32 [n, 3, size, size], each image from its own generator."""
    return torch.stack([torch.randn(3, size, size, generator=g) for g in generators])
