"""A tiny latent x4 upscaler with random weights, built offline, and a cascade that it follows."""

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionUpscalePipeline, UNet2DConditionModel
from relisted import recard
from tiny_pipelines import build_clip_config, build_clip_tokenizer
from transformers import CLIPTextModel

from gda.generator.weights.export import strip_local_paths

FACTOR = 4
_TEXT_WIDTH = 32
_LATENT_CHANNELS = 4


def add_tiny_upscaler(cascade: Path, out: Path, *, seed: int = 0) -> Path:
    """A copy of `cascade` at `out` that an upscaler follows; same seed, same weights."""
    shutil.copytree(cascade, out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        build_tiny_upscaler().save_pretrained(out / "upscaler", safe_serialization=True)
    strip_local_paths(out / "upscaler")
    recard(out)
    return out


def build_tiny_upscaler() -> StableDiffusionUpscalePipeline:
    """A pipeline in the layout of stable-diffusion-x4-upscaler: v-prediction, the noise level as a class of the UNet."""
    tokenizer = build_clip_tokenizer()
    return StableDiffusionUpscalePipeline(
        vae=_build_vae(),
        text_encoder=CLIPTextModel(build_clip_config(tokenizer, width=_TEXT_WIDTH)),
        tokenizer=tokenizer,
        unet=_build_unet(),
        low_res_scheduler=DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2"),
        scheduler=DDIMScheduler(
            beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear", clip_sample=False, prediction_type="v_prediction"
        ),
    )


def _build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        latent_channels=_LATENT_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=0.08333,
        force_upcast=False,
    )


def _build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=_LATENT_CHANNELS + 3,  # latents next to the small image
        out_channels=_LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=_TEXT_WIDTH,
        attention_head_dim=2,
        use_linear_projection=True,
        num_class_embeds=1000,
    )
