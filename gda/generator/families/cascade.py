"""The pixel cascade: a text-conditioned base and a super-resolution stage in the layout of DeepFloyd IF.

On disk a cascade is `base/` and `super_resolution/`, each a directory that plain diffusers loads
(`IFPipeline`, `IFSuperResolutionPipeline`); only the base carries tokenizer and text encoder. A frozen `upscaler/` may follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import AutoTokenizer, T5EncoderModel
from transformers.utils import logging as transformers_logging

from gda.artifacts.cards import GeneratorCard
from gda.artifacts.tuning import SamplingSettings
from gda.errors import ConfigError, DataError
from gda.generator.families.denoising import denoise, first_noise, noise, scheduler_of, timesteps_of, to_uint8
from gda.generator.families.guidance import GuidedSteps, doubled
from gda.generator.families.protocol import Start, Text
from gda.generator.families.upscaler import Upscaler, load_upscaler
from gda.generator.families.variance import check_variance, denoising_losses
from gda.generator.weights.config_types import check_types
from gda.generator.weights.directory import BASE, SUPER_RESOLUTION, UPSCALER, files_of, read_base_json, read_card
from gda.generator.weights.layout import Files
from gda.generator.weights.loading import check_vocabularies, load_network, loading
from gda.runtime.torch_rng import RandomStreams, generators_of

_States = tuple[torch.Tensor, torch.Tensor]  # of the prompts, of the empty prompt

TOKENS = 77  # IF pads every prompt to this length and does not mask the padding


@dataclass(kw_only=True)
class Cascade:
    """A loaded cascade in float32 eval mode; `super_resolution` and `upscaler` are None where the cascade has none.

    In a single-stage cascade the base's schedules also fill the fields of the missing stage.
    """

    path: Path
    files: Files
    card: GeneratorCard
    tokenizer: Any
    text_encoder: T5EncoderModel
    base: UNet2DConditionModel
    super_resolution: UNet2DConditionModel | None
    upscaler: Upscaler | None
    scheduler_config: dict[str, Any]
    sr_scheduler_config: dict[str, Any]
    noise_schedule: DDPMScheduler
    sr_noise_schedule: DDPMScheduler
    image_noise_schedule: DDPMScheduler  # noises the small image that conditions super-resolution

    @property
    def stages(self) -> tuple[str, ...]:
        """The networks that can be fine-tuned; the upscaler is frozen."""
        return (BASE,) if self.super_resolution is None else (BASE, SUPER_RESOLUTION)

    @property
    def low_size(self) -> int:
        """Side of the base stage's images, pixels."""
        return int(self.base.config.sample_size)

    @property
    def train_size(self) -> int:
        """Side of the images that the fine-tuned stages learn from and generate, pixels."""
        return int((self.super_resolution or self.base).config.sample_size)

    @property
    def image_size(self) -> int:
        """Side of the final images, pixels."""
        return self.train_size * (1 if self.upscaler is None else self.upscaler.factor)

    def to(self, device: torch.device | str) -> None:
        for part in (self.text_encoder, self.base, self.super_resolution, self.upscaler):
            if part is not None:
                part.to(device)

    def network(self, stage: str) -> UNet2DConditionModel:
        """The network of a stage. Raises `DataError` when the cascade has no such stage."""
        network = self.base if stage == BASE else self.super_resolution
        if network is None:
            raise DataError(f"{self.path}: this cascade has no {stage} stage")
        return network

    def encode(self, prompts: list[str]) -> Text:
        """`states` float32 [n, 77, d]; prompts are lowered and stripped exactly as `IFPipeline` does.

        With an upscaler, `upscaler_states` too: its own text encoder receives the prompts unchanged.
        """
        tokens = self.tokenizer(
            [p.lower().strip() for p in prompts],
            padding="max_length",
            max_length=TOKENS,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        ids, mask = tokens.input_ids.to(self.text_encoder.device), tokens.attention_mask.to(self.text_encoder.device)
        text = {"states": self.text_encoder(ids, attention_mask=mask)[0]}
        return text if self.upscaler is None else text | {"upscaler_states": self.upscaler.encode(prompts)}

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def loss(
        self, stage: str, network: nn.Module, prepared: torch.Tensor, text: Text, streams: RandomStreams, *, snr_gamma: float | None
    ) -> torch.Tensor:
        """See `denoising_loss`; each stage uses its own noise schedule."""
        super_resolution = stage == SUPER_RESOLUTION
        return denoising_loss(
            network,
            self.sr_noise_schedule if super_resolution else self.noise_schedule,
            prepared,
            text["states"],
            streams,
            low_size=self.low_size,
            super_resolution=super_resolution,
            snr_gamma=snr_gamma,
            image_schedule=self.image_noise_schedule,
        )

    @property
    def sampling_networks(self) -> tuple[nn.Module, ...]:
        parts = [self.base, self.super_resolution]
        parts += [] if self.upscaler is None else [self.upscaler.pipeline.unet, self.upscaler.pipeline.vae]
        return tuple(part for part in parts if part is not None)

    @torch.inference_mode()
    def sample(self, text: Text, empty: Text, seeds: Sequence[int], settings: SamplingSettings, start: Start | None = None) -> torch.Tensor:
        """uint8 NCHW in [0, 255], one image per seed. Bits depend on the batch size: compare only batches of equal size.

        With `start` both stages begin from its images, noised at the same strength. Raises `ConfigError` for a noise level or a mix of
        variances that the cascade does not support, `NotFiniteError` as `to_uint8` does.
        """
        generators = generators_of(seeds)
        states = (text["states"], empty["states"])
        low = _StageSampling(self.base, scheduler_of(settings, self.scheduler_config, settings.log_variance_mix), self.low_size)
        guidance = GuidedSteps(scale=settings.guidance_scale, interval=settings.guidance_interval)
        images = low.run(states, settings.num_inference_steps, guidance, generators, start)
        if self.super_resolution is not None:
            # Clipped to the range of images, because diffusers passes PIL images between the stages.
            images = self._super_resolve(images.clamp(-1, 1), states, generators, settings, start)
        images_low = to_uint8((images.clamp(-1, 1) + 1) * 127.5)
        if self.upscaler is None:
            return images_low
        return self.upscaler.sample(images_low, text["upscaler_states"], empty["upscaler_states"], generators, settings)

    def _super_resolve(
        self, small: torch.Tensor, states: _States, generators: list[torch.Generator], settings: SamplingSettings, start: Start | None
    ) -> torch.Tensor:
        assert self.super_resolution is not None
        size, known = self.train_size, int(self.image_noise_schedule.config["num_train_timesteps"])
        if settings.sr_noise_level >= known:
            raise ConfigError(f"sample.sr_noise_level: must be below {known} for this cascade, got {settings.sr_noise_level}")
        up = F.interpolate(small, (size, size), mode="bilinear", align_corners=True)
        level = torch.full((len(small),), settings.sr_noise_level, device=up.device)
        up = self.image_noise_schedule.add_noise(up, noise(generators, 3, size, size).to(up.device), level)
        scheduler = scheduler_of(settings, self.sr_scheduler_config, settings.sr_log_variance_mix)
        sampling = _StageSampling(self.super_resolution, scheduler, size, condition=up, level=level)
        guidance = GuidedSteps(scale=settings.sr_guidance_scale)
        return sampling.run(states, settings.sr_num_inference_steps, guidance, generators, start)


@dataclass
class _StageSampling:
    """Samples one stage: its network, scheduler and side, and for super-resolution the small image and its noise level."""

    unet: UNet2DConditionModel
    scheduler: Any
    size: int
    condition: torch.Tensor | None = None
    level: torch.Tensor | None = None

    def run(
        self, states: _States, num_inference_steps: int, guidance: GuidedSteps, generators: list[torch.Generator], start: Start | None
    ) -> torch.Tensor:
        """float32 NCHW of side `size`, not yet clipped."""
        device = states[0].device
        strength = 1.0 if start is None else start.strength
        timesteps = timesteps_of(self.scheduler, num_inference_steps, strength, device)
        clean = None if start is None else start.as_floats(self.size, device)
        x = first_noise(self.scheduler, (3, self.size, self.size), generators, clean, timesteps[:1])
        conditional, both = states[0].to(self.unet.dtype), torch.cat([states[1], states[0]]).to(self.unet.dtype)

        def predict(x: torch.Tensor, t: torch.Tensor, guided: bool) -> torch.Tensor:
            given = x if self.condition is None else torch.cat([x, self.condition], dim=1)
            given = self.scheduler.scale_model_input(doubled(given, guided), t).to(self.unet.dtype)
            levels = None if self.level is None else doubled(self.level, guided)
            output: torch.Tensor = self.unet(given, t, encoder_hidden_states=both if guided else conditional, class_labels=levels).sample
            return output.float()

        return denoise(predict, self.scheduler, x, timesteps, guidance, generators)


def load_cascade(name: str) -> Cascade:
    """Load a cascade from a directory or `demo://glyphs`.

    Raises `MissingError` for a missing directory, `DataError` for an unknown family, pickled or damaged weights, and an unsupported
    learned variance or upscaler.
    """
    transformers_logging.disable_progress_bar()
    files, card = files_of(name), read_card(name)
    with files.laid_out() as folder, loading(files, "a pixel cascade"):
        check_types(files)
        loaded = _load_parts(files, card, folder)
    components = {"text_encoder": loaded.text_encoder, "tokenizer": loaded.tokenizer}
    check_vocabularies(files, components)
    upscaler = files.folder / UPSCALER
    if loaded.upscaler is not None and loaded.train_size % loaded.upscaler.factor:
        # The pipeline would shrink the images without a warning.
        raise DataError(
            f"{upscaler}: takes images of multiples of {loaded.upscaler.factor} pixels, this cascade's have {loaded.train_size}"
        )
    return loaded


def _load_parts(files: Files, card: GeneratorCard, folder: Path) -> Cascade:
    """The cascade in `folder`, which holds the used files under their names without variant."""
    base, sr, upscaler = folder / BASE, folder / SUPER_RESOLUTION, folder / UPSCALER
    scheduler_config = read_base_json(base / "scheduler" / "scheduler_config.json")
    sr_scheduler_config, image_config = scheduler_config, scheduler_config
    if sr.is_dir():
        sr_scheduler_config = read_base_json(sr / "scheduler" / "scheduler_config.json")
        image_config = read_base_json(sr / "image_noising_scheduler" / "scheduler_config.json")
    encoder = load_network(base / "text_encoder", "transformers", "T5EncoderModel")
    return Cascade(
        path=files.folder,
        files=files,
        card=card,
        tokenizer=AutoTokenizer.from_pretrained(base / "tokenizer", trust_remote_code=False, local_files_only=True),
        text_encoder=encoder.eval().requires_grad_(False),
        base=_load_unet(base, scheduler_config),
        super_resolution=_load_unet(sr, sr_scheduler_config) if sr.is_dir() else None,
        upscaler=load_upscaler(upscaler) if upscaler.is_dir() else None,
        scheduler_config=scheduler_config,
        sr_scheduler_config=sr_scheduler_config,
        noise_schedule=DDPMScheduler.from_config(scheduler_config),
        sr_noise_schedule=DDPMScheduler.from_config(sr_scheduler_config),
        image_noise_schedule=DDPMScheduler.from_config(image_config),
    )


def denoising_loss(
    unet: nn.Module,
    schedule: DDPMScheduler,
    images: torch.Tensor,
    text: torch.Tensor,
    streams: RandomStreams,
    *,
    low_size: int,
    super_resolution: bool,
    snr_gamma: float | None = None,
    image_schedule: DDPMScheduler | None = None,
) -> torch.Tensor:
    """Loss of the prediction at uniformly sampled noise levels, float32 [n]: see `denoising_losses`.

    `images` float32 NCHW in [-1, 1] of side `train_size`, `text` float32 [n, 77, d]. The super-resolution stage also receives the small
    image, upsampled as in diffusers and noised at its own uniformly sampled level of `image_schedule` (null means `schedule`).
    """
    steps = int(schedule.config["num_train_timesteps"])
    small = F.interpolate(images, (low_size, low_size), mode="bilinear", antialias=True)
    clean = images if super_resolution else small
    t = streams.integers(steps)
    target_noise = streams.normal(*clean.shape[1:])
    noisy, level = schedule.add_noise(clean, target_noise, t), None
    if super_resolution:
        up = F.interpolate(small, clean.shape[2:], mode="bilinear", align_corners=True)
        by = schedule if image_schedule is None else image_schedule
        level = streams.integers(int(by.config["num_train_timesteps"]))
        noisy = torch.cat([noisy, by.add_noise(up, streams.normal(*up.shape[1:]), level)], dim=1)
    output = unet(noisy, t, encoder_hidden_states=text, class_labels=level).sample
    return denoising_losses(schedule, output, clean, target_noise, t, snr_gamma=snr_gamma)


def _load_unet(folder: Path, scheduler_config: dict[str, Any]) -> UNet2DConditionModel:
    unet: UNet2DConditionModel = load_network(folder / "unet", "diffusers", "UNet2DConditionModel")
    check_variance(folder, scheduler_config, channels=3, out_channels=unet.config.out_channels)
    return unet.eval().requires_grad_(False)
