"""The curve of a ratio search as a plot, and its answer in words."""

import matplotlib
from matplotlib.figure import Figure

from gda.artifacts.curves import RatioCurve, RatioPoint
from gda.report.figures import STYLE, WIDTH, to_png
from gda.report.wording import count, interval, points

_COLOUR, _LEFT = "#D55E00", "#9aa0a6"


def ratio_figure(curve: RatioCurve) -> bytes:
    """Gain on validation against the ratio, a dot per seed; ratios that were dropped early are grey, the interval of the peak is shaded."""
    most = max(len(point.top1) for point in curve.points)
    with matplotlib.rc_context(STYLE | {"axes.spines.left": True}):
        figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.axhline(0, color="#5f6368", linewidth=1.2)
        if curve.peak is not None and curve.peak_ci95 is not None:
            axes.axvspan(*curve.peak_ci95, color="#fbbc04", alpha=0.18, linewidth=0)
            axes.axvline(curve.peak, color="#fbbc04", linewidth=2)
        axes.plot([p.ratio for p in curve.points], [100 * p.gain for p in curve.points], color="#c4c7cc", linewidth=1.5, zorder=1)
        for point in curve.points:
            _plot_point(axes, point, curve.real_top1, _COLOUR if len(point.top1) == most else _LEFT)
        ratios = [point.ratio for point in curve.points]
        axes.set_xscale("log")
        axes.set_xticks(ratios, [f"{ratio:g}\n{point.num_images:,}" for ratio, point in zip(ratios, curve.points, strict=True)])
        axes.set_xticks([], minor=True)
        axes.grid(axis="y")
        axes.margins(x=0.06)
        axes.set_xlabel("synthetic images to one real image, and their number")
        axes.set_ylabel("gain over real alone, points")
        return to_png(figure)


def _plot_point(axes: matplotlib.axes.Axes, point: RatioPoint, real: tuple[float, ...], colour: str) -> None:
    low, high = point.ci95
    axes.vlines(point.ratio, 100 * low, 100 * high, color=colour, linewidth=3, alpha=0.45)
    by_seed = [100 * (own - rival) for own, rival in zip(point.top1, real, strict=False)]
    axes.scatter([point.ratio] * len(by_seed), by_seed, s=14, color=colour, alpha=0.6, linewidths=0, zorder=2)
    axes.scatter([point.ratio], [100 * point.gain], s=48, color=colour, zorder=3)


def ratio_answer(curve: RatioCurve) -> str:
    """One or two sentences: where the peak is, how few images are as good, and whether there is a gain at all."""
    assert curve.peak is not None
    assert curve.peak_ci95 is not None
    found = {point.ratio: point for point in curve.points}
    best, enough = found[curve.best or 0.0], found[curve.enough or 0.0]
    low, high = curve.peak_ci95
    words = [f"the peak is at {curve.peak:.2g} synthetic images to a real one ({low:.2g} to {high:.2g})"]
    if curve.at_edge:
        other = "more" if curve.at_edge == "largest" else "fewer"
        words = [f"{words[0]}, the {curve.at_edge} ratio tried: {other} may be better"]
    gain = f"{points(best.gain)} points ({interval(best.ci95)}, {count(len(best.top1), 'seed')})"
    if best.ci95[0] > 0:
        words.append(f"{best.num_images:,} images gain {gain}")
        if enough is not best:
            words.append(f"{enough.num_images:,} do about as well")
    else:
        words.append(f"no ratio clearly helps: the best, {best.ratio:g}, gains {gain}")
    return "; ".join(words)
