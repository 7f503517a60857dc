"""The pixel cascade: a text-conditioned base and a super-resolution stage in the layout of DeepFloyd IF.

On disk a cascade is `base/` and `super_resolution/`, each a directory that plain diffusers loads
(`IFPipeline`, `IFSuperResolutionPipeline`); only the base carries tokenizer and text encoder.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from transformers import AutoTokenizer, T5EncoderModel
from transformers.utils import logging as transformers_logging

from gda.artifacts import GeneratorCard, read_document
from gda.errors import DataError, MissingError
from gda.io.tensors import directory_digest
from gda.recipe import digest_of

DEMO_BASE = "demo://glyphs"
BASE, SUPER_RESOLUTION = "base", "super_resolution"
KNOWN_FAMILIES = ("IFPipeline",)
TOKENS = 77  # IF pads every prompt to this length and does not mask the padding
_DEMO_PATH = Path(__file__).resolve().parent.parent / "assets" / "demo_base"


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
    def low_size(self) -> int:
        """Side of the base stage's images, pixels."""
        return int(self.base.config.sample_size)

    @property
    def image_size(self) -> int:
        """Side of the final images, pixels."""
        return int((self.super_resolution or self.base).config.sample_size)

    def unet(self, stage: str) -> UNet2DConditionModel:
        """The network of a stage. Raises `DataError` when the cascade has no such stage."""
        network = self.base if stage == BASE else self.super_resolution
        if network is None:
            raise DataError(f"{self.path}: this cascade has no {stage} stage")
        return network

    @torch.inference_mode()
    def encode(self, prompts: list[str]) -> torch.Tensor:
        """Text states float32 [n, 77, d]; prompts are lowered and stripped exactly as `IFPipeline` does."""
        tokens = self.tokenizer(
            [p.lower().strip() for p in prompts],
            padding="max_length",
            max_length=TOKENS,
            truncation=True,
            add_special_tokens=True,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0].clone()


def resolve(name: str) -> Path:
    """The directory of a base or generator. Raises `MissingError` when there is none, with what to do about it."""
    path = _DEMO_PATH if name == DEMO_BASE else Path(name)
    if not path.is_dir():
        hint = "" if name == DEMO_BASE else f"; give a directory that holds a pixel cascade, or {DEMO_BASE}"
        raise MissingError(f"{name}: no such generator directory{hint}")
    return path


def read_card(name: str) -> GeneratorCard:
    """`generator.json` when there is one, else a card for plain weights whose licence nobody stated."""
    path = resolve(name)
    _check_weights(path)
    if (path / "generator.json").is_file():
        return read_document(path / "generator.json", GeneratorCard)
    return GeneratorCard(family="pixel_cascade", digest=weights_digest(path))


def weights_digest(path: Path) -> str:
    """Content digest over the tensors and configurations of both stages, not over cards or file framing."""
    stages = [path / s for s in (BASE, SUPER_RESOLUTION) if (path / s).is_dir()]
    return digest_of({s.name: directory_digest(s) for s in stages})


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
            scheduler_config=_read_json(base / "scheduler" / "scheduler_config.json"),
            sr_scheduler_config=_read_json((sr if sr.is_dir() else base) / "scheduler" / "scheduler_config.json"),
            noise_schedule=DDPMScheduler.from_config(_read_json(base / "scheduler" / "scheduler_config.json")),
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be loaded as a pixel cascade ({str(error).splitlines()[0]})") from None
    return loaded


def denoising_loss(
    unet: UNet2DConditionModel,
    schedule: DDPMScheduler,
    images: torch.Tensor,
    text: torch.Tensor,
    generator: torch.Generator,
    *,
    low_size: int,
    super_resolution: bool,
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
    noise = torch.randn(clean.shape, generator=generator)
    noisy, level = schedule.add_noise(clean, noise, t), None
    if super_resolution:
        up = F.interpolate(small, clean.shape[2:], mode="bilinear", align_corners=True)
        level = torch.randint(steps, (n,), generator=generator)
        noisy = torch.cat([noisy, schedule.add_noise(up, torch.randn(up.shape, generator=generator), level)], dim=1)
    predicted = unet(noisy, t, encoder_hidden_states=text, class_labels=level).sample[:, : clean.shape[1]]
    target = schedule.get_velocity(clean, noise, t) if schedule.config["prediction_type"] == "v_prediction" else noise
    return F.mse_loss(predicted, target)


def _load_unet(folder: Path) -> UNet2DConditionModel:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True, low_cpu_mem_usage=False)
    return unet.float().eval().requires_grad_(False)


def _check_weights(path: Path) -> None:
    index = path / BASE / "model_index.json"
    if not index.is_file():
        raise DataError(f"{path}: not a generator: {BASE}/model_index.json is missing")
    family = _read_json(index).get("_class_name")
    if family not in KNOWN_FAMILIES:
        raise DataError(f"{path}: unknown family {family!r}; known: {', '.join(KNOWN_FAMILIES)}")
    for part in (path / BASE / "unet", path / BASE / "text_encoder", path / SUPER_RESOLUTION / "unet"):
        if part.is_dir() and not list(part.glob("*.safetensors")):
            found = ", ".join(sorted(p.name for p in part.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})) or "nothing"
            raise DataError(
                f"{part}: weights must be safetensors, found {found}; convert with pipeline.save_pretrained(safe_serialization=True)"
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    return {k: v for k, v in content.items() if k != "_name_or_path"}
