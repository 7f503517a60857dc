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

from gda.artifacts import DrawSettings, GeneratorCard
from gda.errors import ConfigError, DataError
from gda.generator.directory import BASE, SUPER_RESOLUTION, UPSCALER, read_card, read_json, resolve
from gda.generator.draw import denoise, noise
from gda.generator.model import Text, make_scheduler
from gda.generator.randomness import Draws
from gda.generator.upscaler import Upscaler, load_upscaler
from gda.generator.variance import check_variance, denoising_losses

TOKENS = 77  # IF pads every prompt to this length and does not mask the padding


@dataclass(kw_only=True)
class Cascade:
    """A loaded cascade in float32 eval mode; `super_resolution` is None for a single-stage one, `upscaler` for one without.

    A single-stage cascade has its base's schedules in the places of the other stage's.
    """

    path: Path
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
    image_noise_schedule: DDPMScheduler  # of the small image that super-resolution is given

    @property
    def stages(self) -> tuple[str, ...]:
        """The networks that are fine-tuned; the upscaler stays as it is."""
        return (BASE,) if self.super_resolution is None else (BASE, SUPER_RESOLUTION)

    @property
    def low_size(self) -> int:
        """Side of the base stage's images, pixels."""
        return int(self.base.config.sample_size)

    @property
    def train_size(self) -> int:
        """Side of the images that the fine-tuned stages learn from and draw, pixels."""
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

        With an upscaler, `upscaler_states` too: its own text encoder is given the prompts as they are.
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
        self, stage: str, network: nn.Module, prepared: torch.Tensor, text: Text, draws: Draws, *, snr_gamma: float | None
    ) -> torch.Tensor:
        """See `denoising_loss`; each stage learns by its own schedule."""
        super_resolution = stage == SUPER_RESOLUTION
        return denoising_loss(
            network,
            self.sr_noise_schedule if super_resolution else self.noise_schedule,
            prepared,
            text["states"],
            draws,
            low_size=self.low_size,
            super_resolution=super_resolution,
            snr_gamma=snr_gamma,
            image_schedule=self.image_noise_schedule,
        )

    @torch.inference_mode()
    def draw(self, text: Text, empty: Text, seeds: Sequence[int], settings: DrawSettings) -> torch.Tensor:
        """uint8 NCHW in [0, 255], one image a seed. Bits depend on the batch's size: draw whole batches to compare.

        Raises `ConfigError` for a noise level that the cascade does not know.
        """
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        images = denoise(
            self.base,
            _scheduler(settings.scheduler, self.scheduler_config, settings.num_inference_steps),
            text["states"],
            empty["states"],
            guidance=settings.guidance_scale,
            size=self.low_size,
            generators=generators,
        )
        if self.super_resolution is not None:
            # What leaves the base stage is an image, so the next stage is given one: clipped, as diffusers passes PIL between them.
            images = self._super_resolve(images.clamp(-1, 1), text["states"], empty["states"], generators, settings)
        drawn = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
        if self.upscaler is None:
            return drawn
        return self.upscaler.draw(drawn, text["upscaler_states"], empty["upscaler_states"], generators, settings)

    def _super_resolve(
        self, small: torch.Tensor, text: torch.Tensor, empty: torch.Tensor, generators: list[torch.Generator], settings: DrawSettings
    ) -> torch.Tensor:
        assert self.super_resolution is not None
        size, known = self.train_size, int(self.image_noise_schedule.config["num_train_timesteps"])
        if settings.sr_noise_level >= known:
            raise ConfigError(f"sample.sr_noise_level: must be below {known} for this cascade, got {settings.sr_noise_level}")
        up = F.interpolate(small, (size, size), mode="bilinear", align_corners=True)
        level = torch.full((len(small),), settings.sr_noise_level, device=up.device)
        up = self.image_noise_schedule.add_noise(up, noise(generators, size).to(up.device), level)
        return denoise(
            self.super_resolution,
            _scheduler(settings.scheduler, self.sr_scheduler_config, settings.sr_num_inference_steps),
            text,
            empty,
            guidance=settings.sr_guidance_scale,
            size=size,
            generators=generators,
            condition=up,
            level=level,
        )


