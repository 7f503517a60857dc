"""Arms and numbers as text for readers: percent and points here only, fractions everywhere else."""

import math
from collections.abc import Sequence

from gda.artifacts.evaluation import Gain, Metrics, SetGain
from gda.config.arm import Arm

_DATA_NAMES = {
    "real": "real only",
    "retrieved": "real + more real images",
    "zero_shot": "synthetic, not fine-tuned",
    "real+zero_shot": "real + synthetic, not fine-tuned",
    "img2img": "real + image to image",
    "synthetic": "synthetic only",
    "real+synthetic": "real + synthetic",
    "targeted": "real + synthetic, hard classes",
    "last_layer": "real + synthetic, then head on real",
}
_TRAINING_NAMES = {"": "", "long": ", trained as long", "strong": ", strong augmentation"}
# Colours that people with colour blindness can distinguish; arms with the same data have similar ones.
_COLOURS = {
    "real": "#0072B2",
    "real_long": "#56B4E9",
    "real_strong": "#009E73",
    "retrieved": "#00527F",
    "zero_shot": "#E69F00",
    "real+zero_shot": "#C98B00",
    "img2img": "#B27B00",
    "synthetic": "#CC79A7",
    "real+synthetic": "#D55E00",
    "targeted": "#A34800",
    "last_layer": "#7A3600",
}
_SHADES = {"long": 1.25, "strong": 0.7}


def arm_name(arm: Arm) -> str:
    """An arm in words: its images, and how it is trained on them where that is not the standard way."""
    return _DATA_NAMES[arm.data.name] + _TRAINING_NAMES.get(arm.training, f", trained as {arm.training}")


def arm_colour(arm: Arm) -> str:
    """The colour of an arm in every figure, as `#RRGGBB`: that of its data, lighter or darker for other trainings."""
    if arm in _COLOURS:
        return _COLOURS[arm]
    known = _COLOURS[arm.data.name]
    parts = [min(255, round(int(known[i : i + 2], 16) * _SHADES.get(arm.training, 0.85))) for i in (1, 3, 5)]
    return "#" + "".join(f"{part:02X}" for part in parts)


_MINUS = "\N{MINUS SIGN}"


def percent(share: float | None, digits: int = 1) -> str:
    """0.9371 as `93.7%`; a dash for None."""
    return "–" if share is None else f"{100 * share:.{digits}f}%"


def points(share: float, digits: int = 1) -> str:
    """A difference of accuracies as signed percentage points without the unit: 0.0142 as `+1.4`."""
    text = f"{100 * share:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", _MINUS)


def interval(ends: Sequence[float], digits: int = 1) -> str:
    """Both ends of an interval of a difference: `+0.9 to +1.9`."""
    return f"{points(ends[0], digits)} to {points(ends[1], digits)}"


def p_value(p: float) -> str:
    """`p = 0.031`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def has_all_seeds(metrics: Metrics, gain: Gain | SetGain) -> bool:
    """Whether a gain over real is over all of real's seeds; a control arm with fewer has a mean, and no interval or p-value is shown."""
    return gain.seeds >= len(metrics.arms[Arm.REAL].seeds)


def gain_cells(metrics: Metrics, gain: Gain | SetGain | None) -> tuple[str, str]:
    """A gain over real with its interval, and its p-value, as cells of a table."""
    if gain is None:
        return "–", "–"
    if not has_all_seeds(metrics, gain):
        return points(gain.mean), "–"
    return f"{points(gain.mean)} ({interval(gain.ci95)})", p_value(gain.p_value)


def number(value: float | None) -> str:
    """Three significant digits, thousands with commas; a dash for None."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.3g}"


def seconds(value: float) -> str:
    """`48 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = round(value)
    if whole < 60:
        return f"{value:.1f} s" if value < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def count(n: int, noun: str) -> str:
    """`1 seed`, `6 seeds`, `1,000 images`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def opened(times: int | None) -> str:
    """How often a test split was opened to evaluate, with a warning from the second time on; None where it was not counted."""
    if times is None:
        return "an unknown number of times"
    if times == 1:
        return "once"
    return f"{times:,} times: each further look weakens it, because the best of several looks is partly luck; only new images restore it"
