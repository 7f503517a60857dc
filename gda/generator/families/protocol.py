"""The protocol that fine-tuning and sampling use for a text-to-image model of any family."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from gda.artifacts.cards import GeneratorCard
from gda.artifacts.tuning import SamplingSettings
from gda.errors import ConfigError
from gda.generator.weights.layout import Files
from gda.runtime.torch_rng import RandomStreams

Text = dict[str, torch.Tensor]  # states of n prompts from the text encoders: tensors by role, a row per prompt

SCHEDULERS = {
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
}


@dataclass(frozen=True, kw_only=True)
class Start:
    """Images that sampling starts from: uint8 NCHW of the model's size, and how far they are noised, in (0, 1]."""

    images: torch.Tensor
    strength: float

    def as_floats(self, size: int, device: torch.device) -> torch.Tensor:
        """float32 NCHW in [-1, 1] of side `size`."""
        images = self.images.to(device).float() / 127.5 - 1
        if images.shape[-1] == size:
            return images
        return torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)


class Model(Protocol):
    """A loaded text-to-image model, in float32 eval mode on the CPU until it is moved.

    `stages` are the networks that can be fine-tuned, in sampling order. All randomness comes from the streams and seeds that are passed.
    """

    path: Path
    files: Files
    card: GeneratorCard

    @property
    def stages(self) -> tuple[str, ...]: ...

    @property
    def image_size(self) -> int:
        """Side of the final images, pixels."""
        ...

    @property
    def train_size(self) -> int:
        """Side of the training images, pixels: that of the generated images before a frozen upscaler, if any, enlarges them."""
        ...

    def to(self, device: torch.device | str) -> None:
        """Move every part to `device`; inputs must be on it and outputs are on it, except generated images, which are on the CPU."""
        ...

    def network(self, stage: str) -> nn.Module:
        """The network of a stage. Raises `DataError` when the model has no such stage."""
        ...

    def encode(self, prompts: list[str]) -> Text:
        """Text states, a row per prompt; guidance uses those of the empty prompt. Differentiable."""
        ...

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """The input of `loss`, a row per image: takes float32 NCHW in [-1, 1], returns it unchanged or as moments of latents."""
        ...

    def loss(
        self, stage: str, network: nn.Module, prepared: torch.Tensor, text: Text, streams: RandomStreams, *, snr_gamma: float | None
    ) -> torch.Tensor:
        """The training loss of each image at a randomly sampled noise level, float32 [n]. `network` is the stage's, possibly wrapped."""
        ...

    @property
    def sampling_networks(self) -> tuple[nn.Module, ...]:
        """The networks that sampling runs for every image, without text encoders; precision and compilation settings apply to these."""
        ...

    def sample(self, text: Text, empty: Text, seeds: Sequence[int], settings: SamplingSettings, start: Start | None = None) -> torch.Tensor:
        """uint8 NCHW in [0, 255] on the CPU, a row of `text` and a seed per image. Bits depend on the batch size.

        With `start` every image is denoised from its own noised start image. Raises `ConfigError` for unsupported settings,
        `NotFiniteError` naming the rows that came out as NaN.
        """
        ...


def rows(text: Text, index: Sequence[int]) -> Text:
    """The rows of `text` at `index`, in that order, repeats allowed."""
    chosen = torch.tensor(list(index), dtype=torch.int64)
    return {role: states[chosen.to(states.device)] for role, states in text.items()}


def denoising_error(
    schedule: Any, predicted: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, *, snr_gamma: float | None
) -> torch.Tensor:
    """Mean squared error of a diffusion network's prediction, float32 [n]; weighted by `snr_weights` if `snr_gamma` is given."""
    errors = (predicted.float() - prediction_target(schedule, clean, noise, t)).square().mean((1, 2, 3))
    return errors if snr_gamma is None else errors * snr_weights(schedule, t, snr_gamma)


def snr_weights(schedule: Any, t: torch.Tensor, gamma: float) -> torch.Tensor:
    """Weight of each image's squared error, float32 [n]: min-SNR-gamma (Hang et al. 2023, section 3.4).

    The clipped signal-to-noise ratio is divided by the weight that the prediction type already implies: SNR for epsilon, SNR + 1 for v,
    1 for the image itself.
    """
    kept = schedule.alphas_cumprod.to(t.device)[t].double()
    snr = kept / (1 - kept)
    carried = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[schedule.config["prediction_type"]]
    # At zero terminal SNR the limit of min(snr, gamma) / snr is 1.
    return torch.where(carried > 0, snr.clamp(max=gamma) / carried.clamp(min=1e-300), 1.0).float()


def prediction_target(schedule: Any, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The prediction target of the schedule's `prediction_type`. Raises `ConfigError` for an unknown type."""
    kind = schedule.config["prediction_type"]
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return schedule.get_velocity(clean, noise, t)
    if kind == "sample":
        return clean
    raise ConfigError(f"prediction type {kind!r} of the base's scheduler is not known; known: epsilon, v_prediction, sample")


def make_scheduler(name: str, config: dict[str, Any]) -> Any:
    """A scheduler for sampling: `model` is the generator's own, other names are in `SCHEDULERS`."""
    import diffusers

    return getattr(diffusers, str(config["_class_name"]) if name == "model" else SCHEDULERS[name]).from_config(config)
