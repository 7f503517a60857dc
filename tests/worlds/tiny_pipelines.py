"""Tiny diffusers pipelines with random weights, one per latent family, built offline: 16 px images, latents of 8."""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from gda.demo_base.build import build_text_encoder, build_tokenizer
from gda.generator.weights.export import strip_local_paths

IMAGE_SIZE = 16
LATENT_SIZE = 8
LATENT_CHANNELS = 4
TEXT_WIDTH = 32
TIME_IDS_WIDTH = 8
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def build_tiny_pipeline(kind: str, out: Path, *, seed: int = 0) -> Path:
    """Write a pipeline of `kind` (sd1, sd2, sdxl or sd3) that `DiffusionPipeline.from_pretrained(out)` loads; same seed, same weights."""
    if kind not in _BUILDERS:
        raise ValueError(f"unknown kind {kind!r}: expected one of {', '.join(_BUILDERS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _BUILDERS[kind]().save_pretrained(out, safe_serialization=True)
    strip_local_paths(out)
    return out


def build_clip_tokenizer() -> CLIPTokenizer:
    """A character-level CLIP tokenizer: one token per printable ASCII character; it lowercases, and the unknown token is the end token."""
    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def build_clip_config(tokenizer: CLIPTokenizer, *, width: int) -> CLIPTextConfig:
    """A two-layer CLIP text configuration whose special tokens are the tokenizer's; its projection is as wide as it is."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_factor=4.0,  # prompts must differ as clearly as those of a trained encoder do
    )


def build_vae(*, scaling_factor: float, shift_factor: float | None = None, quant_conv: bool = True) -> AutoencoderKL:
    """An autoencoder with one downsampling: 16 px images, latents of 8."""
    return AutoencoderKL(
        sample_size=IMAGE_SIZE,
        latent_channels=LATENT_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=quant_conv,
        use_post_quant_conv=quant_conv,
        force_upcast=False,
    )


def build_latent_unet(*, linear: bool, pooled_width: int | None = None) -> UNet2DConditionModel:
    """A two-level UNet with cross-attention at its lower level; with `pooled_width`, SDXL's text and size conditioning too."""
    added_width = None if pooled_width is None else pooled_width + 6 * TIME_IDS_WIDTH
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
        use_linear_projection=linear,
        addition_embed_type=None if pooled_width is None else "text_time",
        addition_time_embed_dim=None if pooled_width is None else TIME_IDS_WIDTH,
        projection_class_embeddings_input_dim=added_width,
    )


def build_transformer() -> SD3Transformer2DModel:
    """A two-block SD3 transformer for the text widths of the sd3 pipeline."""
    return SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_projection_dim=32,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        pos_embed_max_size=LATENT_SIZE,
    )


def _stable_diffusion(prediction_type: str, *, linear: bool) -> StableDiffusionPipeline:
    tokenizer = build_clip_tokenizer()
    scheduler = DDIMScheduler(**_BETAS, steps_offset=1, clip_sample=False, set_alpha_to_one=False, prediction_type=prediction_type)
    return StableDiffusionPipeline(
        vae=build_vae(scaling_factor=0.18215),
        text_encoder=CLIPTextModel(build_clip_config(tokenizer, width=TEXT_WIDTH)),
        tokenizer=tokenizer,
        unet=build_latent_unet(linear=linear),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd1() -> StableDiffusionPipeline:
    return _stable_diffusion("epsilon", linear=False)


def _sd2() -> StableDiffusionPipeline:
    return _stable_diffusion("v_prediction", linear=True)


def _sdxl() -> StableDiffusionXLPipeline:
    tokenizer = build_clip_tokenizer()
    config = build_clip_config(tokenizer, width=TEXT_WIDTH // 2)
    return StableDiffusionXLPipeline(
        vae=build_vae(scaling_factor=0.13025),
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        tokenizer_2=build_clip_tokenizer(),
        unet=build_latent_unet(linear=True, pooled_width=config.projection_dim),
        scheduler=EulerDiscreteScheduler(**_BETAS, steps_offset=1, timestep_spacing="leading", interpolation_type="linear"),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def _sd3() -> StableDiffusion3Pipeline:
    tokenizer, t5_tokenizer = build_clip_tokenizer(), build_tokenizer()
    config = build_clip_config(tokenizer, width=TEXT_WIDTH // 2)
    return StableDiffusion3Pipeline(
        transformer=build_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=build_vae(scaling_factor=1.5305, shift_factor=0.0609, quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer_2=build_clip_tokenizer(),
        text_encoder_3=build_text_encoder(len(t5_tokenizer), width=TEXT_WIDTH),
        tokenizer_3=t5_tokenizer,
    )


_BUILDERS: dict[str, Callable[[], DiffusionPipeline]] = {"sd1": _sd1, "sd2": _sd2, "sdxl": _sdxl, "sd3": _sd3}
