"""Code shared by the families that are one diffusers pipeline: loading, latents and sampling."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from gda.artifacts.cards import GeneratorCard
from gda.artifacts.tuning import SamplingSettings
from gda.errors import DataError
from gda.generator.families.denoising import Predict, denoise, first_noise, noise, timesteps_of, to_uint8
from gda.generator.families.guidance import GuidedSteps
from gda.generator.families.protocol import Start
from gda.generator.weights.config_types import check_types
from gda.generator.weights.directory import files_of, read_card
from gda.generator.weights.layout import INDEX, UNUSED, Files, null_parts
from gda.generator.weights.loading import OWN_FILES_ALONE, check_vocabularies, load_networks, loading
from gda.runtime.torch_rng import RandomStreams, generators_of


def load_pipeline(name: str) -> tuple[Files, GeneratorCard, Any]:
    """The used files, card and diffusers pipeline of a generator, in float32 eval mode without gradients.

    Parts that are null in the index are passed as None, because diffusers ignores null there. No code of the directory is run.
    Raises `MissingError` for a missing directory, `DataError` for an unknown family, pickled or damaged weights.
    """
    import diffusers
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    files, card = files_of(name), read_card(name)
    index = files.indexes()[INDEX]
    without: dict[str, Any] = dict.fromkeys((*null_parts(index), *(part for part in UNUSED if part in index)))
    with files.laid_out() as folder, loading(files, index["_class_name"]):
        check_types(files)
        parts = without | load_networks(folder)
        pipeline = getattr(diffusers, index["_class_name"]).from_pretrained(folder, dtype=torch.float32, **OWN_FILES_ALONE, **parts)
    check_vocabularies(files, pipeline.components)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return files, card, pipeline


@dataclass(kw_only=True)
class PipelineModel:
    """The part of `Model` that families of one diffusers pipeline share; `only` names the pipeline's network that is fine-tuned."""

    path: Path
    files: Files
    card: GeneratorCard
    pipeline: Any
    scheduler_config: dict[str, Any]
    only: ClassVar[str]

    @property
    def stages(self) -> tuple[str, ...]:
        return (self.only,)

    @property
    def image_size(self) -> int:
        """Side of the images, pixels: the denoiser's side times the autoencoder's factor."""
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
        """The denoiser. Raises `DataError` for any other stage."""
        if stage != self.only:
            raise DataError(f"{self.path}: this generator has no {stage} stage, its only one is {self.only}")
        network: nn.Module = getattr(self.pipeline, self.only)
        return network

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Moments of latents, float32 [n, 2c, h, w]."""
        return latent_moments(self.pipeline.vae, images)

    @property
    def sampling_networks(self) -> tuple[nn.Module, ...]:
        return (getattr(self.pipeline, self.only), self.pipeline.vae)

    def sample_latents(
        self, predict: Predict, scheduler: Any, seeds: Sequence[int], settings: SamplingSettings, start: Start | None
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
        guidance = GuidedSteps(scale=settings.guidance_scale, interval=settings.guidance_interval)
        latents = denoise(predict, scheduler, x, timesteps, guidance, generators)
        return to_uint8(decode_latents(self.pipeline.vae, latents) * 255)


@torch.no_grad()
def latent_moments(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Mean and log-variance of each image's latents, float32 [n, 2c, h, w], from float32 NCHW in [-1, 1]."""
    return vae.encode(images).latent_dist.parameters


def encode_latents(vae: Any, moments: torch.Tensor, streams: RandomStreams) -> torch.Tensor:
    """Sample latents from their moments and rescale them for the denoiser: float32 [n, c, h, w]."""
    mean, log_variance = moments.chunk(2, dim=1)
    # diffusers clamps the log-variance the same way.
    deviation = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
    latents = mean + deviation * streams.normal(*mean.shape[1:])
    return _scaled(vae, latents)


def decode_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Images float32 NCHW in [0, 1], decoded from latents at the denoiser's scale."""
    mean, deviation = _statistics(vae, latents)
    latents = latents * deviation / vae.config.scaling_factor + mean
    images = vae.decode(latents.to(vae.dtype), return_dict=False)[0].float()
    return (images * 0.5 + 0.5).clamp(0, 1)


def sample_latents(vae: Any, images: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Latents sampled from the posterior of each image float32 NCHW in [-1, 1], with its own generator, at the denoiser's scale."""
    mean, log_variance = latent_moments(vae, images.to(vae.dtype)).float().chunk(2, dim=1)
    sampled = mean + torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)) * noise(generators, *mean.shape[1:]).to(mean.device)
    return _scaled(vae, sampled)


def _scaled(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents of the autoencoder at the denoiser's scale; `decode_latents` inverts this."""
    mean, deviation = _statistics(vae, latents)
    return (latents - mean) / deviation * vae.config.scaling_factor


def _statistics(vae: Any, latents: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """Mean and deviation that normalise latents: per channel if the autoencoder's configuration has them, else its shift and 1."""
    mean, deviation = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
    if mean is None or deviation is None:
        return float(vae.config.shift_factor or 0.0), 1.0
    means, deviations = (torch.tensor(x, device=latents.device, dtype=torch.float32).view(1, -1, 1, 1) for x in (mean, deviation))
    return means, deviations
