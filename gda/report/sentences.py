"""The outcome in plain sentences: a gain, none, a loss, or a set that was refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gda.artifacts.evaluation import Gain, Metrics
from gda.artifacts.verdict import Verdict
from gda.config.arm import Arm
from gda.config.sections import PromoteConfig
from gda.report.wording import arm_name, count, has_all_seeds, interval, opened, p_value, percent, points

Tone = Literal["good", "neutral", "bad"]


@dataclass(frozen=True, kw_only=True)
class GainSentence:
    """What happened, for the top of the page: `headline` first, then one sentence per question."""

    tone: Tone
    headline: str
    sentences: tuple[str, ...]


def outcome(
    metrics: Metrics,
    verdict: Verdict | None,
    promote: PromoteConfig,
    gate_reasons: Sequence[str],
    *,
    num_train: int,
    num_synthetic: int | None,
    confidence: float,
) -> GainSentence:
    """The top of the page. `gate_reasons` is empty when the gate holds; `confidence` is the level of every interval."""
    arm = promote.arm
    gain = metrics.gain.get(arm)
    level = f"{100 * confidence:g}% CI"
    if gain is None:
        headline, tone = _not_run(metrics, verdict, arm, num_train), "bad"
    else:
        beaten_by = [rival for rival, other in metrics.gain_over_rivals.items() if other.ci95[1] < 0 and has_all_seeds(metrics, other)]
        headline = _gain_sentence(metrics, arm, gain, promote.alpha, level, num_train, num_synthetic)
        headline += _better_rivals(metrics, beaten_by)
        tone = "bad" if gain.ci95[1] < 0 else "neutral" if gate_reasons or beaten_by else "good"
    return GainSentence(
        tone=tone,  # type: ignore[arg-type]
        headline=headline,
        sentences=(
            *(_rival_sentence(metrics, rival, other, promote, level) for rival, other in metrics.gain_over_rivals.items()),
            *((_cas_sentence(metrics),) if metrics.cas is not None else ()),
            _verdict_sentence(verdict),
            *((_harm_sentence(gain),) if gain is not None else ()),
            _gate_sentence(gate_reasons, ran=gain is not None),
            *((f"This test split was opened {opened(metrics.test_openings)}.",) if (metrics.test_openings or 0) > 1 else ()),
        ),
    )


def judgement(gain: Gain, alpha: float) -> Literal["better", "worse", "likely better", "likely worse", "no clear difference"]:
    """What the interval shows; "likely" when the sign-flip test has enough seeds to confirm it, but does not."""
    low, high = gain.ci95
    if low <= 0 <= high:
        return "no clear difference"
    sure = gain.p_value <= alpha or 2.0 ** (1 - gain.seeds) > alpha
    if low > 0:
        return "better" if sure else "likely better"
    return "worse" if sure else "likely worse"


def paired_accuracies(metrics: Metrics, arm: Arm, rival: Arm, gain: Gain) -> tuple[float, float]:
    """Accuracies of `rival` and `arm` over the seeds that they share, so that they differ by exactly the gain."""
    first, other = metrics.arms[rival], metrics.arms[arm]
    shared = [top1 for seed, top1 in zip(first.seeds, first.top1, strict=True) if seed in other.seeds]
    before = sum(shared) / len(shared)
    return before, before + gain.mean


def _not_run(metrics: Metrics, verdict: Verdict | None, arm: Arm, num_train: int) -> str:
    alone = f"{count(num_train, 'real image')} alone reach {percent(metrics.arms[Arm.REAL].mean)} accuracy."
    if verdict is not None and not verdict.passed:
        return f"The synthetic set was refused by validation, so no classifier was trained on it. {alone}"
    result = metrics.arms.get(arm)
    why = result.skipped if result is not None and result.skipped else "it was not trained"
    return f"“{arm_name(arm)}” did not run: {why.removeprefix('because ').rstrip('.')}. {alone}"


def _gain_sentence(metrics: Metrics, arm: Arm, gain: Gain, alpha: float, level: str, num_train: int, num_synthetic: int | None) -> str:
    before, after = paired_accuracies(metrics, arm, Arm.REAL, gain)
    numbers = f"{points(gain.mean)} points, {level} {interval(gain.ci95)}, {p_value(gain.p_value)}, {count(gain.seeds, 'seed')}"
    subject = _subject(arm, num_train, num_synthetic)
    effect = judgement(gain, alpha)
    if effect == "no clear difference":
        return f"{subject} did not clearly change accuracy: {percent(before)} before, {percent(after)} after ({numbers})."
    verb = {"better": "raised", "likely better": "appears to have raised", "worse": "lowered"}.get(effect, "appears to have lowered")
    doubt = f" The test over {count(gain.seeds, 'seed')} does not confirm it." if gain.p_value > alpha else ""
    return f"{subject} {verb} accuracy from {percent(before)} to {percent(after)} ({numbers}).{doubt}"


def _better_rivals(metrics: Metrics, rivals: Sequence[Arm]) -> str:
    if not rivals:
        return ""
    if len(rivals) == 1:
        return f" But “{arm_name(rivals[0])}” does better still: {percent(metrics.arms[rivals[0]].mean)}."
    names = [f"“{arm_name(rival)}” ({percent(metrics.arms[rival].mean)})" for rival in rivals]
    return f" But {', '.join(names[:-1])} and {names[-1]} do better still."


def _subject(arm: Arm, num_train: int, num_synthetic: int | None) -> str:
    real = f"{num_train:,} real"
    synthetic = count(num_synthetic, "synthetic image") if num_synthetic is not None else "synthetic images"
    if arm.data.name == Arm.REAL:
        return {
            "": f"Training on {real} images",
            "long": f"Training longer on the same {real} images",
            "strong": f"Stronger augmentation of the same {real} images",
        }.get(arm.training, f"Training as “{arm.training}” on the same {real} images")
    data = {
        "real+synthetic": f"Adding {synthetic} to {real} ones",
        "synthetic": f"Replacing {real} images by {synthetic}",
        "zero_shot": f"Replacing {real} images by synthetic ones from a generator that was not fine-tuned",
        "real+zero_shot": f"Adding images of a generator that was not fine-tuned to {real} ones",
        "targeted": f"Adding synthetic images of the hard classes alone to {real} ones",
        "last_layer": f"Adding {synthetic} to {real} ones, and training the head on the real ones at the end,",
        "img2img": f"Adding image-to-image variations of {real} ones to them",
        "retrieved": f"Adding real images from elsewhere to {real} ones",
    }[arm.data.name]
    known = {"": "", "long": ", and training longer,", "strong": ", all with strong augmentation,"}
    training = known.get(arm.training, f", and training as “{arm.training}”,")
    return data.removesuffix(",") + training if training else data


def _question(rival: Arm, arm: Arm) -> str:
    """The question that a comparison with `rival` answers, as the start of a sentence."""
    if rival.data.name == Arm.REAL:
        if rival.plain:
            return "Is it only the longer training? Against the same real images trained for as many steps"
        if rival.training == arm.training:
            how = "strong augmentation" if arm.training == "strong" else f"training as “{arm.training}”"
            return f"Is it only the {how}? Against the same real images, trained alike"
        if rival.training == "strong":
            return "Would strong hand-made augmentation do as well? Against it"
        return f"Would training as “{rival.training}” do as well? Against it"
    question = {
        "retrieved": "Would more real images do as well? Against those of the pool, mixed in alike",
        "img2img": "Would image-to-image variations of the real images do as well? Against them",
        "real+zero_shot": "Was fine-tuning needed? Against images of a generator that was not fine-tuned, mixed in alike",
    }[rival.data.name]
    otherwise = {"": ", with standard training", "long": ", trained longer", "strong": ", with strong augmentation"}
    return question + ("" if rival.training == arm.training else otherwise.get(rival.training, f", trained as “{rival.training}”"))


def _rival_sentence(metrics: Metrics, rival: Arm, gain: Gain, promote: PromoteConfig, level: str) -> str:
    question = _question(rival, promote.arm)
    if not has_all_seeds(metrics, gain):
        return f"{question}, {points(gain.mean)} points over {count(gain.seeds, 'seed')}: too few seeds to say."
    answer = {
        "better": "the synthetic images are better",
        "worse": "the synthetic images are worse",
        "likely better": "the synthetic images are probably better",
        "likely worse": "the synthetic images are probably worse",
        "no clear difference": "there is no clear difference",
    }[judgement(gain, promote.alpha)]
    return f"{question}, {answer}: {points(gain.mean)} points ({level} {interval(gain.ci95)}, {count(gain.seeds, 'seed')})."


def _cas_sentence(metrics: Metrics) -> str:
    text = f"Trained on synthetic images alone, a classifier reaches {percent(metrics.cas)} on real test images (CAS)"
    if metrics.cas_zero_shot is None:
        return text + "."
    return text + f"; with images from a generator that was not fine-tuned, {percent(metrics.cas_zero_shot)}."


def _verdict_sentence(verdict: Verdict | None) -> str:
    if verdict is None:
        return "No validation verdict was given for the synthetic set."
    checks = sum(measure.passed is not None for measure in verdict.metrics.values())
    if verdict.passed:
        return f"The synthetic set passed validation ({count(checks, 'check')})."
    return "Why it was refused: " + "; ".join(reason.rstrip(".") for reason in verdict.reasons) + "."


def _harm_sentence(gain: Gain) -> str:
    if gain.harmed_classes:
        names = ", ".join(f"{harm.class_name} ({points(harm.change)})" for harm in gain.harmed_classes)
        return f"Significantly worse classes than with real images alone: {names}."
    visible = gain.smallest_visible_harm
    if visible is None or visible >= 1:
        return "No class is significantly worse than with real images alone, but the classes have too few test images to show it."
    drop = f"a drop of {100 * visible:.1f} points or more would have shown in any class"
    common = gain.smallest_common_harm
    if common is not None and common < visible:
        drop += f", and one of {100 * common:.1f} points in the median class, had a tenth of the classes suffered it"
    return f"No class is significantly worse than with real images alone; with this many test images {drop}."


def _gate_sentence(reasons: Sequence[str], *, ran: bool) -> str:
    if not ran:
        return "Promotion gate: shut. There is no candidate to promote."
    if not reasons:
        return "Promotion gate: open. Against real-only training, every condition for promotion is met."
    return "Promotion gate: shut, because " + "; ".join(reason.rstrip(".") for reason in reasons) + "."
