"""Classifier-free guidance: its scale, and the interval of noise levels in which it applies."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class GuidedSteps:
    """Classifier-free guidance (Ho & Salimans 2022): the scale w (1 is off) and the interval of noise levels at which it applies.

    `interval` is in fractions of the training timesteps, from 0 (an image) to 1 (noise); after Kynkäänniemi et al. 2024, who state it
    in noise levels.
    """

    scale: float
    interval: tuple[float, float] = (0.0, 1.0)

    def applies(self, t: torch.Tensor, num_train_timesteps: int) -> bool:
        """Whether the step at timestep `t` is guided."""
        low, high = self.interval
        return self.scale != 1.0 and low <= float(t) / num_train_timesteps <= high


def doubled(x: torch.Tensor, guided: bool) -> torch.Tensor:
    """Every row twice for a guided step: once without the prompt, then with it."""
    return torch.cat([x, x]) if guided else x


def guided_prediction(output: torch.Tensor, channels: int, scale: float) -> torch.Tensor:
    """The guided prediction, then the variance of the pass with the prompt, to which guidance does not apply, as in `IFPipeline`."""
    without, with_prompt = output.chunk(2)
    predicted, variance = with_prompt[:, :channels], with_prompt[:, channels:]
    without = without[:, :channels]
    return torch.cat([without + scale * (predicted - without), variance], dim=1)
