"""The report's tables of top-5 accuracy and of groups of classes and images."""

import math
from dataclasses import dataclass

from gda.artifacts.evaluation import GroupResult, Metrics
from gda.data.store.predictions import TOP_K
from gda.report.wording import arm_name, count, gain_cells, percent


@dataclass(frozen=True, kw_only=True)
class GroupRows:
    """A group: its name, what it holds, and one line per arm: name, seeds, accuracy, interval, gain, p."""

    name: str
    measured: str
    rows: tuple[tuple[str, ...], ...]


def group_rows(metrics: Metrics) -> list[GroupRows]:
    """A block of lines per group; balanced accuracy only where it differs from top-1: with unequal numbers of test images."""
    return [
        GroupRows(
            name=name,
            measured=_measured(result),
            rows=tuple(
                (arm_name(arm), str(len(of.seeds)), percent(of.mean), _ends(of.ci95), *gain_cells(metrics, of.gain))
                for arm, of in result.arms.items()
            ),
        )
        for name, result in metrics.groups.items()
        if result.kind != "balanced" or not all(_same(of.mean, metrics.arms[arm].mean) for arm, of in result.arms.items())
    ]


def _same(one: float, other: float | None) -> bool:
    return other is not None and math.isclose(one, other, abs_tol=1e-9)


def _measured(result: GroupResult) -> str:
    classes = "1 class" if result.num_classes == 1 else f"{result.num_classes:,} classes"
    return f"{count(result.num_images, 'image')} of {classes}"


def top_rows(metrics: Metrics) -> list[tuple[str, ...]]:
    """Arm, top-1, its interval, top-5, its interval, gain over real in top-5, its p; empty for five classes or fewer, as top-5 is 100%."""
    if len(metrics.classes) <= TOP_K:
        return []
    return [
        (
            arm_name(arm),
            percent(result.mean),
            _ends(result.ci95),
            percent(sum(result.top5) / len(result.top5)),
            _ends(result.ci95_top5),
            *gain_cells(metrics, metrics.gain_top5.get(arm)),
        )
        for arm, result in metrics.arms.items()
        if result.ci95 is not None and result.ci95_top5 is not None
    ]


def _ends(ends: tuple[float, float]) -> str:
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"
