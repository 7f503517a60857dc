"""The promotion gate: may this candidate replace the champion? A pure function of recorded numbers that fails closed."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gda.artifacts import Gain, Metrics, Verdict
from gda.interruption import require_not_told
from gda.sections import Arm, PromoteConfig

SYNTHETIC_ARMS = frozenset({Arm.SYNTHETIC, Arm.MIXED, Arm.TARGETED, Arm.LAST_LAYER})
# zero_shot and img2img bypass the verdict by design, and real is what the others are measured against.
CONTROL_ARMS = frozenset({Arm.ZERO_SHOT, Arm.IMG2IMG, Arm.REAL})
REAL_ONLY = "real"


@dataclass(frozen=True, kw_only=True)
class Rival:
    """What the candidate has to beat, and by how much it does; without a gain, `problem` says why they cannot be compared."""

    name: str
    gain: Gain | None
    problem: str = "no comparison was recorded"


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """Outcome of the gate; `reasons` is empty exactly when `promoted`."""

    promoted: bool
    reasons: tuple[str, ...]
    rival: str


def real_rival(metrics: Metrics, config: PromoteConfig) -> Rival:
    """Real-only training, the rival while there is no champion."""
    return Rival(name=REAL_ONLY, gain=metrics.gain.get(config.arm), problem=f"metrics hold no gain of {config.arm} over real")


def decide(metrics: Metrics, verdict: Verdict | None, config: PromoteConfig, *, licence: str, rival: Rival | None = None) -> GateResult:
    """Whether the candidate of the declared arm may become champion, and every reason why not.

    `rival` defaults to real-only training; `licence` is that of the generator's base. Anything empty, missing, NaN or contradictory
    is a reason against, and so is an error while judging.
    """
    name = rival.name if rival is not None else REAL_ONLY
    try:
        rival = rival or real_rival(metrics, config)
        reasons = (
            *_arm_reasons(metrics, config),
            *_gain_reasons(rival, config),
            *_verdict_reasons(metrics, verdict, config),
            *_licence_reasons(licence, config),
        )
    except Exception as error:  # whatever is wrong with the numbers, the gate stays shut and says so
        require_not_told()
        reasons = (f"the gate could not be computed ({type(error).__name__}: {error})",)
    return GateResult(promoted=not reasons, reasons=reasons, rival=name)


def _arm_reasons(metrics: Metrics, config: PromoteConfig) -> Iterator[str]:
    if config.arm in CONTROL_ARMS:
        yield f"{config.arm} is a control arm and is never promoted"
    result, candidate = metrics.arms.get(config.arm), metrics.candidate
    if result is None:
        yield f"the declared arm {config.arm} was not evaluated"
    elif result.skipped is not None:
        yield f"the declared arm {config.arm} did not run"
    if candidate is None:
        yield "there is no candidate"
    elif candidate.arm != config.arm:
        yield f"the candidate is of arm {candidate.arm}, but {config.arm} was declared"
    elif not candidate.digest or not candidate.path:
        yield "the candidate has no digest or no path"
    if not metrics.num_test > 0 or not metrics.test_digest:
        yield "there are no test images"


def _gain_reasons(rival: Rival, config: PromoteConfig) -> Iterator[str]:
    gain = rival.gain
    if gain is None:
        yield f"not compared with {rival.name}: {rival.problem}"
        return
    numbers = (gain.mean, *gain.ci95, gain.p_value, *gain.differences)
    if not all(math.isfinite(number) for number in numbers) or not 0.0 <= gain.p_value <= 1.0 or len(gain.differences) != gain.seeds:
        yield f"the gain over {rival.name} is not a valid measurement"
        return
    low, high = gain.ci95
    if gain.seeds < config.min_seeds:
        yield f"only {gain.seeds} paired seeds; at least {config.min_seeds} are needed"
    if not 0.0 < low <= gain.mean <= high:
        yield f"the gain over {rival.name}, {_points(gain.mean)} (interval {_points(low)} to {_points(high)}), is not clearly above zero"
    if not gain.p_value <= config.alpha:
        yield f"p = {gain.p_value:.3g} over paired seeds, above {config.alpha:g}"
    yield from _harm_reasons(gain)


def _harm_reasons(gain: Gain) -> Iterator[str]:
    if gain.smallest_visible_harm is None or not math.isfinite(gain.smallest_visible_harm):
        yield "harm to single classes was not measured"
    for harm in gain.harmed_classes:
        yield f"class {harm.class_name} is significantly worse: {_points(harm.change)} (adjusted p = {harm.p_value:.2g})"


def _verdict_reasons(metrics: Metrics, verdict: Verdict | None, config: PromoteConfig) -> Iterator[str]:
    if config.arm not in SYNTHETIC_ARMS:
        return
    if verdict is None:
        yield "there is no verdict on the synthetic set"
        return
    if verdict.passed is not True or verdict.reasons:
        yield "the synthetic set was refused: " + ("; ".join(verdict.reasons) or "no reason recorded")
    elif not verdict.metrics:
        yield "the verdict on the synthetic set holds no measurements"
    if not verdict.synthetic_digest or verdict.synthetic_digest != metrics.synthetic_digest:
        yield "the verdict is about another synthetic set than the one that was evaluated"
    if not verdict.real_digest or verdict.real_digest != metrics.snapshot_digest:
        yield "the verdict is about another real snapshot than the one that was evaluated"
    if metrics.verdict_passed is not True and verdict.passed is True:
        yield "the evaluation ran without a passed verdict"


def _licence_reasons(licence: str, config: PromoteConfig) -> Iterator[str]:
    if config.arm in SYNTHETIC_ARMS and licence.strip().lower() not in {name.lower() for name in config.allowed_licences}:
        accepted = ", ".join(config.allowed_licences) or "none"
        yield f"the licence of the generator's base is {licence or 'missing'!r}; promote.allowed_licences accepts {accepted}"


def _points(share: float) -> str:
    return f"{100 * share:+.2f} points"
