"""The latent UNet: Stable Diffusion 1.x, 2.x and XL, with epsilon or v prediction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import nn

from gda.artifacts.tuning import SamplingSettings
from gda.generator.families.denoising import scheduler_of
from gda.generator.families.diffusers_pipeline import PipelineModel, encode_latents, load_pipeline
from gda.generator.families.guidance import doubled
from gda.generator.families.protocol import Start, Text, denoising_error
from gda.generator.weights.directory import read_base_json
from gda.runtime.torch_rng import RandomStreams


@dataclass(kw_only=True)
class LatentUNet(PipelineModel):
    """A loaded `StableDiffusionPipeline` or `StableDiffusionXLPipeline`; its UNet is fine-tuned."""

    noise_schedule: Any
    only = "unet"

    def encode(self, prompts: list[str]) -> Text:
        """`states` float32 [n, tokens, d], and for XL `pooled` [n, d]; XL's empty prompt is zeros if its pipeline is configured so."""
        if not self._is_xl:
            return {"states": self.pipeline.encode_prompt(prompts, self.device, 1, do_classifier_free_guidance=False)[0]}
        states, _, pooled, _ = self.pipeline.encode_prompt(prompts, device=self.device, do_classifier_free_guidance=False)
        if self.pipeline.config.force_zeros_for_empty_prompt:
            present = torch.tensor([bool(prompt) for prompt in prompts], device=self.device)
            states, pooled = states * present[:, None, None], pooled * present[:, None]
        return {"states": states, "pooled": pooled}

    def loss(
        self, stage: str, network: nn.Module, prepared: torch.Tensor, text: Text, streams: RandomStreams, *, snr_gamma: float | None
    ) -> torch.Tensor:
        """Squared error of the prediction at uniformly sampled noise levels (Ho et al. 2020, equation 14; Salimans & Ho 2022 for v)."""
        clean = encode_latents(self.pipeline.vae, prepared, streams)
        t = streams.integers(int(self.noise_schedule.config["num_train_timesteps"]))
        noise = streams.normal(*clean.shape[1:])
        noisy = self.noise_schedule.add_noise(clean, noise, t)
        extra = {"added_cond_kwargs": self._added(text)} if self._is_xl else {}
        predicted = network(noisy, t, encoder_hidden_states=text["states"], **extra).sample
        return denoising_error(self.noise_schedule, predicted, clean, noise, t, snr_gamma=snr_gamma)

    @torch.inference_mode()
    def sample(self, text: Text, empty: Text, seeds: Sequence[int], settings: SamplingSettings, start: Start | None = None) -> torch.Tensor:
        """Raises `ConfigError` as `scheduler_of` and `timesteps_of` do."""
        scheduler = scheduler_of(settings, self.scheduler_config, settings.log_variance_mix)
        unet = self.pipeline.unet
        present, both = text["states"].to(unet.dtype), torch.cat([empty["states"], text["states"]]).to(unet.dtype)
        added = self._added_both(text, empty, unet.dtype) if self._is_xl else {}

        def predict(x: torch.Tensor, t: torch.Tensor, guided: bool) -> torch.Tensor:
            given = scheduler.scale_model_input(doubled(x, guided), t).to(unet.dtype)
            extra = {"added_cond_kwargs": added[guided]} if self._is_xl else {}
            output: torch.Tensor = unet(given, t, encoder_hidden_states=both if guided else present, **extra).sample
            return output.float()

        return self.sample_latents(predict, scheduler, seeds, settings, start)

    def _added_both(self, text: Text, empty: Text, dtype: torch.dtype) -> dict[bool, Text]:
        """XL's conditioning in addition to the prompt, keyed by whether the pass is guided."""
        guided = self._added({"pooled": torch.cat([empty["pooled"], text["pooled"]])})
        return {kind: {role: x.to(dtype) for role, x in present.items()} for kind, present in ((False, self._added(text)), (True, guided))}

    @property
    def _is_xl(self) -> bool:
        return hasattr(self.pipeline, "text_encoder_2")

    def _added(self, text: Text) -> Text:
        """XL's size conditioning: original size, crop corner and target size, here an uncropped image of the model's own size."""
        side = self.image_size
        times = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32, device=text["pooled"].device)
        return {"text_embeds": text["pooled"], "time_ids": times.expand(len(text["pooled"]), -1)}


def load_latent_unet(name: str) -> LatentUNet:
    """Load Stable Diffusion 1.x, 2.x or XL from a directory. Raises `MissingError` and `DataError` as `load_model` does."""
    files, card, pipeline = load_pipeline(name)
    config = read_base_json(files.path("scheduler/scheduler_config.json"))
    schedule = DDPMScheduler.from_config(config)
    return LatentUNet(path=files.folder, files=files, card=card, pipeline=pipeline, scheduler_config=config, noise_schedule=schedule)
