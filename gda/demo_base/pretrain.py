"""Rebuilds the demo base from rendered glyphs: text encoder, base, super-resolution and glyph features.

    python -m gda.demo_base.pretrain faces    --out FACES  (the handwriting faces, with npm)
    python -m gda.demo_base.pretrain text     --out DIR --faces FACES
    python -m gda.demo_base.pretrain base     --out DIR --faces FACES  (needs text)
    python -m gda.demo_base.pretrain sr       --out DIR --faces FACES  (needs text)
    python -m gda.demo_base.pretrain features --out DIR
    python -m gda.demo_base.pretrain card     --out DIR    (when base and sr are there)
    python -m gda.demo_base.pretrain digits   --out DIGITS --faces FACES  (rendered digits, to be compared with the base's)

The text encoder is trained first, to say what a caption says (character, style, colours), and then frozen, as IF's T5 is. With
`--start BASE`, base and sr go on from a finished base, whose text encoder stays as it is: text is not needed then.
"""

import argparse
import copy
import math
import os
from pathlib import Path

from gda.runtime.torch_rng import RandomStreams

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm
from transformers import T5EncoderModel, T5Tokenizer

from gda.demo_base.build import (
    build_text_encoder,
    build_tokenizer,
    build_unet,
    noise_schedule,
    save_base,
    save_super_resolution,
    write_card,
)
from gda.demo_base.faces import HANDWRITING, fetch_faces
from gda.demo_base.glyphs import CHARACTERS, COLOURS, GlyphBank, GlyphBatch
from gda.fidelity.extractors.glyph import GlyphNet
from gda.generator.families.cascade import TOKENS, denoising_loss
from gda.generator.weights.directory import BASE, SUPER_RESOLUTION
from gda.generator.weights.loading import load_network

LOW_SIZE, _SIZE = 14, 28  # pixels
TEXT_WIDTH = 64
PROMPT_DROPOUT = 0.1
LICENCE = "Apache-2.0"
_STYLE_WORDS = ("bold", "italic", "sans", "serif", "mono", "handwritten")


def encode_prompts(tokenizer: T5Tokenizer, encoder: T5EncoderModel, prompts: list[str]) -> torch.Tensor:
    """Text states float32 [n, 77, d], with gradients."""
    tokens = tokenizer(prompts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
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
        batch = bank.render(64, generator)
        states = encode_prompts(tokenizer, encoder, batch.captions)
        logits = head(states.mean(1)).split(sizes, dim=1)
        loss = torch.stack([F.cross_entropy(p, t) for p, t in zip(logits, _caption_targets(batch, colours), strict=True)]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    print(f"text loss {loss.item():.4f}")
    tokenizer.save_pretrained(out / "text" / "tokenizer")
    encoder.eval().save_pretrained(out / "text" / "text_encoder")


def _caption_targets(batch: GlyphBatch, colours: list[str]) -> list[torch.Tensor]:
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
        self.tokenizer = T5Tokenizer.from_pretrained(text / "tokenizer", trust_remote_code=False)
        self.encoder = T5EncoderModel.from_pretrained(text / "text_encoder", use_safetensors=True).eval()
        self._known: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> torch.Tensor:
        new = sorted(set(captions) - self._known.keys())
        if new:
            self._known.update(zip(new, encode_prompts(self.tokenizer, self.encoder, new), strict=True))
        return torch.stack([self._known[c] for c in captions])


def pretrain_unet(out: Path, bank: GlyphBank, steps: int, *, stage: str, lr: float, start: Path | None = None) -> None:
    """Train a stage on `steps` batches and save its averaged weights into `out` every 500; from `start`, a base's folder, if given."""
    torch.manual_seed(2)
    super_resolution = stage == "sr"
    generator = torch.Generator().manual_seed(22 if super_resolution else 21)
    states = CaptionStates(out / "text" if start is None else start / BASE)
    widths = (16, 32, 32) if super_resolution else (32, 64)
    unet = build_unet(_SIZE if super_resolution else LOW_SIZE, widths, super_resolution=super_resolution)
    if start is not None:
        unet = load_network(start / (SUPER_RESOLUTION if super_resolution else BASE) / "unet", "diffusers", "UNet2DConditionModel").train()
    ema = copy.deepcopy(unet).requires_grad_(False)
    schedule = noise_schedule()
    optimizer = torch.optim.AdamW(unet.parameters(), lr=lr, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * s / steps)))
    )
    bar, average = tqdm(range(steps), desc=stage, mininterval=10), None
    for step in bar:
        batch = bank.render(64, generator)
        drop = torch.rand(64, generator=generator) < PROMPT_DROPOUT
        text = states(["" if d else c for c, d in zip(batch.captions, drop.tolist(), strict=True)])
        streams = RandomStreams(torch.randint(2**62, (64,), generator=generator).tolist())
        loss = denoising_loss(unet, schedule, batch.images, text, streams, low_size=LOW_SIZE, super_resolution=super_resolution).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        rate.step()
        decay = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(unet.parameters()), 1 - decay)
        average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
        bar.set_postfix(loss=f"{average:.4f}", refresh=False)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            if super_resolution:
                save_super_resolution(out, ema)
            else:
                save_base(out, states.tokenizer, states.encoder, ema)
            print(f"{stage} step {step + 1} loss {average:.4f}", flush=True)


