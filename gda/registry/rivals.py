"""What a candidate has to beat: real-only training at its strongest, and as long as its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gda.artifacts.evaluation import ArmResult, Gain, Metrics
from gda.config.arm import Arm, in_order
from gda.config.sections import PromoteConfig
from gda.stats.arms import real_alone_as_long


@dataclass(frozen=True, kw_only=True)
class Rival:
    """What the candidate has to beat, and by how much it does; without a gain, `problem` says why they cannot be compared."""

    name: str
    gain: Gain | None
    problem: str = "no comparison was recorded"


def real_rivals(metrics: Metrics, config: PromoteConfig) -> tuple[Rival, ...]:
    """The real-only trainings that the declared arm has to beat, the one that counts most first; all of them have to be beaten.

    They are those that `config.rivals` declares, else the strongest by mean validation accuracy (every one that was evaluated, if some
    have no validation accuracy) and, where the declared arm has other images, training on real ones alone by the same settings
    and with as many steps.
    """
    others = [arm for arm in in_order(metrics.arms) if arm.data.name == Arm.REAL and arm != config.arm]  # the plainest first
    ran = {arm: result for arm in others if (result := metrics.arms[arm]).skipped is None}
    found = {arm: _rival(metrics, config, arm) for arm in config.rivals or _strongest(ran) or (Arm.REAL,)}
    if config.arm.data.name == Arm.REAL:
        return tuple(found.values())
    as_long = real_alone_as_long(config.arm, metrics.arms)
    if as_long is not None:
        found.setdefault(as_long, _rival(metrics, config, as_long))
        return tuple(found.values())
    steps = own.num_train_steps if (own := metrics.arms.get(config.arm)) is not None else None
    needed = Arm.REAL.with_training(config.arm.training or "long")
    kind = "plain" if config.arm.plain else config.arm.training
    length = f"took {steps} steps" if steps is not None else f"can be compared with {config.arm}, which did not run"
    problem = f"no {kind} training on real images {length}; add {needed} to classify.arms"
    return (*found.values(), Rival(name="real images alone for as long", gain=None, problem=problem))


def _strongest(ran: dict[Arm, ArmResult]) -> Sequence[Arm]:
    if any(len(result.val_top1) < max(1, len(result.seeds)) for result in ran.values()):
        return tuple(reversed(ran))
    best = max(ran, key=lambda arm: math.fsum(ran[arm].val_top1) / len(ran[arm].val_top1), default=None)
    return () if best is None else (best,)


def _rival(metrics: Metrics, config: PromoteConfig, arm: Arm) -> Rival:
    gain = metrics.gain.get(config.arm) if arm is Arm.REAL else metrics.gain_over_rivals.get(arm)
    return Rival(name=str(arm), gain=gain, problem=f"metrics hold no gain of {config.arm} over {arm}")
