"""The denoising loop of every family: one random generator per image, guided and unguided passes in one batch."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler

from gda.artifacts.tuning import SamplingSettings
from gda.errors import ConfigError, NotFiniteError
from gda.generator.families.guidance import GuidedSteps, guided_prediction
from gda.generator.families.protocol import make_scheduler
from gda.generator.families.variance import learns_variance

# Network output for images [n, ...] at a timestep; when guided, [2n, ...]: without the prompt, then with it.
Predict = Callable[[torch.Tensor, torch.Tensor, bool], torch.Tensor]
_SMALLEST_VARIANCE = 1e-20  # diffusers' clamp, keeps the logarithm finite


def denoise(
    predict: Predict, scheduler: Any, x: torch.Tensor, timesteps: torch.Tensor, guidance: GuidedSteps, generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Denoise float32 `x` over `timesteps`; guided and unguided passes share a batch, and outside the interval there is one pass.

    Only ancestral DDPM uses a learned variance; the other schedulers receive the prediction without it.
    """
    channels, known = x.shape[1], int(scheduler.config["num_train_timesteps"])
    takes_variance = isinstance(scheduler, DDPMScheduler) and learns_variance(scheduler.config)
    # If the scheduler adds noise, each image's noise comes from its own generator.
    extra = {"generator": list(generators)} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for t in timesteps:
        guided = guidance.applies(t, known)
        output = predict(x, t, guided)
        output = guided_prediction(output, channels, guidance.scale) if guided else output
        x = scheduler.step(output if takes_variance else output[:, :channels], t, x, return_dict=False, **extra)[0]
    return x


def scheduler_of(settings: SamplingSettings, config: dict[str, Any], mix: float | None) -> Any:
    """The scheduler that `settings` names, for a stage with `config`; `mix` is that stage's mix of log-variances.

    Raises `ConfigError` for a mix with a scheduler that takes no ancestral DDPM steps.
    """
    scheduler = make_scheduler(settings.scheduler, config)
    if mix is None:
        return scheduler
    if not isinstance(scheduler, DDPMScheduler):
        raise ConfigError(
            f"sample.log_variance_mix: needs the scheduler ddpm, whose steps add noise; got {settings.scheduler!r}"
            + (f", which is {type(scheduler).__name__} here" if settings.scheduler == "model" else "")
        )
    return MixedVariance.of(scheduler, mix)


class MixedVariance(DDPMScheduler):
    """Ancestral steps of log-variance mix * log(beta_t) + (1 - mix) * log(beta~_t), instead of the network's learned variance.

    beta~_t, the true posterior's variance, is the lower bound and beta_t the upper (Nichol & Dhariwal 2021, equation 15, with a
    fixed coefficient).
    """

    @classmethod
    def of(cls, scheduler: DDPMScheduler, mix: float) -> "MixedVariance":
        mixed = cls.from_config({**scheduler.config, "variance_type": "fixed_small"})
        mixed._mix = mix
        return mixed

    def _get_variance(self, t: int, predicted_variance: Any = None, variance_type: str | None = None) -> torch.Tensor:
        before = self.previous_timestep(t)
        kept = self.alphas_cumprod[t]
        kept_before = self.alphas_cumprod[before] if before >= 0 else self.one
        beta = 1 - kept / kept_before
        smallest = ((1 - kept_before) / (1 - kept) * beta).clamp(min=_SMALLEST_VARIANCE)
        largest = beta.clamp(min=_SMALLEST_VARIANCE)
        return torch.exp(self._mix * largest.log() + (1 - self._mix) * smallest.log())


def timesteps_of(scheduler: Any, num_inference_steps: int, strength: float, device: torch.device) -> torch.Tensor:
    """Set the scheduler's timesteps and return the last fraction `strength` in (0, 1] of them, as in diffusers' image-to-image.

    Raises `ConfigError` when none are left.
    """
    scheduler.set_timesteps(num_inference_steps, device=device)
    steps = min(int(num_inference_steps * strength), num_inference_steps)
    if steps < 1:
        raise ConfigError(
            f"sample.strengths: {strength:g} of {num_inference_steps} steps leaves none; raise it or sample.num_inference_steps"
        )
    skipped = (num_inference_steps - steps) * int(getattr(scheduler, "order", 1))
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(skipped)
    return scheduler.timesteps[skipped:]


def first_noise(
    scheduler: Any, shape: tuple[int, int, int], generators: Sequence[torch.Generator], clean: torch.Tensor | None, t: torch.Tensor
) -> torch.Tensor:
    """What denoising starts from, float32 [n, *shape]: pure noise, or `clean` noised to timestep `t`."""
    added = noise(generators, *shape).to(t.device)
    if clean is None:
        return added * getattr(scheduler, "init_noise_sigma", 1.0)
    levels = t.repeat(len(added))
    noised: torch.Tensor = (
        scheduler.scale_noise(clean, levels, added) if hasattr(scheduler, "scale_noise") else scheduler.add_noise(clean, added, levels)
    )
    return noised


def noise(generators: Sequence[torch.Generator], *shape: int) -> torch.Tensor:
    """Standard normal float32 [n, *shape] on the CPU, each image from its own generator."""
    return torch.stack([torch.randn(shape, generator=g) for g in generators])


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """uint8 NCHW on the CPU from floats in [0, 255]. Raises `NotFiniteError` naming the rows that are not finite."""
    finite = images.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        raise NotFiniteError((~finite).nonzero().flatten().tolist(), len(images))
    return images.round().to(torch.uint8).cpu()
