"""Stable Diffusion 1.5 at a fraction of its width, with random weights: the model that the benchmarks run."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


def build_sd15(out: Path, *, width_divisor: int, image_size: int, layers_per_block: int = 2, seed: int = 0) -> Path:
    """Write Stable Diffusion 1.5 with widths, heads and norm groups divided, and random weights; returns its directory."""
    d = width_divisor
    torch.manual_seed(seed)
    levels = (1, 2, 4, 4)
    tokenizer = _tokenizer()
    attention, plain = "CrossAttn{}Block2D", "{}Block2D"
    unet = UNet2DConditionModel(
        sample_size=image_size // 8,
        block_out_channels=[320 // d * k for k in levels],
        down_block_types=[*[attention.format("Down")] * 3, plain.format("Down")],
        up_block_types=[plain.format("Up"), *[attention.format("Up")] * 3],
        layers_per_block=layers_per_block,
        cross_attention_dim=768 // d,
        attention_head_dim=max(1, 8 // d),  # in diffusers this is the number of heads
        norm_num_groups=32 // d,
    )
    vae = AutoencoderKL(
        sample_size=image_size,
        block_out_channels=[128 // d * k for k in levels],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        norm_num_groups=32 // d,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(_text_config(tokenizer, d)),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(out)
    return out


def _tokenizer() -> CLIPTokenizer:
    """One token per printable character: only the number of tokens, 77, matters here."""
    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def _text_config(tokenizer: CLIPTokenizer, divisor: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768 // divisor,
        intermediate_size=3072 // divisor,
        num_hidden_layers=12,
        num_attention_heads=max(1, 12 // divisor),
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
