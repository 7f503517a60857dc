"""The report's table of robustness sets."""

from dataclasses import dataclass

from gda.artifacts import Metrics, SetArm, SetResult
from gda.report.wording import ARM_NAMES, count, interval, p_value, percent, points


@dataclass(frozen=True, kw_only=True)
class SetTable:
    """A set: its name, what was measured on it, and a line an arm: name, seeds, top-1, interval, gain, p."""

    name: str
    measured: str
    rows: tuple[tuple[str, ...], ...]


def set_tables(metrics: Metrics) -> list[SetTable]:
    """A table a set; none where none was given."""
    return [
        SetTable(
            name=name,
            measured=_measured(result, len(metrics.classes)),
            rows=tuple((ARM_NAMES[arm], *_cells(of_arm)) for arm, of_arm in result.arms.items()),
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


def _cells(arm: SetArm) -> tuple[str, ...]:
    accuracy = (str(len(arm.seeds)), percent(arm.mean), f"{100 * arm.ci95[0]:.1f} to {100 * arm.ci95[1]:.1f}")
    if arm.gain is None:
        return (*accuracy, "–", "–")
    return (*accuracy, f"{points(arm.gain.mean)} ({interval(arm.gain.ci95)})", p_value(arm.gain.p_value))
