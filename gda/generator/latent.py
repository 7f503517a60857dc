"""The latent UNet: Stable Diffusion 1.x, 2.x and XL, with epsilon or v prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import nn

from gda.artifacts import DrawSettings
from gda.generator.directory import read_json
from gda.generator.model import Text, denoising_error, make_scheduler
from gda.generator.pipelines import PipelineModel, draw_with, encode_latents, load_pipeline
from gda.generator.randomness import Draws


@dataclass(kw_only=True)
class LatentUNet(PipelineModel):
    """A loaded `StableDiffusionPipeline` or `StableDiffusionXLPipeline`; the UNet is what is fine-tuned."""

    noise_schedule: Any
    only = "unet"

    def encode(self, prompts: list[str]) -> Text:
        """`states` float32 [n, tokens, d], and for XL `pooled` [n, d]; XL's empty prompt is zeros where its pipeline says so."""
        if not self._is_xl:
            return {"states": self.pipeline.encode_prompt(prompts, self.device, 1, do_classifier_free_guidance=False)[0]}
        states, _, pooled, _ = self.pipeline.encode_prompt(prompts, device=self.device, do_classifier_free_guidance=False)
        if self.pipeline.config.force_zeros_for_empty_prompt:
            said = torch.tensor([bool(prompt) for prompt in prompts], device=self.device)
            states, pooled = states * said[:, None, None], pooled * said[:, None]
        return {"states": states, "pooled": pooled}

    def loss(
        self, stage: str, network: nn.Module, prepared: torch.Tensor, text: Text, draws: Draws, *, snr_gamma: float | None
    ) -> torch.Tensor:
        """Squared error of the prediction at uniformly drawn noise levels (Ho et al. 2020, equation 14; Salimans & Ho 2022 for v)."""
        clean = encode_latents(self.pipeline.vae, prepared, draws)
        t = draws.integers(int(self.noise_schedule.config["num_train_timesteps"]))
        noise = draws.normal(*clean.shape[1:])
        noisy = self.noise_schedule.add_noise(clean, noise, t)
        extra = {"added_cond_kwargs": self._added(text)} if self._is_xl else {}
        predicted = network(noisy, t, encoder_hidden_states=text["states"], **extra).sample
        return denoising_error(self.noise_schedule, predicted, clean, noise, t, snr_gamma=snr_gamma)

    def draw(self, text: Text, empty: Text, seeds: Sequence[int], settings: DrawSettings) -> torch.Tensor:
        given = {"prompt_embeds": text["states"], "negative_prompt_embeds": empty["states"]}
        if self._is_xl:
            given |= {"pooled_prompt_embeds": text["pooled"], "negative_pooled_prompt_embeds": empty["pooled"]}
        scheduler = make_scheduler(settings.scheduler, self.scheduler_config)
        return draw_with(self.pipeline, scheduler, given, seeds, settings, size=self.image_size)

    @property
    def _is_xl(self) -> bool:
        return hasattr(self.pipeline, "text_encoder_2")

    def _added(self, text: Text) -> Text:
        """XL is told the original size, crop corner and target size: what was given is what is wanted."""
        side = self.image_size
        times = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32, device=text["pooled"].device)
        return {"text_embeds": text["pooled"], "time_ids": times.expand(len(text["pooled"]), -1)}


def load_latent_unet(name: str) -> LatentUNet:
    """Load Stable Diffusion 1.x, 2.x or XL from a directory. Raises `MissingError` and `DataError` as `load_model` does."""
    path, card, pipeline = load_pipeline(name)
    config = read_json(path / "scheduler" / "scheduler_config.json")
    return LatentUNet(path=path, card=card, pipeline=pipeline, scheduler_config=config, noise_schedule=DDPMScheduler.from_config(config))
