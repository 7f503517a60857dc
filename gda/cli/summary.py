"""The result of a run as a person reads it in a terminal."""

from pathlib import Path

from gda.artifacts.decision import Decision
from gda.artifacts.document import read_document
from gda.artifacts.evaluation import Gain, Metrics
from gda.artifacts.verdict import Verdict
from gda.config.arm import Arm, in_order
from gda.report.wording import has_all_seeds
from gda.tracking import DEFAULT_TRACKING_URI, experiment_name, shown_uri, tracking_uri


def summary(evaluation: Path, verdict: Path, promotion: Path) -> str:
    """Result table, both verdicts, and where the report and the MLflow UI are. Raises `DataError` when a file is missing."""
    metrics = read_document(evaluation / "metrics.json", Metrics)
    sound = read_document(verdict, Verdict)
    decision = read_document(promotion / "decision.json", Decision)
    return "\n".join(
        [
            "",
            *_table(metrics),
            "",
            f"CAS (trained on synthetic alone, tested on {metrics.num_test} real images): {_percent(metrics.cas)}"
            + (f", zero-shot {_percent(metrics.cas_zero_shot)}" if metrics.cas_zero_shot is not None else ""),
            f"validation: {'passed' if sound.passed else 'REFUSED'}" + "".join(f"\n  - {reason}" for reason in sound.reasons),
            f"promotion:  {_promotion(decision)}" + "".join(f"\n  - {reason}" for reason in decision.reasons),
            "",
            f"report:     {(evaluation / 'report.html').resolve()}",
            f"validation: {(verdict.parent / 'index.html').resolve()}",
            f"MLflow:     {_mlflow()}",
        ]
    )


def _table(metrics: Metrics) -> list[str]:
    width = max(16, 2 + max(map(len, metrics.arms)))
    lines = [f"{'arm':<{width}}{'top-1':>8}  {'95% interval':<15}{'gain':>7}  {'95% interval':<15}{'p':>6}  seeds"]
    lines.append("-" * len(lines[0]))
    lines += [_row(metrics, arm, metrics.gain.get(arm), width) for arm in in_order(metrics.arms)]
    return lines


def _row(metrics: Metrics, arm: Arm, gain: Gain | None, width: int) -> str:
    result = metrics.arms[arm]
    if result.skipped is not None or result.mean is None:
        return f"{arm!s:<{width}}skipped: {result.skipped}"
    line = f"{arm!s:<{width}}{result.mean:>8.2%}  {_interval(result.ci95):<15}"
    if gain is None:
        return f"{line}{'':>7}  {'':<15}{'':>6}  {len(result.seeds)}"
    if not has_all_seeds(metrics, gain):
        return f"{line}{100 * gain.mean:>+7.2f}  {'few seeds':<15}{'':>6}  {len(result.seeds)}"
    return f"{line}{100 * gain.mean:>+7.2f}  {_interval(gain.ci95, sign='+'):<15}{gain.p_value:>6.3f}  {len(result.seeds)}"


def _interval(interval: tuple[float, float] | None, *, sign: str = "") -> str:
    return "" if interval is None else f"{100 * interval[0]:{sign}.2f}..{100 * interval[1]:{sign}.2f}"


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2%}"


def _promotion(decision: Decision) -> str:
    version = f" ({decision.model_name} version {decision.model_version}, {', '.join(decision.aliases)})" if decision.model_version else ""
    return ("promoted to champion" if decision.promoted else "NOT promoted") + version


def _mlflow() -> str:
    place = f"experiment {experiment_name()!r} at {shown_uri()}"
    return f"{place}; open it with `make ui`" if tracking_uri() == DEFAULT_TRACKING_URI else place
