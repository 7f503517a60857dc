"""How a tuning sweep is shown: its points in words, in a table and in two plots."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from gda.artifacts.tuning import Settings, TuningPoint
from gda.report.figures import STYLE, WIDTH, to_png
from gda.report.wording import count, number, percent
from gda.tuning.grid import like_the_best

Line = tuple[str, list[TuningPoint]]  # a label, and points that differ in guidance alone

SHOWN_POINTS = 12
_SHOWN_LINES = 6
_CHOSEN, _REST = "#fbbc04", "#c4c7cc"
# Okabe and Ito's palette without black and yellow: distinguishable with every common form of colour blindness.
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")


def _share(value: float | None, without: str, name: str) -> str:
    return without if value is None else f"{name} {value:g}"


def _interval(point: TuningPoint) -> str:
    if point.guidance_scale == 1.0:
        return ""
    low, high = point.settings.guidance_interval
    return "guided throughout" if (low, high) == (0.0, 1.0) else f"guided from {low:g} to {high:g}"


_AXES: dict[str, Callable[[TuningPoint], str]] = {
    "guidance": lambda point: f"guidance {point.guidance_scale:g}",
    "interval": _interval,
    "mix": lambda point: _share(point.settings.log_variance_mix, "the model's variance", "log-variance mix"),
    "steps": lambda point: count(point.settings.num_inference_steps, "step"),
    "sr_guidance": lambda point: f"SR guidance {point.settings.sr_guidance_scale:g}",
    "sr_steps": lambda point: f"SR {count(point.settings.sr_num_inference_steps, 'step')}",
    "sr_noise": lambda point: f"SR noise level {point.settings.sr_noise_level}",
    "sr_mix": lambda point: _share(point.settings.sr_log_variance_mix, "the SR model's variance", "SR log-variance mix"),
    "average": lambda point: _share(point.ema_sigma_rel, "weights as they are", "weights averaged at"),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One point of the table, as text."""

    setting: str
    fid: str
    cas: str
    nfe: str
    marks: tuple[str, ...]


def describe_point(point: TuningPoint, points: Sequence[TuningPoint]) -> str:
    """A point by what differs among `points`, guidance always, e.g. `guidance 1.5, 16 steps`."""
    return _text_of(point, _varying(points))


def _varying(points: Sequence[TuningPoint]) -> list[str]:
    """Names of the axes to show: guidance, and those that differ."""
    return [name for name, text in _AXES.items() if name == "guidance" or len({text(point) for point in points} - {""}) > 1]


def _text_of(point: TuningPoint, axes: Sequence[str]) -> str:
    return ", ".join(text for name in axes if (text := _AXES[name](point)))


def tuning_rows(settings: Settings, limit: int = SHOWN_POINTS) -> list[Row]:
    """The chosen point, the other survivors by CAS, then the rest by FID; points that failed come last."""
    points = settings.points
    alike = dict(zip(map(id, points), like_the_best(points), strict=True))
    chosen, axes = settings.chosen_point, _varying(points)
    order = sorted(points, key=lambda p: (p is not chosen, p.fid is None, -(p.cas or -1.0), p.fid or 0.0))
    return [
        Row(
            setting=_text_of(point, axes),
            fid=_fid(point),
            cas="" if point.cas is None else f"{percent(point.cas)} ({', '.join(f'{100 * cas:.1f}' for cas in point.cas_by_seed)})",
            nfe=f"{point.nfe:,}",
            marks=tuple(
                mark for mark, holds in (("chosen", point is chosen), ("undominated", point.pareto), ("alike", alike[id(point)])) if holds
            ),
        )
        for point in order[:limit]
    ]


def _fid(point: TuningPoint) -> str:
    if point.fid is None:
        return f"failed: {point.failed}"
    return number(point.fid) + (f" ({number(point.fid_ci95[0])} to {number(point.fid_ci95[1])})" if point.fid_ci95 else "")


def tuning_pictures(settings: Settings) -> dict[str, bytes]:
    """PNG by name: `fid` and `pareto`; equal settings give equal bytes."""
    return {"fid": guidance_figure(settings), "pareto": pareto_figure(settings)}


def guidance_figure(settings: Settings) -> bytes:
    """FID of every point against guidance, a line per setting of the other axes, and CAS of the survivors below."""
    lines = _lines(settings.points)
    scored = any(point.cas is not None for point in settings.points)
    with matplotlib.rc_context(STYLE | {"axes.spines.left": True}):
        figure = Figure(figsize=(WIDTH, 3.4 + 2.0 * scored + 0.22 * min(len(lines), _SHOWN_LINES)), layout="constrained")
        panels = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2)) if scored else [figure.subplots()]
        for axes in panels:
            axes.axvline(settings.guidance_scale, color=_CHOSEN, linewidth=8, alpha=0.35, zorder=0)
        _plot_fid(panels[0], settings, lines)
        if scored:
            _plot_cas(panels[1], lines)
        scales = sorted({point.guidance_scale for point in settings.points})
        panels[-1].set_xscale("log")
        panels[-1].set_xticks(scales, [f"{scale:g}" for scale in scales])
        panels[-1].set_xticks([], minor=True)
        panels[-1].set_xlabel("guidance scale (1 is off); the chosen one is shaded")
        handles, labels = panels[0].get_legend_handles_labels()
        narrow = max(map(len, labels), default=0) < 40
        figure.legend(handles, labels, loc="outside upper left", ncols=1 + narrow, frameon=False, fontsize=9)
        return to_png(figure)


