"""The denoising loop of pixel-space stages: one generator an image, guided and unguided passes in one batch."""

import inspect
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from gda.generator.variance import learns_variance


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
    """Denoise from pure noise to float32 NCHW; guided and unguided passes share a batch, and guidance 1 makes one pass.

    A learned variance goes to ancestral DDPM alone: the other schedulers know no such step, and take the prediction.
    """
    x = noise(generators, size).to(text.device) * scheduler.init_noise_sigma
    channels, guided = x.shape[1], guidance != 1.0
    states = torch.cat([empty, text]) if guided else text
    levels = torch.cat([level, level]) if guided and level is not None else level
    takes_variance = isinstance(scheduler, DDPMScheduler) and learns_variance(scheduler.config)
    # Where a scheduler adds noise, each image's comes from its own generator.
    extra = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for t in scheduler.timesteps:
        given = x if condition is None else torch.cat([x, condition], dim=1)
        given = scheduler.scale_model_input(torch.cat([given, given]) if guided else given, t)
        output = unet(given, t, encoder_hidden_states=states, class_labels=levels).sample
        output = _guide(output, channels, guidance) if guided else output
        x = scheduler.step(output if takes_variance else output[:, :channels], t, x, return_dict=False, **extra)[0]
    return x


def noise(generators: list[torch.Generator], size: int) -> torch.Tensor:
    """Standard normal float32 [n, 3, size, size], each image from its own generator."""
    return torch.stack([torch.randn(3, size, size, generator=g) for g in generators])


def _guide(output: torch.Tensor, channels: int, guidance: float) -> torch.Tensor:
    """The guided prediction, and behind it the variance that the prompt's pass gave: guidance does not apply to it, as in `IFPipeline`."""
    without, with_prompt = output.chunk(2)
    predicted, variance = with_prompt[:, :channels], with_prompt[:, channels:]
    without = without[:, :channels]
    return torch.cat([without + guidance * (predicted - without), variance], dim=1)
