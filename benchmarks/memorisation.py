"""Dose-response of the copy check: a tiny generator trained far too long, on pictures repeated 1, 10 and 100 times.

All training sets have 600 rows and all generators the same number of steps, so that only the repetition differs: the rows are 600, 60 or 6
digits. The output is the share of sampled images that the check flags, and how far the sampled images are from the digit that they were
flagged for. Run by hand: `python benchmarks/memorisation.py` (minutes on two cores); `benchmarks/README.md` has the figures.
"""

import argparse
import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from gda.data.checks.perceptual import distinct
from gda.data.sources.demo import load_digits
from gda.fidelity.extractors import get_extractor
from gda.gate.checks.copies import CopyCheck, aligned_space, check_copies, feature_space
from gda.gate.checks.leaks import sketches_of

SIDE = 16
ROWS = 600
DOSES = (1, 10, 100)
LEVELS = 40  # noise levels that an image passes through


class Denoiser(nn.Module):
    """Predicts a clean picture [n, 256] in [-1, 1] from a noisy one and its noise level in [0, 1]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        pixels = SIDE * SIDE
        self.layers = nn.Sequential(
            nn.Linear(pixels + 16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.out = nn.Linear(width, pixels)

    def forward(self, noisy: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        waves = level[:, None] * torch.arange(1, 9) * torch.pi
        return self.out(self.layers(torch.cat([noisy, waves.sin(), waves.cos()], 1)))


def signal_and_noise(level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Share of signal and of noise at a level: the cosine schedule."""
    return torch.cos(level * torch.pi / 2), torch.sin(level * torch.pi / 2)


def train(images: torch.Tensor, *, updates: int, width: int, seed: int) -> Denoiser:
    """Fit a denoiser to rows of pictures uint8 [n, 3, 16, 16], without any augmentation."""
    stream = torch.Generator().manual_seed(seed)
    clean = images[:, 0].flatten(1).float() / 127.5 - 1.0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Denoiser(width)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(updates):
        picked = clean[torch.randint(len(clean), (128,), generator=stream)]
        level = torch.rand(len(picked), generator=stream)
        signal, noise = signal_and_noise(level)
        noisy = signal[:, None] * picked + noise[:, None] * torch.randn(picked.shape, generator=stream)
        loss = F.mse_loss(model(noisy, level), picked)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.inference_mode()
def sample(model: Denoiser, count: int, *, seed: int) -> torch.Tensor:
    """uint8 [count, 3, 16, 16] by DDIM steps from noise."""
    state = torch.randn(count, SIDE * SIDE, generator=torch.Generator().manual_seed(seed))
    levels = torch.linspace(1, 0, LEVELS + 1)
    for level, lower in itertools.pairwise(levels):
        clean = model(state, level.expand(count)).clamp(-1, 1)
        signal, noise = signal_and_noise(level)
        guessed = (state - signal * clean) / noise
        signal, noise = signal_and_noise(lower)
        state = signal * clean + noise * guessed
    pixels = ((state.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.view(count, 1, SIDE, SIDE).expand(-1, 3, -1, -1).contiguous()


def pictures() -> torch.Tensor:
    """The demo's digits in a fixed random order, uint8 [5000, 3, 16, 16]."""
    images, _ = load_digits()
    order = np.random.default_rng(0).permutation(len(images))
    whole = torch.from_numpy(images[order]).permute(0, 3, 1, 2).float()
    return F.interpolate(whole, (SIDE, SIDE), mode="bilinear", antialias=True).round().to(torch.uint8)


def check(sampled: torch.Tensor, holdout: torch.Tensor, rows: torch.Tensor) -> CopyCheck:
    """The copy check as in validation: against the training pictures, each once."""
    kept = rows[distinct(sketches_of(rows))]
    glyph = get_extractor("glyph").features
    parts = {"synthetic": sampled, "holdout": holdout, "train": kept}
    features = feature_space("features", **{name: glyph(images) for name, images in parts.items()})
    return check_copies([aligned_space(**parts), features], quantile=0.01)


def flagged_by_dose(
    *, rows: int, doses: tuple[int, ...], updates: int, width: int, count: int, held: int, seed: int
) -> dict[int, tuple[float, float]]:
    """Share of sampled and of held-out pictures that are flagged, by how often each training picture is repeated."""
    source, found = pictures(), {}
    holdout = source[-held:]
    for dose in doses:
        repeated = source[: rows // dose].repeat(dose, 1, 1, 1)
        model = train(repeated, updates=updates, width=width, seed=seed)
        result = check(sample(model, count, seed=seed + 1), holdout, repeated)
        found[dose] = (float(result.flagged.mean()), float(result.holdout_flagged.mean()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, nargs="+", default=[250, 1000])
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    print(f"| Updates | {' | '.join(f'{ROWS // dose} digits x {dose}' for dose in DOSES)} |")
    print(f"|---|{'---|' * len(DOSES)}")
    for updates in given.updates:
        runs = [
            flagged_by_dose(rows=ROWS, doses=DOSES, updates=updates, width=384, count=500, held=500, seed=seed)
            for seed in range(given.seeds)
        ]
        cells = [f"{min(run[d][0] for run in runs):.1%} to {max(run[d][0] for run in runs):.1%}" for d in DOSES]
        print(f"| {updates} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
