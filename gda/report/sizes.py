"""Accuracy and gain by the number of real training images, as lines of text and as a plot."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gda.artifacts.curves import SizeComparison, SizePoint
from gda.config.arm import Arm
from gda.report.figures import STYLE, WIDTH, to_png
from gda.report.wording import arm_colour, arm_name, interval, percent, points


def size_table(comparison: SizeComparison) -> list[str]:
    """A heading and one line per size, in columns."""
    head = ("real images", "choices", "real", comparison.arm, "gain, points", "95% interval", "a synthetic image is worth")
    lines = [_line(*head)]
    for point in comparison.points:
        real, own = (percent(float(np.mean(values))) for values in (point.real_top1, point.top1))
        lines.append(_line(f"{point.num_train:,}", str(point.choices), real, own, points(point.gain), interval(point.ci95), _worth(point)))
    return lines


def _line(size: str, choices: str, real: str, own: str, gain: str, ends: str, worth: str) -> str:
    return f"{size:>11}  {choices:>7}  {real:>6}  {own:>14}  {gain:>12}  {ends:<16}  {worth}".rstrip()


def _worth(point: SizePoint) -> str:
    """`about 0.31 real ones (between 0 and 0.9)`; beyond the sizes that were trained only `more than` or `less than`."""
    exchange = point.exchange
    if exchange is None:
        return "not stated" if point.unpriced else ""
    rate, low, high = ("" if value is None else f"{value:.2g}".replace("-", "−") for value in (exchange.rate, exchange.low, exchange.high))
    if not low and not high:
        return "not determined by these sizes"
    ends = f"between {low} and {high}" if low and high else f"more than {low}" if low else f"less than {high}"
    return f"about {rate} real ones ({ends})" if rate else f"{ends} real ones"


def size_figure(comparison: SizeComparison, confidence: float) -> bytes:
    """Above, accuracy of both arms against the number of real images, a dot per choice; below, the gain with its interval."""
    with matplotlib.rc_context(STYLE | {"axes.spines.left": True}):
        figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        sizes = [point.num_train for point in comparison.points]
        for arm, marker, values in (
            (Arm.REAL, "o", [p.real_top1 for p in comparison.points]),
            (comparison.arm, "D", [p.top1 for p in comparison.points]),
        ):
            _plot_accuracy(above, sizes, values, arm, marker)
        above.set_ylabel("test accuracy, %")
        _plot_gain(below, comparison.points, arm_colour(comparison.arm))
        below.set_ylabel(f"gain, points\n({100 * confidence:g}% interval)")
        below.set_xscale("log")
        below.set_xticks(sizes, [f"{size:,}" for size in sizes])
        below.set_xticks([], minor=True)
        below.set_xlabel("real training images")
        figure.legend(*above.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=10)
        return to_png(figure)


def _plot_accuracy(axes: Axes, sizes: Sequence[int], values: Sequence[Sequence[float]], arm: Arm, marker: str) -> None:
    colour = arm_colour(arm)
    axes.plot(sizes, [100 * float(np.mean(each)) for each in values], f"{marker}-", color=colour, markersize=6, label=arm_name(arm))
    for size, each in zip(sizes, values, strict=True):
        axes.scatter([size] * len(each), [100 * value for value in each], s=14, color=colour, alpha=0.5, linewidths=0)
    axes.grid(axis="y")


def _plot_gain(axes: Axes, found: Sequence[SizePoint], colour: str) -> None:
    axes.axhline(0, color="#5f6368", linewidth=1.2)
    sizes = [point.num_train for point in found]
    axes.vlines(sizes, [100 * p.ci95[0] for p in found], [100 * p.ci95[1] for p in found], color=colour, linewidth=3, alpha=0.45)
    axes.plot(sizes, [100 * point.gain for point in found], "D", color=colour, markersize=6)
    axes.grid(axis="y")
