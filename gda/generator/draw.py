"""Draws images from a cascade, a batch at a time, each image from a generator of its own seed."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel

from gda.artifacts import Document
from gda.generator.cascade import Cascade

_SCHEDULERS: dict[str, Any] = {"dpmsolver++": DPMSolverMultistepScheduler, "ddim": DDIMScheduler, "ddpm": DDPMScheduler}


class DrawSettings(Document):
    """What decides an image besides generator, prompt and seed."""

    guidance_scale: float
    num_inference_steps: int
    scheduler: str = "dpmsolver++"
    sr_guidance_scale: float = 1.0
    sr_num_inference_steps: int = 6
    sr_noise_level: int = 0


class Sampler:
    """A cascade with its text states encoded once; `draw` is a pure function of prompts, seeds and settings."""

    def __init__(self, cascade: Cascade, prompts: Sequence[str]) -> None:
        self.cascade = cascade
        unique = sorted({"", *prompts})
        self._states = dict(zip(unique, cascade.encode(unique), strict=True))

    @torch.inference_mode()
    def draw(self, prompts: Sequence[str], seeds: Sequence[int], settings: DrawSettings) -> torch.Tensor:
        """uint8 NCHW in [0, 255], one image a prompt and seed. Bits depend on the batch's size: draw whole batches to compare."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        text = torch.stack([self._states[p] for p in prompts])
        empty = self._states[""].expand_as(text)
        cascade = self.cascade
        images = _denoise(
            cascade.base,
            _scheduler(settings.scheduler, cascade.scheduler_config, settings.num_inference_steps),
            text,
            empty,
            guidance=settings.guidance_scale,
            size=cascade.low_size,
            generators=generators,
        )
        if cascade.super_resolution is not None:
            # What leaves the base stage is an image, so the next stage is given one: clipped, as diffusers passes PIL between them.
            images = self._super_resolve(images.clamp(-1, 1), text, empty, generators, settings)
        return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

    def _super_resolve(
        self, small: torch.Tensor, text: torch.Tensor, empty: torch.Tensor, generators: list[torch.Generator], settings: DrawSettings
    ) -> torch.Tensor:
        cascade = self.cascade
        assert cascade.super_resolution is not None
        size = cascade.image_size
        up = F.interpolate(small, (size, size), mode="bilinear", align_corners=True)
        level = torch.full((len(small),), settings.sr_noise_level)
        up = cascade.noise_schedule.add_noise(up, _noise(generators, size), level)
        return _denoise(
            cascade.super_resolution,
            _scheduler(settings.scheduler, cascade.sr_scheduler_config, settings.sr_num_inference_steps),
            text,
            empty,
            guidance=settings.sr_guidance_scale,
            size=size,
            generators=generators,
            condition=up,
            level=level,
        )


def _denoise(
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
    x = _noise(generators, size) * scheduler.init_noise_sigma
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


def _scheduler(name: str, config: dict[str, Any], steps: int) -> Any:
    scheduler = _SCHEDULERS[name].from_config(config)
    scheduler.set_timesteps(steps)
    return scheduler


def _noise(generators: list[torch.Generator], size: int) -> torch.Tensor:
    """Standard normal float32 [n, 3, size, size], each image from its own generator."""
    return torch.stack([torch.randn(3, size, size, generator=g) for g in generators])
