"""What families that are one diffusers pipeline share: loading it, its latents, and drawing with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from gda.artifacts import DrawSettings, GeneratorCard
from gda.errors import DataError
from gda.generator.directory import read_card, read_json, resolve, variant_of
from gda.generator.draw import Guidance, Predict, denoise, first_noise, generators_of, noise, timesteps_of, to_uint8
from gda.generator.layout import UNUSED
from gda.generator.model import Start
from gda.generator.randomness import Draws


def load_pipeline(name: str) -> tuple[Path, GeneratorCard, Any]:
    """The directory, card and diffusers pipeline of a generator, in float32 eval mode with nothing to train.

    Raises `MissingError` for a missing directory, `DataError` for an unknown family, pickled or damaged weights.
    """
    import diffusers
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    path, card = resolve(name), read_card(name)
    index = read_json(path / "model_index.json")
    options: dict[str, Any] = {part: None for part in UNUSED if part in index} | {"variant": variant_of(name)}
    try:
        kind = getattr(diffusers, index["_class_name"])
        pipeline = kind.from_pretrained(path, dtype=torch.float32, use_safetensors=True, low_cpu_mem_usage=False, **options)
    except (OSError, ValueError, LookupError, RuntimeError, AttributeError, TypeError) as error:
        raise DataError(f"{path}: cannot be loaded as {index['_class_name']} ({str(error).splitlines()[0]})") from None
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return path, card, pipeline


@dataclass(kw_only=True)
class PipelineModel:
    """What the families of one diffusers pipeline share of `Model`; `only` is the network that is fine-tuned, a part of the pipeline."""

    path: Path
    card: GeneratorCard
    pipeline: Any
    scheduler_config: dict[str, Any]
    only: ClassVar[str]

    @property
    def stages(self) -> tuple[str, ...]:
        return (self.only,)

    @property
    def image_size(self) -> int:
        """Side of the images, pixels: the denoiser's, times what the autoencoder enlarges."""
        return int(getattr(self.pipeline, self.only).config.sample_size * self.pipeline.vae_scale_factor)

    @property
    def train_size(self) -> int:
        return self.image_size

    @property
    def device(self) -> torch.device:
        device: torch.device = self.pipeline.device
        return device

    def to(self, device: torch.device | str) -> None:
        self.pipeline.to(device)

    def network(self, stage: str) -> nn.Module:
        """The denoiser. Raises `DataError` for another stage than the only one."""
        if stage != self.only:
            raise DataError(f"{self.path}: this generator has no {stage} stage, its only one is {self.only}")
        network: nn.Module = getattr(self.pipeline, self.only)
        return network

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Moments of latents, float32 [n, 2c, h, w]."""
        return latent_moments(self.pipeline.vae, images)

    @property
    def drawing(self) -> tuple[nn.Module, ...]:
        return (getattr(self.pipeline, self.only), self.pipeline.vae)

    def draw_latents(
        self, predict: Predict, scheduler: Any, seeds: Sequence[int], settings: DrawSettings, start: Start | None
    ) -> torch.Tensor:
        """uint8 NCHW in [0, 255]: latents denoised by `predict`, then decoded."""
        device, generators = self.device, generators_of(seeds)
        strength = 1.0 if start is None else start.strength
        timesteps = timesteps_of(scheduler, settings.num_inference_steps, strength, device)
        denoiser = getattr(self.pipeline, self.only)
        side = int(denoiser.config.sample_size)
        clean = None if start is None else sample_latents(self.pipeline.vae, start.as_floats(self.image_size, device), generators)
        channels = int(self.pipeline.vae.config.latent_channels)
        x = first_noise(scheduler, (channels, side, side), generators, clean, timesteps[:1])
        guidance = Guidance(scale=settings.guidance_scale, interval=settings.guidance_interval)
        latents = denoise(predict, scheduler, x, timesteps, guidance, generators)
        return to_uint8(decode_latents(self.pipeline.vae, latents) * 255)


@torch.no_grad()
def latent_moments(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Mean and log-variance of each image's latent, float32 [n, 2c, h, w], from float32 NCHW in [-1, 1]."""
    return vae.encode(images).latent_dist.parameters


def encode_latents(vae: Any, moments: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Draw latents from their moments and bring them to the scale that the denoiser works at: float32 [n, c, h, w]."""
    mean, log_variance = moments.chunk(2, dim=1)
    # diffusers clamps the log-variance the same way.
    deviation = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
    latents = mean + deviation * draws.normal(*mean.shape[1:])
    return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Images float32 NCHW in [0, 1] of latents at the scale that the denoiser works at."""
    config = vae.config
    if getattr(config, "latents_mean", None) is not None and getattr(config, "latents_std", None) is not None:
        mean, deviation = (torch.tensor(x, device=latents.device).view(1, -1, 1, 1) for x in (config.latents_mean, config.latents_std))
        latents = latents * deviation / config.scaling_factor + mean
    else:
        latents = latents / config.scaling_factor + (config.shift_factor or 0.0)
    images = vae.decode(latents.to(vae.dtype), return_dict=False)[0].float()
    return (images * 0.5 + 0.5).clamp(0, 1)


def sample_latents(vae: Any, images: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Latents drawn from the posterior of each image float32 NCHW in [-1, 1], with its own generator, at the denoiser's scale."""
    mean, log_variance = latent_moments(vae, images.to(vae.dtype)).float().chunk(2, dim=1)
    drawn = mean + torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)) * noise(generators, *mean.shape[1:]).to(mean.device)
    return (drawn - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
