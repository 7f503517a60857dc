"""The frozen latent upscaler that may follow a cascade, as in DeepFloyd IF, whose third stage is Stable Diffusion's x4 upscaler.

On disk it is `upscaler/`, a directory that plain diffusers loads (`StableDiffusionUpscalePipeline`), with a text encoder of its own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gda.artifacts.tuning import SamplingSettings
from gda.errors import DataError
from gda.generator.families.denoising import to_uint8
from gda.generator.families.protocol import make_scheduler
from gda.generator.weights.directory import read_base_json
from gda.generator.weights.loading import OWN_FILES_ALONE, load_networks

_PIPELINE = "StableDiffusionUpscalePipeline"
_NOISE_LEVEL = 20  # of the image that is enlarged; the pipeline's own default


@dataclass(kw_only=True)
class Upscaler:
    """A loaded upscaler in float32 eval mode; it is never trained."""

    pipeline: Any
    scheduler_config: dict[str, Any]

    @property
    def factor(self) -> int:
        """The factor of enlargement: its latents have the size of the input image, and the autoencoder decodes them."""
        return int(self.pipeline.vae_scale_factor)

    def to(self, device: torch.device | str) -> None:
        self.pipeline.to(device)

    def encode(self, prompts: list[str]) -> torch.Tensor:
        """Text states float32 [n, tokens, d], as the pipeline computes them."""
        states: torch.Tensor = self.pipeline.encode_prompt(prompts, self.pipeline.device, 1, do_classifier_free_guidance=False)[0]
        return states

    @torch.inference_mode()
    def sample(
        self, images: torch.Tensor, text: torch.Tensor, empty: torch.Tensor, generators: list[torch.Generator], settings: SamplingSettings
    ) -> torch.Tensor:
        """uint8 NCHW on the CPU, `factor` times as large as the uint8 NCHW images given.

        Uses the super-resolution stage's guidance and steps; noise comes from each image's generator.
        """
        self.pipeline.scheduler = make_scheduler(settings.scheduler, self.scheduler_config)
        kind = self.pipeline.unet.dtype
        enlarged = self.pipeline(
            image=images.to(text.device).float() / 255,
            prompt_embeds=text.to(kind),
            negative_prompt_embeds=empty.to(kind),
            guidance_scale=settings.sr_guidance_scale,
            num_inference_steps=settings.sr_num_inference_steps,
            noise_level=_NOISE_LEVEL,
            generator=generators,
            output_type="pt",
        ).images
        return to_uint8(enlarged.float() * 255)


def load_upscaler(folder: Path) -> Upscaler:
    """Load the upscaler of a cascade. Raises `DataError` if the folder holds another pipeline."""
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    kind = read_base_json(folder / "model_index.json").get("_class_name")
    if kind != _PIPELINE:
        raise DataError(f"{folder}: cannot follow a cascade, {kind!r} is not known there; known: {_PIPELINE}")
    # A safety checker would silently black out some images.
    unwanted: dict[str, Any] = dict.fromkeys(("safety_checker", "feature_extractor", "watermarker"))
    parts = unwanted | load_networks(folder)
    pipeline = diffusers.StableDiffusionUpscalePipeline.from_pretrained(folder, dtype=torch.float32, **OWN_FILES_ALONE, **parts)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    # Decoding a batch of large images at once would take most of the memory; decoding one at a time is as fast.
    pipeline.vae.enable_slicing()
    pipeline.set_progress_bar_config(disable=True)
    return Upscaler(pipeline=pipeline, scheduler_config=read_base_json(folder / "scheduler" / "scheduler_config.json"))
