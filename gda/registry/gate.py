"""The promotion gate: may this candidate replace the champion? A pure function of recorded numbers that fails closed."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gda.artifacts.evaluation import Gain, Metrics
from gda.artifacts.verdict import Verdict
from gda.config.arm import Arm
from gda.config.sections import PromoteConfig
from gda.registry.rivals import Rival, real_rivals
from gda.runtime.interruption import require_not_stopped
from gda.stats.gain import interval_of, signs_of
from gda.stats.multiplicity.looks import fewest_flips, level_of_look


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """Outcome of the gate; `reasons` is empty exactly when `promoted`."""

    promoted: bool
    reasons: tuple[str, ...]
    rival: str


def decide(metrics: Metrics, verdict: Verdict | None, config: PromoteConfig, *, licence: str, champion: Rival | None = None) -> GateResult:
    """Whether the candidate of the declared arm may become champion, and every reason why not.

    It has to beat the real-only trainings of `real_rivals` and, where there is one, the `champion`; each of them clearly, at the level
    that this look at the test split has (`gda.stats.multiplicity.looks`). `licence` is that of the generator's base. Anything empty,
    missing, NaN or contradictory is a reason against, and so is an error in the computation.
    """
    name = champion.name if champion is not None else str(Arm.REAL)
    try:
        rivals = (*([champion] if champion is not None else []), *real_rivals(metrics, config))
        name = rivals[0].name
        reasons = (
            *_arm_reasons(metrics, config),
            *(reason for rival in rivals for reason in _gain_reasons(rival, metrics, config)),
            *_verdict_reasons(metrics, verdict, config),
            *_licence_reasons(licence, config),
        )
    except Exception as error:  # whatever is wrong with the numbers, the gate stays shut and gives the reason
        require_not_stopped()
        reasons = (f"the gate could not be computed ({type(error).__name__}: {error})",)
    return GateResult(promoted=not reasons, reasons=reasons, rival=name)


def _arm_reasons(metrics: Metrics, config: PromoteConfig) -> Iterator[str]:
    # Arms with generated images that need no verdict serve for comparison, and real is the baseline.
    if config.arm == Arm.REAL or (config.arm.data.synthetic and not config.arm.data.gated):
        yield f"{config.arm} is a control arm and is never promoted"
    result, candidate = metrics.arms.get(config.arm), metrics.candidate
    if result is None:
        yield f"the declared arm {config.arm} was not evaluated"
    elif result.skipped is not None:
        yield f"the declared arm {config.arm} did not run"
    elif not len(result.seeds) >= config.min_seeds:
        yield f"only {len(result.seeds)} seeds; at least {config.min_seeds} are needed"
    elif config.arm not in metrics.gain:
        yield f"metrics hold no gain of {config.arm} over {Arm.REAL}"
    if candidate is None:
        yield "there is no candidate"
    elif candidate.arm != config.arm:
        yield f"the candidate is of arm {candidate.arm}, but {config.arm} was declared"
    elif not candidate.digest or not candidate.path:
        yield "the candidate has no digest or no path"
    if not metrics.num_test > 0 or not metrics.test_digest:
        yield "there are no test images"


def _gain_reasons(rival: Rival, metrics: Metrics, config: PromoteConfig) -> Iterator[str]:
    gain = rival.gain
    if gain is None:
        yield f"not compared with {rival.name}: {rival.problem}"
        return
    if not _is_valid(gain):
        yield f"the gain over {rival.name} is not a valid measurement"
        return
    level = level_of_look(config.alpha, metrics.look)
    interval = interval_of(gain, 1 - level)
    if interval is None:
        yield f"the gain over {rival.name} was recorded without its standard error; run gda evaluate again"
        return
    own, (low, high) = _seeds_of(metrics, config), interval
    if gain.seeds < own:
        yield f"compared with {rival.name} over {gain.seeds} of its {own} seeds alone"
    if not 0.0 < low <= gain.mean <= high:
        numbers = f"{_points(gain.mean)} ({100 * (1 - level):.4g}% interval {_points(low)} to {_points(high)})"
        yield f"the gain over {rival.name}, {numbers}, is not clearly above zero"
    if not gain.p_value <= level:
        reason = f"p = {gain.p_value:.3g} over paired seeds with {rival.name}, above {_level_text(level, metrics.look)}"
        yield reason + _too_few(gain, level)
    yield from _harm_reasons(gain, rival)


def _is_valid(gain: Gain) -> bool:
    numbers = (gain.mean, *gain.ci95, gain.p_value, *gain.differences)
    if gain.spread is not None:
        numbers += (gain.spread.error, gain.spread.seed_share, gain.spread.seed_freedom, gain.spread.image_freedom)
        if gain.spread.error < 0 or not 0 <= gain.spread.seed_share <= 1 or min(numbers[-2:]) < 1:
            return False
    consistent = len(gain.differences) == gain.seeds and abs(math.fsum(gain.differences) - gain.seeds * gain.mean) <= 1e-6 * gain.seeds
    return all(math.isfinite(number) for number in numbers) and 0.0 <= gain.p_value <= 1.0 and consistent


def _seeds_of(metrics: Metrics, config: PromoteConfig) -> int:
    """Seeds of the declared arm. A rival needs as many: with fewer it had fewer chances, and is measured less precisely."""
    result = metrics.arms.get(config.arm)
    return len(result.seeds) if result is not None else 0


def _too_few(gain: Gain, level: float) -> str:
    """A note where no gain of any size could have passed, because too few signs can be flipped."""
    have, what = signs_of(gain)
    needed = fewest_flips(level)
    return f"; with {have} {what} no gain can reach it, {needed} are needed" if have < needed else ""


def _level_text(level: float, look: int) -> str:
    return f"{level:.3g}" if look == 1 else f"{level:.3g}, which is the level left for look {look} at this test split"


def _harm_reasons(gain: Gain, rival: Rival) -> Iterator[str]:
    if gain.smallest_visible_harm is None or not math.isfinite(gain.smallest_visible_harm):
        yield f"harm to single classes was not measured against {rival.name}"
    for harm in gain.harmed_classes:
        change = f"{_points(harm.change)} (adjusted p = {harm.p_value:.2g})"
        yield f"class {harm.class_name} is significantly worse than with {rival.name}: {change}"


def _verdict_reasons(metrics: Metrics, verdict: Verdict | None, config: PromoteConfig) -> Iterator[str]:
    if not config.arm.data.gated:
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
    if config.arm.data.gated and licence.strip().lower() not in {name.lower() for name in config.allowed_licences}:
        accepted = ", ".join(config.allowed_licences) or "none"
        yield f"the licence of the generator's base is {licence or 'missing'!r}; promote.allowed_licences accepts {accepted}"


def _points(share: float) -> str:
    return f"{100 * share:+.2f} points"
