"""The report's table of robustness sets."""

from dataclasses import dataclass

from gda.artifacts.evaluation import Metrics, SetArm, SetResult
from gda.report.wording import arm_name, count, gain_cells, percent


@dataclass(frozen=True, kw_only=True)
class SetTable:
    """A set: its name, what was measured on it, and one line per arm: name, seeds, top-1, interval, gain, p."""

    name: str
    measured: str
    rows: tuple[tuple[str, ...], ...]


def set_tables(metrics: Metrics) -> list[SetTable]:
    """One table per set."""
    return [
        SetTable(
            name=name,
            measured=_measured(result, len(metrics.classes)),
            rows=tuple((arm_name(arm), *_accuracy(of_arm), *gain_cells(metrics, of_arm.gain)) for arm, of_arm in result.arms.items()),
        )
        for name, result in metrics.sets.items()
    ]


def _measured(result: SetResult, num_classes: int) -> str:
    seen = count(result.num_classes, "class") if result.num_classes == 1 else f"{result.num_classes:,} classes"
    among = f"predictions among these {seen} alone" if result.restricted else f"predictions among all {num_classes:,} classes"
    parts = [f"{count(result.num_images, 'image')} of {seen}", among]
    parts += ["any of an image's labels is right"] if result.several_labels else []
    parts += [f"{count(result.left_out, 'image')} without a label of ours left out"] if result.left_out else []
    return "; ".join(parts)


def _accuracy(arm: SetArm) -> tuple[str, ...]:
    return str(len(arm.seeds)), percent(arm.mean), f"{100 * arm.ci95[0]:.1f} to {100 * arm.ci95[1]:.1f}"