def pretrain_features(out: Path, bank: GlyphBank, steps: int) -> None:
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(33)
    net = GlyphNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    bar = tqdm(range(steps), desc="features", mininterval=10)
    for _ in bar:
        batch = bank.render(64, generator)
        loss = F.cross_entropy(net(batch.images / 2 + 0.5), batch.characters)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    net.eval()
    with torch.no_grad():
        check = bank.render(1000, generator)
        accuracy = (net(check.images / 2 + 0.5).argmax(1) == check.characters).float().mean().item()
    print(f"features: accuracy on fresh glyphs {accuracy:.3f}")
    folder = out / "glyph_features"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in net.state_dict().items() if "num_batches" not in k}, folder / "model.safetensors")


def write_digits(out: Path, bank: GlyphBank, per_class: int) -> None:
    """Write `per_class` of the bank's digits per class, white on black, as PNG files of 28 px in class folders 0 to 9."""
    generator = torch.Generator().manual_seed(44)
    counts = [0] * 10
    while min(counts) < per_class:
        batch = bank.render(64, generator)
        for image, caption, character in zip(batch.images, batch.captions, batch.characters.tolist(), strict=True):
            if character < 10 and counts[character] < per_class and " on " not in caption:
                path = out / str(character) / f"{counts[character]:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.add(1).mul(127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(path)
                counts[character] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("faces", "text", "base", "sr", "features", "card", "digits"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--faces", type=Path, help="folder of the handwriting faces; without it only matplotlib's faces are used")
    parser.add_argument("--start", type=Path, metavar="BASE", help="base and sr: go on from this base")
    parser.add_argument("--per-class", type=int, default=100, help="digits: how many of each")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    args = parser.parse_args()
    if args.stage == "card":
        print(write_card(args.out, licence=LICENCE).digest)
        return
    if args.stage == "faces":
        print(f"fetched {fetch_faces(args.out)} of {len(HANDWRITING)} faces into {args.out}")
        return
    bank = GlyphBank(args.faces)
    if args.stage == "digits":
        write_digits(args.out, bank, args.per_class)
    elif args.stage == "text":
        pretrain_text(args.out, bank, args.steps or 1500)
    elif args.stage == "features":
        pretrain_features(args.out, bank, args.steps or 1500)
    else:
        steps = args.steps or (4000 if args.stage == "base" else 2000)
        pretrain_unet(args.out, bank, steps, stage=args.stage, lr=args.lr, start=args.start)


if __name__ == "__main__":
    main()
