"""What the classifiers get wrong and how sure they are: reliability, confusions, and their tables."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from gda.artifacts.evaluation import Metrics
from gda.config.arm import Arm
from gda.data.store.predictions import Predictions
from gda.report.figures import STYLE, WIDTH, to_png
from gda.report.wording import arm_colour, arm_name, percent
from gda.stats.calibration import Reliability, reliability
from gda.stats.confusion import confusion_counts

_LARGEST_MATRIX = 40  # classes
_LARGEST_WITH_NUMBERS = 15  # classes: more, and the numbers run into each other
_SHOWN = 10  # confused pairs
_FEW = 20  # images of a bin, below which its dot is left out as too uncertain


def reliability_figure(predictions: Predictions, arms: Sequence[Arm]) -> bytes | None:
    """Accuracy against confidence of these arms over all seeds, dots as large as their share of the images. None without probabilities."""
    shown = {arm: found for arm in arms if (found := _pooled(predictions, arm)) is not None}
    if not shown:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 100], [0, 100], color="#9aa0a6", linewidth=1.2, linestyle="--")
        axes.annotate("as sure as right", (9, 12), rotation=33, color="#5f6368", fontsize=9, ha="center")
        for arm, found in shown.items():
            filled = found.counts >= _FEW
            area = 30 + 900 * found.counts[filled] / found.counts.sum()
            x, y = 100 * found.confidence[filled], 100 * found.accuracy[filled]
            axes.plot(x, y, color=arm_colour(arm), linewidth=1.2, alpha=0.6)
            axes.scatter(x, y, s=area, color=arm_colour(arm), alpha=0.6, linewidths=0)
            axes.plot([], [], "o", color=arm_colour(arm), label=arm_name(arm))
        axes.set_xlim(0, 103)
        axes.set_ylim(0, 103)
        axes.grid()
        axes.set_xlabel("probability given to the class that was predicted, %", fontsize=10)
        axes.set_ylabel("of these images, predicted rightly, %", fontsize=10)
        figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=10)
        return to_png(figure)


def _pooled(predictions: Predictions, arm: Arm) -> Reliability | None:
    seeds = [seed for seed in predictions.seeds(arm) if (arm, seed) in predictions.probabilities]
    if not seeds:
        return None
    confidence = np.concatenate([predictions.probabilities[arm, seed][:, 0] for seed in seeds])
    return reliability(confidence, predictions.correct(arm, seeds).ravel())


def confusion_figure(predictions: Predictions, arm: Arm, classes: Sequence[str]) -> bytes | None:
    """Share of each class's images that an arm takes for each other class, over seeds; None without a run or with more than 40 classes."""
    seeds = predictions.seeds(arm)
    if not seeds or len(classes) > _LARGEST_MATRIX:
        return None
    counts = confusion_counts(np.stack([predictions.top[arm, seed][:, 0] for seed in seeds]), predictions.labels, len(classes))
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    wrong = np.where(np.eye(len(classes), dtype=bool), np.nan, shares)
    side = min(WIDTH, 0.42 * len(classes) + 2.2)
    with matplotlib.rc_context({**STYLE, "axes.spines.bottom": False, "xtick.major.size": 0}):
        figure = Figure(figsize=(WIDTH, side), layout="constrained")
        axes = figure.subplots()
        axes.imshow(wrong, cmap="Reds", vmin=0, vmax=max(1.0, float(np.nanmax(wrong))), aspect="auto")
        large = len(classes) > _LARGEST_WITH_NUMBERS
        for (row, column), share in () if large else np.ndenumerate(shares):
            if row == column or share >= 0.05:
                dark = row != column and share > 0.6 * np.nanmax(wrong)
                colour = "white" if dark else "#9aa0a6" if row == column else "#202124"
                axes.annotate(f"{share:.1f}", (column, row), ha="center", va="center", fontsize=8, color=colour)
        slanted = max(map(len, classes)) > 3
        size = 7 if large else 10
        axes.set_xticks(range(len(classes)), classes, rotation=60 if slanted else 0, ha="right" if slanted else "center", fontsize=size)
        for label in axes.get_xticklabels() if slanted else ():
            label.set_rotation_mode("anchor")
        axes.set_yticks(range(len(classes)), classes, fontsize=size)
        axes.set_xlabel("taken for", fontsize=10)
        axes.set_ylabel("class", fontsize=10)
        return to_png(figure)


def calibration_rows(metrics: Metrics) -> list[tuple[str, str, str]]:
    """Arm, expected calibration error and negative log-likelihood, means over seeds; arms without probabilities are left out."""
    return [
        (arm_name(arm), percent(sum(result.ece) / len(result.ece)), f"{sum(result.nll) / len(result.nll):.3f}")
        for arm, result in metrics.arms.items()
        if result.ece and result.nll
    ]


def confusion_rows(metrics: Metrics, arm: Arm) -> list[tuple[str, str, str]]:
    """Class, what it is taken for and how often, of an arm's largest confusions."""
    result = metrics.arms.get(arm)
    return [] if result is None else [(each.class_name, each.predicted, percent(each.share)) for each in result.most_confused[:_SHOWN]]
