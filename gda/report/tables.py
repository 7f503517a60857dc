"""The report's tables as plain rows of text."""

from collections.abc import Mapping
from dataclasses import dataclass

from gda.artifacts.evaluation import Gain, Metrics
from gda.artifacts.tuning import Settings
from gda.artifacts.verdict import Measure, Verdict
from gda.config.arm import Arm
from gda.config.sections import PromoteConfig
from gda.gate.limits import RULES
from gda.report.sentences import judgement
from gda.report.wording import arm_name, count, gain_cells, has_all_seeds, interval, number, opened, p_value, percent, points, seconds

_MEASURE_NAMES = {
    "failed_expectations": "structural expectations that failed",
    "undecodable": "images that cannot be decoded",
    "class_ratio": "largest class to smallest",
    "duplicate_fraction": "exact duplicates inside the set",
    "near_duplicate_fraction": "near duplicates inside the set",
    "exact_train": "images equal to a train image",
    "exact_val": "images equal to a validation image",
    "exact_test": "images equal to a test image",
    "near_val": "near matches with validation",
    "near_test": "near matches with test",
    "copy_fraction": "memorisation rate (copies of training images)",
    "label_agreement": "labels confirmed",
    "label_agreement_worst_class": "labels confirmed, worst class",
    "confident_disagreement": "labels disputed with confidence",
    "fid": "FID",
    "kid": "KID",
}
_SHARES = ("fraction", "agreement", "coverage", "precision", "recall", "density", "near_")
_SIGNS = {"at_most": "at most", "at_least": "at least"}


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """One line of the validation table."""

    name: str
    value: str
    interval: str
    floor: str
    limit: str
    passed: bool | None
    measured_on: str


def verdict_rows(verdict: Verdict) -> list[CheckRow]:
    """One line per measure: those that failed first, then those that passed, then those only reported."""
    order = {False: 0, True: 1, None: 2}
    rank = {name: i for i, name in enumerate(RULES)}
    items = sorted(verdict.metrics.items(), key=lambda item: (order[item[1].passed], rank.get(item[0], len(rank)), item[0]))
    return [_check(name, measure) for name, measure in items]


def _check(name: str, measure: Measure) -> CheckRow:
    def show(value: float | None) -> str:
        is_share = any(part in name for part in _SHARES) and "ratio" not in name
        return percent(value) if is_share else number(value)

    rule = RULES.get(name)
    extent = [count(measure.n, "image")] if measure.n is not None else []
    return CheckRow(
        name=_MEASURE_NAMES.get(name, name.replace("_", " ")),
        value="not measured" if measure.value is None else show(measure.value),
        interval=f"{show(measure.low)} to {show(measure.high)}" if measure.low is not None and measure.high is not None else "",
        floor=show(measure.floor) if measure.floor is not None else "",
        limit=f"{_SIGNS[rule.direction] if rule else ''} {show(measure.limit)}".strip() if measure.limit is not None else "",
        passed=measure.passed,
        measured_on=", ".join(extent + ([measure.extractor] if measure.extractor else [])),
    )


def arm_rows(metrics: Metrics, alpha: float) -> list[tuple[str, ...]]:
    """Name, seeds, steps, top-1, its interval, top-5, gain over real with interval, its p-value, and the conclusion."""
    rows: list[tuple[str, ...]] = []
    for arm, result in metrics.arms.items():
        if result.mean is None or result.ci95 is None:
            rows.append((arm_name(arm), "–", "–", "–", "–", "–", "–", "–", "did not run"))
            continue
        gain = metrics.gain.get(arm)
        rows.append(
            (
                arm_name(arm),
                str(len(result.seeds)),
                number(result.num_train_steps),
                percent(result.mean),
                f"{100 * result.ci95[0]:.1f} to {100 * result.ci95[1]:.1f}",
                percent(sum(result.top5) / len(result.top5)),
                *_gain_cells(metrics, gain, alpha),
            )
        )
    return rows


def _gain_cells(metrics: Metrics, gain: Gain | None, alpha: float) -> tuple[str, str, str]:
    if gain is None:
        return "–", "–", "baseline"
    mean, p = gain_cells(metrics, gain)
    conclusion = judgement(gain, alpha) if has_all_seeds(metrics, gain) else "too few seeds to say"
    return mean, p.removeprefix("p = ").removeprefix("p "), conclusion


def timing_rows(timings: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """Stage, its time as text, and its share of the longest in percent; the total comes last, without a bar."""
    if not timings:
        return []
    longest = max(max(timings.values()), 1e-9)
    rows = [(stage, seconds(value), 100 * value / longest) for stage, value in timings.items()]
    return [*rows, ("total", seconds(sum(timings.values())), 0.0)]


def gain_rows(metrics: Metrics, promote: PromoteConfig) -> list[tuple[str, str]]:
    """The declared arm's gain over real in parts: what each source of chance contributes."""
    gain = metrics.gain.get(promote.arm)
    if gain is None:
        return []
    rows = [
        ("mean gain", f"{points(gain.mean, 2)} points"),
        ("interval over seeds and images (the one that gates)", interval(gain.ci95, 2)),
        ("interval over seeds alone", interval(gain.ci95_seeds, 2) if gain.ci95_seeds else "one seed has none"),
        ("interval over test images alone", interval(gain.ci95_images, 2) if gain.ci95_images else "–"),
        ("by seed", ", ".join(points(d, 2) for d in gain.differences)),
        ("sign-flip test over seeds", p_value(gain.p_value)),
        ("exact McNemar test over images", p_value(gain.mcnemar_p) if gain.mcnemar_p is not None else "–"),
    ]
    if gain.minimal_detectable_effect is not None:
        effect = f"{100 * gain.minimal_detectable_effect:.2f} points"
        rows.append(("smallest gain found four times in five with this many seeds and images", effect))
    return rows


def measured_rows(
    metrics: Metrics, verdict: Verdict | None, settings: Settings | None, *, num_train: int, num_synthetic: int | None
) -> list[tuple[str, str]]:
    """What every number was measured with: counts, extractors, digests, versions, and how often the test split was opened."""
    rows = [
        ("real training images", f"{num_train:,}"),
        ("synthetic images", f"{num_synthetic:,}" if num_synthetic is not None else "none given"),
        ("test images", f"{metrics.num_test:,}"),
        ("test split opened to evaluate", opened(metrics.test_openings)),
        ("candidate", _candidate(metrics)),
        ("candidate's digest", metrics.candidate.digest if metrics.candidate is not None else "none"),
        ("real snapshot", metrics.snapshot_digest),
        ("test split", metrics.test_digest),
        ("synthetic snapshot", metrics.synthetic_digest or "none given"),
    ]
    rows += sorted(metrics.measured_with.items())
    if settings is not None:
        points = count(len(settings.points), "point")
        rows.append(
            ("tuning", f"{settings.extractor} features, {points} of {settings.num_images:,} images, {settings.chosen.scheduler} scheduler")
        )
    if verdict is not None:
        references = sorted({m.reference_digest for m in verdict.metrics.values() if m.reference_digest})
        rows += [("validation reference", digest) for digest in references]
    return rows


def _candidate(metrics: Metrics) -> str:
    candidate = metrics.candidate
    if candidate is None:
        return "none"
    return f"{arm_name(Arm(candidate.arm))}, seed {candidate.seed} (the best of its arm on validation), {candidate.path}"
