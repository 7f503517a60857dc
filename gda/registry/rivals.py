"""What a candidate has to beat: real-only training at its strongest, and as long as its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gda.artifacts import ArmResult, Gain, Metrics
from gda.sections import Arm, PromoteConfig

# From the plainest to the strongest; the first two differ from the candidate in its synthetic images alone, if in length.
REAL_ONLY = (Arm.REAL, Arm.REAL_LONG, Arm.REAL_STRONG)
_PLAIN = (Arm.REAL, Arm.REAL_LONG)


@dataclass(frozen=True, kw_only=True)
class Rival:
    """What the candidate has to beat, and by how much it does; without a gain, `problem` says why they cannot be compared."""

    name: str
    gain: Gain | None
    problem: str = "no comparison was recorded"


def real_rivals(metrics: Metrics, config: PromoteConfig) -> tuple[Rival, ...]:
    """The real-only trainings that the declared arm has to beat, the one that counts most first; all of them have to be beaten.

    They are those that `config.rivals` declares, else the strongest by mean validation accuracy - every one that was evaluated, where some
    have no validation accuracy - and, where the declared arm has other images, plain training on real ones that took as many updates.
    """
    others = [arm for arm in REAL_ONLY if arm is not config.arm]
    ran = {arm: result for arm in others if (result := metrics.arms.get(arm)) is not None and result.skipped is None}
    found = {arm: _rival(metrics, config, arm) for arm in config.rivals or _strongest(ran) or (Arm.REAL,)}
    if config.arm in REAL_ONLY:
        return tuple(found.values())
    as_long = _as_long(metrics, config, ran)
    if as_long is not None:
        found.setdefault(as_long, _rival(metrics, config, as_long))
        return tuple(found.values())
    updates = mine.num_updates if (mine := metrics.arms.get(config.arm)) is not None else None
    problem = f"no plain training on real images took {updates} updates; have {Arm.REAL_LONG} among classify.arms"
    return (*found.values(), Rival(name="real images alone for as long", gain=None, problem=problem))


def _strongest(ran: dict[Arm, ArmResult]) -> Sequence[Arm]:
    if any(len(result.val_top1) < max(1, len(result.seeds)) for result in ran.values()):
        return tuple(reversed(ran))
    best = max(ran, key=lambda arm: math.fsum(ran[arm].val_top1) / len(ran[arm].val_top1), default=None)
    return () if best is None else (best,)


def _as_long(metrics: Metrics, config: PromoteConfig, ran: dict[Arm, ArmResult]) -> Arm | None:
    """The plain training on real images that took no fewer updates than the declared arm; of two, the shorter."""
    mine = metrics.arms.get(config.arm)
    needed = mine.num_updates if mine is not None else None
    lengths = {arm: updates for arm in _PLAIN if arm in ran and (updates := ran[arm].num_updates) is not None}
    enough = {arm: updates for arm, updates in lengths.items() if needed is not None and updates >= needed}
    return min(enough, key=lambda arm: enough[arm], default=None)


def _rival(metrics: Metrics, config: PromoteConfig, arm: Arm) -> Rival:
    gain = metrics.gain.get(config.arm) if arm is Arm.REAL else metrics.gain_over_rivals.get(arm)
    return Rival(name=str(arm), gain=gain, problem=f"metrics hold no gain of {config.arm} over {arm}")
