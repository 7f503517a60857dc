"""Builds untrained pixel cascades from configurations, in IF's layout: for the demo base and for tiny generators in tests."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, IFPipeline, IFSuperResolutionPipeline, UNet2DConditionModel
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from gda.artifacts.cards import GeneratorCard
from gda.artifacts.document import dump_document
from gda.generator.families.cascade import TOKENS
from gda.generator.weights.directory import BASE, SUPER_RESOLUTION, weights_digest
from gda.generator.weights.export import strip_local_paths
from gda.io.atomic import write_bytes

_NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "watermarker": None, "requires_safety_checker": False}


def build_tokenizer() -> T5Tokenizer:
    """A character-level T5 tokenizer: encodes any ASCII class name; other characters become the unknown token."""
    letters = [(c, -4.0) for c in map(chr, range(33, 127))]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=TOKENS)


def build_text_encoder(vocab_size: int, *, width: int = 64) -> T5EncoderModel:
    """A two-layer T5 encoder of the given width (a multiple of 16)."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocab_size,
            d_model=width,
            d_kv=16,
            d_ff=2 * width,
            num_layers=2,
            num_heads=width // 16,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )


def build_unet(size: int, widths: tuple[int, ...], *, text_width: int = 64, super_resolution: bool = False) -> UNet2DConditionModel:
    """A text-conditioned UNet for RGB images of `size` pixels; cross-attention at its lowest resolution.

    `IFPipeline` needs twice as many output as input channels: the second half is a predicted variance, unused if it is fixed.
    """
    levels = len(widths)
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=6 if super_resolution else 3,
        out_channels=6,
        down_block_types=("DownBlock2D",) * (levels - 1) + ("SimpleCrossAttnDownBlock2D",),
        up_block_types=("SimpleCrossAttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=widths,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=text_width,
        encoder_hid_dim=text_width,
        encoder_hid_dim_type="text_proj",
        attention_head_dim=16 if super_resolution else 32,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        class_embed_type="timestep" if super_resolution else None,
    )


def noise_schedule() -> DDPMScheduler:
    """Cosine schedule, v-prediction, fixed small variance, 1,000 levels."""
    return DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", variance_type="fixed_small"
    )


def sampler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ on `noise_schedule`.

    The clipped lambda keeps the first step finite on the cosine schedule; thresholding at 1 keeps every predicted image in [-1, 1],
    as pixel-space models need (Saharia et al. 2022, section 2.3).
    """
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        variance_type="fixed_small",
        lambda_min_clipped=-5.1,
        thresholding=True,
        sample_max_value=1.0,
    )


def learned_range_sampler() -> DDPMScheduler:
    """Ancestral sampling with a learned variance and epsilon prediction, as in the released DeepFloyd IF."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="epsilon",
        variance_type="learned_range",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.5,
    )


def save_base(
    out: Path, tokenizer: T5Tokenizer, text_encoder: T5EncoderModel, unet: UNet2DConditionModel, scheduler: Any | None = None
) -> None:
    """Write `base/` as an `IFPipeline`; the scheduler is `sampler` by default."""
    pipe = IFPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder, unet=unet, scheduler=sampler() if scheduler is None else scheduler, **_NO_CHECKER
    )
    pipe.save_pretrained(out / BASE)
    strip_local_paths(out / BASE)


def save_super_resolution(out: Path, unet: UNet2DConditionModel, scheduler: Any | None = None) -> None:
    """Write `super_resolution/` as an `IFSuperResolutionPipeline` without a text encoder, because it shares the base's."""
    pipe = IFSuperResolutionPipeline(
        tokenizer=None,
        text_encoder=None,
        unet=unet,
        scheduler=sampler() if scheduler is None else scheduler,
        image_noising_scheduler=noise_schedule(),
        **_NO_CHECKER,
    )
    pipe.save_pretrained(out / SUPER_RESOLUTION)
    strip_local_paths(out / SUPER_RESOLUTION)


def write_card(out: Path, *, licence: str) -> GeneratorCard:
    """Write the `generator.json` of a base."""
    card = GeneratorCard(family="pixel_cascade", digest=weights_digest(out), licence=licence)
    write_bytes(out / "generator.json", dump_document(card))
    return card


def build_tiny_cascade(out: Path, *, low_size: int = 8, size: int = 16, seed: int = 0, learned_variance: bool = False) -> Path:
    """A cascade with random weights that samples in milliseconds; for tests and for trying a pipeline."""
    scheduler = learned_range_sampler() if learned_variance else sampler()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer()
        encoder = build_text_encoder(len(tokenizer), width=32)
        save_base(out, tokenizer, encoder, build_unet(low_size, (32,), text_width=32), scheduler)
        save_super_resolution(out, build_unet(size, (16, 32), text_width=32, super_resolution=True), scheduler)
    write_card(out, licence="Apache-2.0")
    return out
