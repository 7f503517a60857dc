"""The cost of a plan in floating-point operations, counted before sampling from the configurations alone."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from gda.artifacts.tuning import SamplingSettings
from gda.generator.families.denoising import timesteps_of
from gda.generator.families.guidance import GuidedSteps
from gda.generator.families.protocol import make_scheduler
from gda.generator.planning.networks import Network, networks_of
from gda.generator.planning.plan import ImagePlan
from gda.generator.weights.directory import SUPER_RESOLUTION, UPSCALER, read_base_json, resolve


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """Cost of one network: FLOPs per pass of one image, and the mean number of passes per image; a guided step is two passes.

    `shapes` is 2 for a denoiser that has guided and unguided steps, whose batches differ in size.
    """

    network: Network
    flops: float
    nfe: float
    guided: bool = False
    shapes: int = 1

    @property
    def flops_per_image(self) -> float:
        return self.flops * self.nfe


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of `num_images`, by network in sampling order."""

    parts: tuple[PartCost, ...]
    num_images: int

    @property
    def flops_per_image(self) -> float:
        """The mean over the plan."""
        return sum(part.flops_per_image for part in self.parts)

    @property
    def total_flops(self) -> float:
        return self.flops_per_image * self.num_images


def estimate_cost(generator: str, settings: SamplingSettings, plan: ImagePlan) -> Cost:
    """Count what sampling `plan` costs with `generator` (a directory, hub id or `demo://glyphs`); loads no weights.

    Text encoders, which run once per prompt, and low-rank adapters are not counted. Raises `MissingError` for a missing directory,
    `DataError` for a damaged one, `ConfigError` for a strength that leaves no steps.
    """
    strengths = Counter(image.strength for shard in plan.shards for batch in shard.batches for image in batch)
    from_images = any(batch[0].source for shard in plan.shards for batch in shard.batches)
    networks = networks_of(resolve(generator), from_images=from_images)
    return Cost(parts=tuple(_cost(network, settings, strengths) for network in networks), num_images=plan.num_images)


def count_flops(network: Network) -> float:
    """FLOPs of one pass of one image; a multiplication and an addition are two. Raises `DataError` as `Network.build_meta` does."""
    built = network.build_meta()
    with FlopCounterMode(display=False) as counter:
        network.run(built, 1)
    return float(counter.get_total_flops())


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """Denoising steps of a stage, with two passes (guided) and with one."""

    guided: int
    single: int

    @property
    def nfe(self) -> int:
        return 2 * self.guided + self.single


def count_steps(scheduler: Any, steps: int, *, guidance: float, interval: tuple[float, float], strength: float = 1.0) -> StepCounts:
    """Count the steps of `scheduler` with and without guidance; `guidance` 1 is off, `interval` is in fractions of the training timesteps.

    Multi-step schedulers reuse earlier predictions, so a step is one pass; second-order ones list extra timesteps.
    With `strength`, steps are skipped as in diffusers' image-to-image. Raises `ConfigError` if no steps are left.
    """
    timesteps = timesteps_of(scheduler, steps, strength, torch.device("cpu"))
    rule, known = GuidedSteps(scale=guidance, interval=interval), int(scheduler.config["num_train_timesteps"])
    guided = sum(rule.applies(t, known) for t in timesteps)
    return StepCounts(guided=guided, single=len(timesteps) - guided)


def _cost(network: Network, settings: SamplingSettings, strengths: Mapping[float, int]) -> PartCost:
    flops = count_flops(network)
    if network.role != "denoise":
        return PartCost(network=network, flops=flops, nfe=1.0)
    assert network.scheduler is not None
    is_first = network.name not in (SUPER_RESOLUTION, UPSCALER)
    steps = settings.num_inference_steps if is_first else settings.sr_num_inference_steps
    config = read_base_json(network.scheduler / "scheduler_config.json")
    counted = {
        # `strength` does not affect the upscaler: it always enlarges a finished image.
        strength: count_steps(
            make_scheduler(settings.scheduler, config),
            steps,
            guidance=settings.guidance_scale if is_first else settings.sr_guidance_scale,
            interval=settings.guidance_interval if is_first else (0.0, 1.0),
            strength=1.0 if network.name == UPSCALER else strength,
        )
        for strength in strengths
    }
    total = sum(strengths.values())
    guided, single = any(found.guided for found in counted.values()), any(found.single for found in counted.values())
    return PartCost(
        network=network,
        flops=flops,
        nfe=sum(counted[strength].nfe * count for strength, count in strengths.items()) / total,
        guided=guided,
        shapes=guided + single,
    )
