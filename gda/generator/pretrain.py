"""Rebuilds the demo base from rendered glyphs: text encoder, base, super-resolution and glyph features.

    python -m gda.generator.pretrain text     --out DIR
    python -m gda.generator.pretrain base     --out DIR    (needs text)
    python -m gda.generator.pretrain sr       --out DIR    (needs text)
    python -m gda.generator.pretrain features --out DIR

The text encoder is trained first, to say what a caption says (character, style, colours), and then frozen, as IF's T5 is.
"""

import argparse
import copy
import json
import math
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    IFPipeline,
    IFSuperResolutionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from gda.generator.glyphs import CHARACTERS, COLOURS, GlyphBank

BASE_PX = 14
SR_PX = 28
TEXT_WIDTH = 64
TOKENS = 77  # what IFPipeline pads to
PROMPT_DROPOUT = 0.1
_STYLE_WORDS = ("bold", "italic", "sans", "serif", "mono")


def build_tokenizer() -> T5Tokenizer:
    """A character-level T5 tokenizer: any ASCII class name can be said; other characters become the unknown token."""
    letters = [(c, -4.0) for c in map(chr, range(33, 127))]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=TOKENS)


def build_text_encoder(vocab_size: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=vocab_size,
        d_model=TEXT_WIDTH,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def build_unet(px: int, widths: tuple[int, ...], *, super_resolution: bool) -> UNet2DConditionModel:
    levels = len(widths)
    return UNet2DConditionModel(
        sample_size=px,
        in_channels=6 if super_resolution else 3,
        out_channels=6,
        down_block_types=("DownBlock2D",) * (levels - 1) + ("SimpleCrossAttnDownBlock2D",),
        up_block_types=("SimpleCrossAttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=widths,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
        encoder_hid_dim=TEXT_WIDTH,
        encoder_hid_dim_type="text_proj",
        attention_head_dim=16 if super_resolution else 32,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        class_embed_type="timestep" if super_resolution else None,
    )


def noise_schedule() -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", variance_type="fixed_small"
    )


def encode(tokenizer: T5Tokenizer, encoder: T5EncoderModel, prompts: list[str]) -> torch.Tensor:
    tokens = tokenizer(
        [p.lower().strip() for p in prompts], padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    )
    return encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]


def pretrain_text(out: Path, bank: GlyphBank, steps: int) -> None:
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(11)
    tokenizer = build_tokenizer()
    encoder = build_text_encoder(len(tokenizer))
    colours = [*COLOURS, "unsaid"]
    sizes = [len(CHARACTERS), *[2] * len(_STYLE_WORDS), len(colours), len(colours)]
    head = nn.Linear(TEXT_WIDTH, sum(sizes))
    params = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(params, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    bar = tqdm(range(steps), desc="text", mininterval=10)
    for _ in bar:
        batch = bank.draw(64, generator)
        states = encode(tokenizer, encoder, batch.captions)
        logits = head(states.mean(1)).split(sizes, dim=1)
        loss = sum(F.cross_entropy(part, target) for part, target in zip(logits, _caption_targets(batch, colours)))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    print(f"text loss {loss.item():.4f}")
    tokenizer.save_pretrained(out / "text" / "tokenizer")
    encoder.eval().save_pretrained(out / "text" / "text_encoder")


def _caption_targets(batch, colours: list[str]) -> list[torch.Tensor]:
    words = [c.split() for c in batch.captions]
    targets = [batch.characters]
    targets += [torch.tensor([int(style in w) for w in words]) for style in _STYLE_WORDS]
    front = [w[0] if w[0] in COLOURS else "unsaid" for w in words]
    back = [w[-1] if "on" in w else "unsaid" for w in words]
    targets += [torch.tensor([colours.index(c) for c in column]) for column in (front, back)]
    return targets


class CaptionStates:
    """Frozen text states by caption, encoded once each."""

    def __init__(self, text: Path) -> None:
        self.tokenizer = T5Tokenizer.from_pretrained(text / "tokenizer")
        self.encoder = T5EncoderModel.from_pretrained(text / "text_encoder").eval()
        self._known: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> torch.Tensor:
        new = sorted(set(captions) - self._known.keys())
        if new:
            self._known.update(zip(new, encode(self.tokenizer, self.encoder, new)))
        return torch.stack([self._known[c] for c in captions])


def pretrain_unet(out: Path, bank: GlyphBank, steps: int, *, stage: str, lr: float) -> None:
    torch.manual_seed(2)
    super_resolution = stage == "sr"
    generator = torch.Generator().manual_seed(22 if super_resolution else 21)
    states = CaptionStates(out / "text")
    widths = (16, 32, 32) if super_resolution else (32, 64)
    unet = build_unet(SR_PX if super_resolution else BASE_PX, widths, super_resolution=super_resolution)
    ema = copy.deepcopy(unet).requires_grad_(False)
    noise_scheduler = noise_schedule()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * s / steps)))
    )
    bar, average = tqdm(range(steps), desc=stage, mininterval=10), None
    for step in bar:
        batch = bank.draw(64, generator)
        drop = torch.rand(64, generator=generator) < PROMPT_DROPOUT
        text = states(["" if d else c for c, d in zip(batch.captions, drop.tolist())])
        loss = denoising_loss(unet, noise_scheduler, batch.images, text, generator, super_resolution=super_resolution)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        decay = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(unet.parameters()), 1 - decay)
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        bar.set_postfix(loss=f"{average:.4f}", refresh=False)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            export(out, states, ema, stage=stage)
            print(f"{stage} step {step + 1} loss {average:.4f}", flush=True)