def load_cascade(name: str) -> Cascade:
    """Load a cascade from a directory or `demo://glyphs`.

    Raises `MissingError` for a missing directory, `DataError` for an unknown family, pickled or damaged weights, and for a learned
    variance or an upscaler that we cannot work with.
    """
    transformers_logging.disable_progress_bar()
    path = resolve(name)
    card = read_card(name)
    base, sr, upscaler = path / BASE, path / SUPER_RESOLUTION, path / UPSCALER
    scheduler_config = read_json(base / "scheduler" / "scheduler_config.json")
    sr_scheduler_config, image_config = scheduler_config, scheduler_config
    if sr.is_dir():
        sr_scheduler_config = read_json(sr / "scheduler" / "scheduler_config.json")
        image_config = read_json(sr / "image_noising_scheduler" / "scheduler_config.json")
    try:
        loaded = Cascade(
            path=path,
            card=card,
            tokenizer=AutoTokenizer.from_pretrained(base / "tokenizer"),
            text_encoder=T5EncoderModel.from_pretrained(base / "text_encoder", dtype=torch.float32).eval().requires_grad_(False),
            base=_load_unet(base, scheduler_config),
            super_resolution=_load_unet(sr, sr_scheduler_config) if sr.is_dir() else None,
            upscaler=load_upscaler(upscaler) if upscaler.is_dir() else None,
            scheduler_config=scheduler_config,
            sr_scheduler_config=sr_scheduler_config,
            noise_schedule=DDPMScheduler.from_config(scheduler_config),
            sr_noise_schedule=DDPMScheduler.from_config(sr_scheduler_config),
            image_noise_schedule=DDPMScheduler.from_config(image_config),
        )
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise DataError(f"{path}: cannot be loaded as a pixel cascade ({str(error).splitlines()[0]})") from None
    if loaded.upscaler is not None and loaded.train_size % loaded.upscaler.factor:
        # The pipeline would shrink the images without a word.
        raise DataError(
            f"{upscaler}: takes images of multiples of {loaded.upscaler.factor} pixels, this cascade's have {loaded.train_size}"
        )
    return loaded


def denoising_loss(
    unet: nn.Module,
    schedule: DDPMScheduler,
    images: torch.Tensor,
    text: torch.Tensor,
    draws: Draws,
    *,
    low_size: int,
    super_resolution: bool,
    snr_gamma: float | None = None,
    image_schedule: DDPMScheduler | None = None,
) -> torch.Tensor:
    """Loss of the prediction at uniformly drawn noise levels, float32 [n]: see `denoising_losses`.

    `images` float32 NCHW in [-1, 1] at the size that the stages end at, `text` float32 [n, 77, d]. The super-resolution stage sees the
    small image upsampled as diffusers does and noised at its own uniformly drawn level of `image_schedule` (null means `schedule`).
    """
    steps = int(schedule.config["num_train_timesteps"])
    small = F.interpolate(images, (low_size, low_size), mode="bilinear", antialias=True)
    clean = images if super_resolution else small
    t = draws.integers(steps)
    target_noise = draws.normal(*clean.shape[1:])
    noisy, level = schedule.add_noise(clean, target_noise, t), None
    if super_resolution:
        up = F.interpolate(small, clean.shape[2:], mode="bilinear", align_corners=True)
        by = schedule if image_schedule is None else image_schedule
        level = draws.integers(int(by.config["num_train_timesteps"]))
        noisy = torch.cat([noisy, by.add_noise(up, draws.normal(*up.shape[1:]), level)], dim=1)
    output = unet(noisy, t, encoder_hidden_states=text, class_labels=level).sample
    return denoising_losses(schedule, output, clean, target_noise, t, snr_gamma=snr_gamma)


def _scheduler(name: str, config: dict[str, Any], steps: int) -> Any:
    scheduler = make_scheduler(name, config)
    scheduler.set_timesteps(steps)
    return scheduler


def _load_unet(folder: Path, scheduler_config: dict[str, Any]) -> UNet2DConditionModel:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True, low_cpu_mem_usage=False)
    check_variance(folder, scheduler_config, channels=3, out_channels=unet.config.out_channels)
    return unet.float().eval().requires_grad_(False)
