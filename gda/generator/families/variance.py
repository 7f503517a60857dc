"""Learned variance: networks whose second half of channels predicts the variance of an ancestral step (Nichol & Dhariwal 2021).

Per channel and pixel the network gives v, and the step's log-variance is (1 - w) log(beta~_t) + w log(beta_t) with w = (v + 1) / 2:
equation 15, with v in [-1, 1] as the released weights and diffusers have it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gda.errors import DataError
from gda.generator.families.protocol import denoising_error, prediction_target
from gda.generator.weights.schedule_checks import FIXED_VARIANCES, LEARNED_RANGE

_BOUND_WEIGHT = 0.001  # lambda of equation 16
_HALF_LEVEL = 1 / 255  # half the distance of two grey levels where images span [-1, 1]
_SMALLEST_PROBABILITY = 1e-12  # lower clamp, as in the authors' code


def learns_variance(config: Mapping[str, Any]) -> bool:
    """Whether, by a scheduler's configuration, the network predicts the variance of a step."""
    return config.get("variance_type") == LEARNED_RANGE


def check_variance(folder: Path, config: Mapping[str, Any], *, channels: int, out_channels: int) -> None:
    """Raises `DataError` for an unknown kind of variance, or a learned one that the network has no channels for.

    `learned` is refused: diffusers reads the network's output as a variance, its authors as a log-variance.
    """
    kind = config.get("variance_type")
    known = (*FIXED_VARIANCES, LEARNED_RANGE)
    if kind is not None and kind not in known:
        raise DataError(f"{folder}: variance_type {kind!r} of the scheduler is not supported; supported: {', '.join(known)}")
    if learns_variance(config) and out_channels != 2 * channels:
        raise DataError(
            f"{folder}: variance_type {LEARNED_RANGE!r} needs a network of {2 * channels} output channels, this one has {out_channels}"
        )


def denoising_losses(
    schedule: Any, output: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, *, snr_gamma: float | None
) -> torch.Tensor:
    """Training loss of each image, float32 [n], from a network's output [n, c or 2c, h, w] for images [n, c, h, w].

    With a fixed variance this is the squared error of the first c channels. With a learned one it is L_simple + lambda L_vlb (equation 16);
    T times one term, at a uniformly sampled t, estimates L_vlb. `snr_gamma` weights only L_simple.
    """
    simple = denoising_error(schedule, output[:, : clean.shape[1]], clean, noise, t, snr_gamma=snr_gamma)
    if not learns_variance(schedule.config):
        return simple
    num_steps = int(schedule.config["num_train_timesteps"])
    return simple + _BOUND_WEIGHT * num_steps * bound_term(schedule, output, clean, noise, t)


def bound_term(schedule: Any, output: torch.Tensor, clean: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The term of the variational bound at `t`, bits per dimension, float32 [n] (equations 4 to 7).

    It is KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), at t = 0 the negative log-likelihood of grey levels. The predicted mean
    is detached: the term trains only the variance (section 3.1).
    """
    predicted, v = output.float().split(clean.shape[1], dim=1)
    step = _reverse_steps(schedule, t)
    spread = (v + 1) / 2 * step.log_range
    offset = step.offset_scale * (predicted.detach() - prediction_target(schedule, clean, noise, t))
    divergence = 0.5 * (spread + torch.expm1(-spread) + offset.square() * torch.exp(-spread))
    shrink = torch.exp(-0.5 * spread)
    likelihood = _log_probability(clean, offset * shrink, step.half_level * shrink)
    nats = torch.where((t == 0)[:, None, None, None], -likelihood, divergence)
    return nats.mean((1, 2, 3)) / math.log(2)


@dataclass(frozen=True, kw_only=True)
class _ReverseSteps:
    """Constants of each image's step for the bound, float32 [n, 1, 1, 1], in units of the true posterior's deviation."""

    offset_scale: torch.Tensor  # (prediction - target) times this is the true mean less the predicted one
    half_level: torch.Tensor  # half a grey level
    log_range: torch.Tensor  # log(beta_t / beta~_t), from the smallest variance to the largest


def _reverse_steps(schedule: Any, t: torch.Tensor) -> _ReverseSteps:
    betas = schedule.betas.to(t.device, torch.float64)
    kept = torch.cumprod(1 - betas, dim=0)
    kept_before = torch.cat([torch.ones_like(kept[:1]), kept[:-1]])
    variance = betas * (1 - kept_before) / (1 - kept)
    # The true posterior of the first step has zero variance: use the second step's, as in the authors' code.
    variance = torch.cat([variance[1:2], variance[1:]])
    # Ho et al. 2020, equation 7: the derivative of the posterior's mean by x_0, and of x_0 by the prediction, negated.
    by_clean = kept_before.sqrt() * betas / (1 - kept)
    by_prediction = {
        "epsilon": ((1 - kept) / kept).sqrt(),
        "v_prediction": (1 - kept).sqrt(),
        "sample": -torch.ones_like(kept),
    }[schedule.config["prediction_type"]]
    return _ReverseSteps(
        offset_scale=_each(by_clean * by_prediction / variance.sqrt(), t),
        half_level=_each(_HALF_LEVEL / variance.sqrt(), t),
        log_range=_each((betas / variance).log(), t),
    )


def _each(table: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return table[t].float()[:, None, None, None]


def _log_probability(clean: torch.Tensor, offset: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
    """Log-probability of each pixel's grey level (Ho et al. 2020, equation 13); the outermost levels reach to infinity.

    `offset` is the pixel less the mean and `half` is half a level, both in deviations.
    """
    # Both ends in the lower tail, where differences of the distribution function stay precise.
    distance = offset.abs()
    between = _cumulative(half - distance) - _cumulative(-half - distance)
    black, white = _cumulative(offset + half), _cumulative(half - offset)
    probability = torch.where(clean < -0.999, black, torch.where(clean > 0.999, white, between))
    return probability.clamp(min=_SMALLEST_PROBABILITY).log()


def _cumulative(x: torch.Tensor) -> torch.Tensor:
    """Distribution function of the standard normal; torch's own `ndtr` rounds the lower tail to zero in float32."""
    return 0.5 * torch.erfc(-math.sqrt(0.5) * x)