def denoising_loss(unet, scheduler, images, text, generator, *, super_resolution: bool) -> torch.Tensor:
    n = images.shape[0]
    clean = images if super_resolution else F.interpolate(images, (BASE_PX, BASE_PX), mode="bilinear", antialias=True)
    t = torch.randint(scheduler.config.num_train_timesteps, (n,), generator=generator)
    noise = torch.randn(clean.shape, generator=generator)
    noisy, level = scheduler.add_noise(clean, noise, t), None
    if super_resolution:
        low = F.interpolate(images, (BASE_PX, BASE_PX), mode="bilinear", antialias=True)
        up = F.interpolate(low, (SR_PX, SR_PX), mode="bilinear", align_corners=True)
        level = torch.randint(scheduler.config.num_train_timesteps, (n,), generator=generator)
        up = scheduler.add_noise(up, torch.randn(up.shape, generator=generator), level)
        noisy = torch.cat([noisy, up], dim=1)
    predicted = unet(noisy, t, encoder_hidden_states=text, class_labels=level).sample[:, :3]
    return F.mse_loss(predicted, scheduler.get_velocity(clean, noise, t))


def export(out: Path, states: CaptionStates, unet: UNet2DConditionModel, *, stage: str) -> None:
    sampler = DPMSolverMultistepScheduler.from_config(noise_schedule().config)
    common = {"safety_checker": None, "feature_extractor": None, "watermarker": None, "requires_safety_checker": False}
    if stage == "base":
        pipe = IFPipeline(tokenizer=states.tokenizer, text_encoder=states.encoder, unet=unet, scheduler=sampler, **common)
        pipe.save_pretrained(out / "base")
    else:
        pipe = IFSuperResolutionPipeline(
            tokenizer=None, text_encoder=None, unet=unet, scheduler=sampler, image_noising_scheduler=noise_schedule(), **common
        )
        pipe.save_pretrained(out / "super_resolution")
    strip_local_paths(out)


def strip_local_paths(root: Path) -> None:
    """Remove `_name_or_path`, which diffusers fills with an absolute path of the machine that saved."""
    for path in root.rglob("*.json"):
        if path.name in {"tokenizer.json"}:
            continue
        content = json.loads(path.read_text())
        if isinstance(content, dict) and content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


class GlyphNet(nn.Module):
    """A small convolutional network over 28 px RGB in [0, 1]; `features` are its 64 pooled activations."""

    def __init__(self, classes: int = len(CHARACTERS)) -> None:
        super().__init__()

        def block(cin: int, cout: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU())

        self.body = nn.Sequential(block(3, 16, 1), block(16, 32, 2), block(32, 48, 2), block(48, 64, 1))
        self.head = nn.Linear(64, classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images).mean((2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


def pretrain_features(out: Path, bank: GlyphBank, steps: int) -> None:
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(33)
    net = GlyphNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    bar = tqdm(range(steps), desc="features", mininterval=10)
    for _ in bar:
        batch = bank.draw(64, generator)
        loss = F.cross_entropy(net(batch.images / 2 + 0.5), batch.characters)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    net.eval()
    with torch.no_grad():
        check = bank.draw(1000, generator)
        accuracy = (net(check.images / 2 + 0.5).argmax(1) == check.characters).float().mean().item()
    print(f"features: accuracy on fresh glyphs {accuracy:.3f}")
    folder = out / "glyph_features"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in net.state_dict().items() if "num_batches" not in k}, folder / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("text", "base", "sr", "features"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    args = parser.parse_args()
    bank = GlyphBank()
    if args.stage == "text":
        pretrain_text(args.out, bank, args.steps or 1500)
    elif args.stage == "features":
        pretrain_features(args.out, bank, args.steps or 1500)
    else:
        steps = args.steps or (4000 if args.stage == "base" else 2000)
        pretrain_unet(args.out, bank, steps, stage=args.stage, lr=args.lr)


if __name__ == "__main__":
    main()
