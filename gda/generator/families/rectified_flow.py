"""The flow transformer: Stable Diffusion 3 and other rectified-flow models in its layout."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gda.artifacts.tuning import SamplingSettings
from gda.errors import ConfigError
from gda.generator.families.denoising import scheduler_of
from gda.generator.families.diffusers_pipeline import PipelineModel, encode_latents, load_pipeline
from gda.generator.families.guidance import doubled
from gda.generator.families.protocol import Start, Text
from gda.generator.weights.directory import read_base_json
from gda.runtime.torch_rng import RandomStreams


@dataclass(kw_only=True)
class FlowTransformer(PipelineModel):
    """A loaded `StableDiffusion3Pipeline`; its transformer is fine-tuned."""

    only = "transformer"

    def encode(self, prompts: list[str]) -> Text:
        """`states` float32 [n, tokens, d] and `pooled` [n, d], from all text encoders in the directory."""
        states, _, pooled, _ = self.pipeline.encode_prompt(prompts, None, None, device=self.device, do_classifier_free_guidance=False)
        return {"states": states, "pooled": pooled}

    def loss(
        self, stage: str, network: nn.Module, prepared: torch.Tensor, text: Text, streams: RandomStreams, *, snr_gamma: float | None
    ) -> torch.Tensor:
        """Squared error of the velocity at logit-normal times (Esser et al. 2024, section 3.1), with the scheduler's shift.

        Raises `ConfigError` for `snr_gamma`: min-SNR weighting does not apply to a rectified flow.
        """
        if snr_gamma is not None:
            raise ConfigError(f"finetune.snr_gamma: must be null for a flow transformer, got {snr_gamma:g}")
        clean = encode_latents(self.pipeline.vae, prepared, streams)
        shift = float(self.scheduler_config.get("shift", 1.0))
        u = torch.sigmoid(streams.normal())
        sigma = (shift * u / (1 + (shift - 1) * u))[:, None, None, None]
        noise = streams.normal(*clean.shape[1:])
        noisy = (1 - sigma) * clean + sigma * noise
        t = sigma.flatten() * int(self.scheduler_config.get("num_train_timesteps", 1000))
        predicted = network(hidden_states=noisy, timestep=t, encoder_hidden_states=text["states"], pooled_projections=text["pooled"]).sample
        return (predicted.float() - (noise - clean)).square().mean((1, 2, 3))

    @torch.inference_mode()
    def sample(self, text: Text, empty: Text, seeds: Sequence[int], settings: SamplingSettings, start: Start | None = None) -> torch.Tensor:
        """Raises `ConfigError` for a scheduler of diffusion models: it would integrate a different equation."""
        if settings.scheduler != "model":
            raise ConfigError(f"sample.scheduler: must be 'model' for a flow transformer, got {settings.scheduler!r}")
        scheduler = scheduler_of(settings, self.scheduler_config, settings.log_variance_mix)
        transformer = self.pipeline.transformer
        conditional = {role: text[role].to(transformer.dtype) for role in ("states", "pooled")}
        both = {role: torch.cat([empty[role], text[role]]).to(transformer.dtype) for role in ("states", "pooled")}

        def predict(x: torch.Tensor, t: torch.Tensor, guided: bool) -> torch.Tensor:
            given, text_input = doubled(x, guided).to(transformer.dtype), both if guided else conditional
            output: torch.Tensor = transformer(
                hidden_states=given,
                timestep=t.expand(len(given)),
                encoder_hidden_states=text_input["states"],
                pooled_projections=text_input["pooled"],
            ).sample
            return output.float()

        return self.sample_latents(predict, scheduler, seeds, settings, start)


def load_flow_transformer(name: str) -> FlowTransformer:
    """Load Stable Diffusion 3 from a directory. Raises `MissingError` and `DataError` as `load_model` does."""
    files, card, pipeline = load_pipeline(name)
    config = read_base_json(files.path("scheduler/scheduler_config.json"))
    return FlowTransformer(path=files.folder, files=files, card=card, pipeline=pipeline, scheduler_config=config)