def _plot_fid(axes: Axes, settings: Settings, lines: Sequence[Line]) -> None:
    for place, (label, line) in enumerate(lines):
        look: dict[str, Any] = {"color": _colour(place), "zorder": 3 - 0.1 * place, "markersize": 5, "label": label or "FID"}
        if place >= _SHOWN_LINES:
            look |= {"zorder": 2, "markersize": 0, "label": count(len(lines) - place, "other setting") if place == _SHOWN_LINES else "_"}
        axes.plot([p.guidance_scale for p in line], [p.fid or 0.0 for p in line], "o-", **look)
        ends = [(p.guidance_scale, *p.fid_ci95) for p in line if p.fid_ci95 is not None and place < _SHOWN_LINES]
        if ends:
            scales, lows, highs = zip(*ends, strict=True)
            axes.vlines(scales, lows, highs, color=_colour(place), linewidth=1.5, alpha=0.6)
    if settings.fid_floor is not None:
        axes.axhline(settings.fid_floor, color="#5f6368", linestyle=":", linewidth=1.2, label="FID of as many real images")
    _scale_fid(axes, "y", settings.points)
    axes.set_ylabel("FID, lower is better")


def _colour(place: int) -> str:
    return _LINES[place] if place < _SHOWN_LINES else _REST


def _scale_fid(axes: Axes, which: Literal["x", "y"], points: Sequence[TuningPoint]) -> None:
    """In powers of ten where the worst point would hide how the good ones differ."""
    fids = [point.fid for point in points if point.fid is not None]
    if min(fids) <= 0 or max(fids) < 6 * min(fids):
        return
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _lines(points: Sequence[TuningPoint]) -> list[Line]:
    """Points that differ in guidance alone, the line of the lowest FID first; guidance 1 belongs to lines of any interval."""
    axes = [name for name in _varying(points) if name != "guidance"]
    free = [name for name in axes if name != "interval"]
    plotted = [point for point in points if point.fid is not None]
    guided = [point for point in plotted if point.guidance_scale != 1.0] or plotted
    unguided = _grouped([point for point in plotted if point.guidance_scale == 1.0] if guided is not plotted else [], free)
    lines = _grouped(guided, axes)
    whole = [(label, line + unguided.get(_text_of(line[0], free), [])) for label, line in lines.items()]
    whole = [(label, sorted(line, key=lambda p: p.guidance_scale)) for label, line in whole]
    return sorted(whole, key=lambda item: (min(p.fid or 0.0 for p in item[1]), item[0]))


def _grouped(points: Sequence[TuningPoint], axes: Sequence[str]) -> dict[str, list[TuningPoint]]:
    groups: dict[str, list[TuningPoint]] = {}
    for point in points:
        groups.setdefault(_text_of(point, axes), []).append(point)
    return groups


def _plot_cas(axes: Axes, lines: Sequence[Line]) -> None:
    """Each survivor in the colour of its line: small its seeds, large their mean."""
    for place, (_, line) in enumerate(lines):
        for point in line:
            if point.cas is not None:
                seeds = [100 * cas for cas in point.cas_by_seed]
                axes.scatter([point.guidance_scale] * len(seeds), seeds, s=14, color=_colour(place), alpha=0.5)
                axes.scatter([point.guidance_scale], [100 * point.cas], s=42, color=_colour(place), marker="D")
    axes.margins(y=0.25)
    axes.set_ylabel("CAS, %, higher is better")


def pareto_figure(settings: Settings) -> bytes:
    """FID against NFE for every point, and CAS against FID for the survivors; undominated points are filled."""
    plotted = [point for point in settings.points if point.fid is not None]
    with matplotlib.rc_context(STYLE | {"axes.spines.left": True}):
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        _scatter(left, settings, plotted, lambda p: (p.nfe, p.fid or 0.0))
        left.set(xlabel="NFE (network evaluations per image)", ylabel="FID, lower is better")
        _scale_fid(left, "y", plotted)
        _scatter(right, settings, [p for p in plotted if p.cas is not None], lambda p: (p.fid or 0.0, 100 * (p.cas or 0.0)))
        right.set(xlabel="FID, lower is better", ylabel="CAS, %, higher is better")
        for axes in (left, right):
            axes.margins(0.12)
            axes.grid()
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9)
        return to_png(figure)


def _scatter(axes: Axes, settings: Settings, points: Sequence[TuningPoint], place: Callable[[TuningPoint], tuple[float, float]]) -> None:
    chosen = settings.chosen_point
    kinds: dict[str, tuple[list[TuningPoint], dict[str, Any]]] = {
        "dominated": ([p for p in points if not p.pareto], {"facecolors": "none", "edgecolors": "#9aa0a6", "s": 30}),
        "undominated in FID, CAS and NFE": ([p for p in points if p.pareto], {"color": "#0072B2", "s": 42, "zorder": 3}),
        "chosen": ([p for p in points if p is chosen], {"facecolors": "none", "edgecolors": _CHOSEN, "s": 150, "lw": 2.5, "zorder": 4}),
    }
    for label, (some, look) in kinds.items():
        if some:
            axes.scatter([place(p)[0] for p in some], [place(p)[1] for p in some], label=label, **look)
