"""The charts, as deterministic PNG bytes: dots with intervals, no decoration, colours that colour-blind readers can distinguish."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gda.artifacts.evaluation import ArmResult, Gain, Metrics
from gda.config.arm import Arm
from gda.report.wording import arm_colour, arm_name, has_all_seeds, points

WIDTH, _DPI = 7.0, 170  # inches; wide enough for 1,200 px, and 11 pt stays legible when scaled down to a phone
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": "#9aa0a6",
    "axes.labelcolor": "#3c4043",
    "xtick.color": "#3c4043",
    "ytick.color": "#202124",
    "ytick.major.size": 0,
    "axes.axisbelow": True,
    "grid.color": "#e4e6e9",
    "grid.linewidth": 0.8,
}
_MAX_CLASSES = 40


def accuracy_figure(metrics: Metrics, confidence: float) -> bytes:
    """Test accuracy of every arm: each seed, the mean and its interval. Arms far below get a panel of their own scale."""
    ran = [(arm, result) for arm, result in metrics.arms.items() if result.mean is not None]
    means = {arm: 100 * result.mean for arm, result in ran if result.mean is not None}
    near = max(means.values()) - 12
    split = any(mean < near for mean in means.values()) and sum(mean >= near for mean in means.values()) > 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.62 * len(ran) + 1.0), layout="constrained")
        grid = figure.subplots(1, 2, sharey=True, width_ratios=(1, 2.2), squeeze=False)[0] if split else [figure.subplots()]
        for panel, axes in enumerate(grid):
            for row, (arm, result) in enumerate(ran):
                if not split or (means[arm] >= near) == (panel == 1):
                    _plot_accuracy(axes, row, arm, result)
            axes.set_yticks(range(len(ran)), [arm_name(arm) for arm, _ in ran])
            axes.set_ylim(len(ran) - 0.4, -0.6)
            axes.margins(x=0.16 if panel == len(grid) - 1 else 0.3)
            axes.grid(axis="x")
        label = f"accuracy on real test images, % (dots: seeds; bars: {100 * confidence:g}% intervals)"
        figure.supxlabel(label, fontsize=10, color="#3c4043")
        return to_png(figure)


def _plot_accuracy(axes: Axes, row: int, arm: Arm, result: ArmResult) -> None:
    colour = arm_colour(arm)
    assert result.mean is not None
    assert result.ci95 is not None
    axes.hlines(row, 100 * result.ci95[0], 100 * result.ci95[1], color=colour, linewidth=3, alpha=0.9)
    axes.scatter([100 * top1 for top1 in result.top1], _spread(row, len(result.top1)), s=16, color=colour, alpha=0.45, linewidths=0)
    axes.scatter([100 * result.mean], [row], s=75, color=colour, edgecolors="white", linewidths=1.2, zorder=3)
    axes.annotate(f"{100 * result.mean:.1f}", (100 * result.mean, row), (0, 9), textcoords="offset points", ha="center", fontsize=10)


def _spread(row: float, n: int) -> np.ndarray:
    """Heights just below the mean's line, so that equal accuracies do not hide each other."""
    return row + 0.22 + (0.06 * (np.arange(n) % 3))


def gain_figure(metrics: Metrics, declared: Arm, confidence: float) -> bytes:
    """Gain of the declared arm over real and over each real-only rival: a dot per paired seed, the mean, its interval if all seeds ran."""
    rows = [(Arm.REAL, metrics.gain[declared]), *metrics.gain_over_rivals.items()]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.72 * len(rows) + 0.9), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color="#5f6368", linewidth=1.2)
        for row, (rival, gain) in enumerate(rows):
            _plot_gain(axes, row, rival, gain, bar=has_all_seeds(metrics, gain))
        axes.set_yticks(range(len(rows)), [f"over {arm_name(rival)}" for rival, _ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.margins(x=0.12)
        axes.grid(axis="x")
        label = f"gain, percentage points (dots: paired seeds; bars: {100 * confidence:g}% intervals)"
        figure.supxlabel(label, fontsize=10, color="#3c4043")
        return to_png(figure)


def _plot_gain(axes: Axes, row: int, rival: Arm, gain: Gain, *, bar: bool) -> None:
    colour = arm_colour(rival)
    if bar:
        axes.hlines(row, 100 * gain.ci95[0], 100 * gain.ci95[1], color=colour, linewidth=3)
    axes.scatter([100 * d for d in gain.differences], _spread(row, gain.seeds), s=20, color=colour, alpha=0.55, linewidths=0)
    axes.scatter([100 * gain.mean], [row], s=80, color=colour, edgecolors="white", linewidths=1.2, zorder=3)
    axes.annotate(points(gain.mean), (100 * gain.mean, row), (0, 9), textcoords="offset points", ha="center", fontsize=10)


def per_class_figure(metrics: Metrics, declared: Arm) -> bytes:
    """Accuracy of each class in the arms real and synthetic and the declared one; with many classes, those that changed most."""
    arms = [arm for arm in dict.fromkeys((Arm.REAL, Arm.SYNTHETIC, declared)) if arm in metrics.arms and metrics.arms[arm].mean is not None]
    table = 100 * np.array([metrics.arms[arm].per_class for arm in arms])
    order = _shown_classes(table)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.36 * len(order) + 1.3), layout="constrained")
        axes = figure.subplots()
        rows = np.arange(len(order))
        axes.hlines(rows, table[:, order].min(axis=0), table[:, order].max(axis=0), color="#c4c7cc", linewidth=2)
        look: dict[str, Any] = {"s": 46, "zorder": 3, "edgecolors": "white", "linewidths": 0.8}
        for arm, values, marker, shift in zip(arms, table[:, order], ("o", "s", "D"), (0.1, 0, -0.1), strict=False):
            axes.scatter(values, rows + shift, color=arm_colour(arm), marker=marker, label=arm_name(arm), **look)
        axes.set_yticks(rows, [metrics.classes[c] for c in order])
        axes.set_ylim(len(order) - 0.4, -0.6)
        axes.grid(axis="x")
        axes.set_xlabel("accuracy on real test images, %, mean over seeds", fontsize=10)
        figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=10)
        return to_png(figure)


def _shown_classes(table: np.ndarray) -> Sequence[int]:
    """All classes in label order, or the 40 whose arms differ most, when there are more."""
    if table.shape[1] <= _MAX_CLASSES:
        return [int(c) for c in range(table.shape[1])]
    return [int(c) for c in np.sort(np.argsort(-np.ptp(table, axis=0), kind="stable")[:_MAX_CLASSES])]


def to_png(figure: Figure) -> bytes:
    """Bytes that are equal for equal figures."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
