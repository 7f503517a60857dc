"""The pixel cascade: a text-conditioned base and a super-resolution stage in the layout of DeepFloyd IF.

On disk a cascade is `base/` and `super_resolution/`, each a directory that plain diffusers loads
(`IFPipeline`, `IFSuperResolutionPipeline`); only the base carries tokenizer and text encoder.
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

from gda.artifacts import GeneratorCard
from gda.errors import DataError
from gda.generator.directory import BASE, SUPER_RESOLUTION, read_card, read_json, resolve
from gda.generator.draw import denoise, noise
from gda.generator.model import DrawSettings, Text, denoising_error, make_scheduler

TOKENS = 77  # IF pads every prompt to this length and does not mask the padding


@dataclass(kw_only=True)
class Cascade:
    """A loaded cascade in float32 eval mode; `super_resolution` is None for a single-stage one."""

    path: Path
    card: GeneratorCard
    tokenizer: Any
    text_encoder: T5EncoderModel
    base: UNet2DConditionModel
    super_resolution: UNet2DConditionModel | None
    scheduler_config: dict[str, Any]
    sr_scheduler_config: dict[str, Any]
    noise_schedule: DDPMScheduler

    @property
    def stages(self) -> tuple[str, ...]:
        return (BASE,) if self.super_resolution is None else (BASE, SUPER_RESOLUTION)

    @property
    def low_size(self) -> int:
        """Side of the base stage's images, pixels."""
        return int(self.base.config.sample_size)

    @property
    def image_size(self) -> int:
        """Side of the final images, pixels."""
        return int((self.super_resolution or self.base).config.sample_size)

    def network(self, stage: str) -> UNet2DConditionModel:
        """The network of a stage. Raises `DataError` when the cascade has no such stage."""
        network = self.base if stage == BASE else self.super_resolution
        if network is None:
            raise DataError(f"{self.path}: this cascade has no {stage} stage")
        return network

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> Text:
        """`states` float32 [n, 77, d]; prompts are lowered and stripped exactly as `IFPipeline` does."""
        tokens = self.tokenizer(
            [p.lower().strip() for p in prompts],
            padding="max_length",
            max_length=TOKENS,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        return {"states": self.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0].clone()}

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def loss(
        self, stage: str, network: nn.Module, prepared: torch.Tensor, text: Text, generator: torch.Generator, *, snr_gamma: float | None
    ) -> torch.Tensor:
        """See `denoising_loss`."""
        return denoising_loss(
            network,
            self.noise_schedule,
            prepared,
            text["states"],
            generator,
            low_size=self.low_size,
            super_resolution=stage == SUPER_RESOLUTION,
            snr_gamma=snr_gamma,
        )

    @torch.inference_mode()
    def draw(self, text: Text, empty: Text, seeds: Sequence[int], settings: DrawSettings) -> torch.Tensor:
        """uint8 NCHW in [0, 255], one image a seed. Bits depend on the batch's size: draw whole batches to compare."""
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
        return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

    def _super_resolve(
        self, small: torch.Tensor, text: torch.Tensor, empty: torch.Tensor, generators: list[torch.Generator], settings: DrawSettings
    ) -> torch.Tensor:
        assert self.super_resolution is not None
        size = self.image_size
        up = F.interpolate(small, (size, size), mode="bilinear", align_corners=True)
        level = torch.full((len(small),), settings.sr_noise_level)
        up = self.noise_schedule.add_noise(up, noise(generators, size), level)
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

    Raises `MissingError` for a missing directory, `DataError` for an unknown family, pickled or damaged weights.
    """
    transformers_logging.disable_progress_bar()
    path = resolve(name)
    card = read_card(name)
    base, sr = path / BASE, path / SUPER_RESOLUTION
    try:
        loaded = Cascade(
            path=path,
            card=card,
            tokenizer=AutoTokenizer.from_pretrained(base / "tokenizer"),
            text_encoder=T5EncoderModel.from_pretrained(base / "text_encoder", dtype=torch.float32).eval().requires_grad_(False),
            base=_load_unet(base),
            super_resolution=_load_unet(sr) if sr.is_dir() else None,
            scheduler_config=read_json(base / "scheduler" / "scheduler_config.json"),
            sr_scheduler_config=read_json((sr if sr.is_dir() else base) / "scheduler" / "scheduler_config.json"),
            noise_schedule=DDPMScheduler.from_config(read_json(base / "scheduler" / "scheduler_config.json")),
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be loaded as a pixel cascade ({str(error).splitlines()[0]})") from None
    return loaded


def denoising_loss(
    unet: nn.Module,
    schedule: DDPMScheduler,
    images: torch.Tensor,
    text: torch.Tensor,
    generator: torch.Generator,
    *,
    low_size: int,
    super_resolution: bool,
    snr_gamma: float | None = None,
) -> torch.Tensor:
    """Mean squared error of the prediction at uniformly drawn noise levels; a scalar.

    `images` float32 NCHW in [-1, 1] at the final size, `text` float32 [n, 77, d]. The target follows the schedule's
    `prediction_type`; a predicted variance (the second half of the channels) is not trained: IF is exported with fixed_small.
    The super-resolution stage sees the small image upsampled as diffusers does and noised at its own uniformly drawn level.
    """
    n, steps = images.shape[0], int(schedule.config["num_train_timesteps"])
    small = F.interpolate(images, (low_size, low_size), mode="bilinear", antialias=True)
    clean = images if super_resolution else small
    t = torch.randint(steps, (n,), generator=generator)
    target_noise = torch.randn(clean.shape, generator=generator)
    noisy, level = schedule.add_noise(clean, target_noise, t), None
    if super_resolution:
        up = F.interpolate(small, clean.shape[2:], mode="bilinear", align_corners=True)
        level = torch.randint(steps, (n,), generator=generator)
        noisy = torch.cat([noisy, schedule.add_noise(up, torch.randn(up.shape, generator=generator), level)], dim=1)
    predicted = unet(noisy, t, encoder_hidden_states=text, class_labels=level).sample[:, : clean.shape[1]]
    return denoising_error(schedule, predicted, clean, target_noise, t, snr_gamma=snr_gamma)


def _scheduler(name: str, config: dict[str, Any], steps: int) -> Any:
    scheduler = make_scheduler(name, config)
    scheduler.set_timesteps(steps)
    return scheduler


def _load_unet(folder: Path) -> UNet2DConditionModel:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True, low_cpu_mem_usage=False)
    return unet.float().eval().requires_grad_(False)
