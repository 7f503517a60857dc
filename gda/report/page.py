"""Assembles the report: one HTML file without scripts or outside references, and the same pictures as PNG files."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from gda.artifacts.evaluation import Metrics
from gda.artifacts.tuning import Settings
from gda.artifacts.verdict import Verdict
from gda.config.arm import Arm
from gda.config.sections import PromoteConfig
from gda.data.store.predictions import Predictions
from gda.data.store.snapshot import Snapshot
from gda.io.atomic import write_bytes
from gda.report import figures, group_tables, mistakes, tables, training_table, tuning
from gda.report.gallery import image_grid
from gda.report.robustness_table import set_tables
from gda.report.sentences import outcome
from gda.report.wording import arm_name, interval, p_value, percent, points

REPORT_FILE = "report.html"


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """Everything that the report shows; a section whose input is None or empty is left out or states that nothing was given."""

    metrics: Metrics
    verdict: Verdict | None
    settings: Settings | None
    promote: PromoteConfig
    confidence: float
    gate_reasons: tuple[str, ...]  # empty when the gate holds
    real: Snapshot
    predictions: Predictions | None = None
    synthetic: Snapshot | None = None
    zero_shot: Snapshot | None = None
    timings: Mapping[str, float] = field(default_factory=dict)  # stage -> seconds
    validation_page: str | None = None  # relative link to the report of validate

    @property
    def num_train(self) -> int:
        """Real training images."""
        return sum(self.real.index.counts.get("train", {}).values())

    @property
    def num_synthetic(self) -> int | None:
        """Synthetic images; None without a set."""
        return sum(self.synthetic.index.counts.get("train", {}).values()) if self.synthetic is not None else None


def write_report(folder: Path, inputs: ReportInputs) -> Path:
    """Write `report.html` and its plots (*.png) into `folder`; equal inputs give equal bytes."""
    pictures = _pictures(inputs)
    for name, data in pictures.items():
        write_bytes(folder / f"{name}.png", data)
    path = folder / REPORT_FILE
    write_bytes(path, render_report(inputs, pictures).encode())
    return path


def render_report(inputs: ReportInputs, pictures: Mapping[str, bytes]) -> str:
    """The page as text, with `pictures` (name -> PNG) embedded."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(_context(inputs, pictures))


def _context(inputs: ReportInputs, pictures: Mapping[str, bytes]) -> dict[str, Any]:
    metrics = inputs.metrics
    counts: dict[str, Any] = {"num_train": inputs.num_train, "num_synthetic": inputs.num_synthetic}
    return {
        "title": f"{arm_name(inputs.promote.arm)}: evaluation",
        "outcome": outcome(metrics, inputs.verdict, inputs.promote, inputs.gate_reasons, confidence=inputs.confidence, **counts),
        "tiles": _tiles(inputs),
        "gate_reasons": inputs.gate_reasons,
        "pictures": {name: _data_uri(data) for name, data in pictures.items()},
        "validation_page": inputs.validation_page,
        "arms": tables.arm_rows(metrics, inputs.promote.alpha),
        "top": group_tables.top_rows(metrics),
        "trainings": training_table.training_rows(metrics, inputs.promote),
        "promote": inputs.promote,
        "groups": group_tables.group_rows(metrics),
        "sets": set_tables(metrics),
        "gain_rows": tables.gain_rows(metrics, inputs.promote),
        "calibration": mistakes.calibration_rows(metrics),
        "confusions": mistakes.confusion_rows(metrics, inputs.promote.arm),
        "declared": arm_name(inputs.promote.arm),
        "checks": tables.verdict_rows(inputs.verdict) if inputs.verdict is not None else [],
        "verdict": inputs.verdict,
        "tuning": tuning.tuning_rows(inputs.settings) if inputs.settings is not None else [],
        "settings": inputs.settings,
        "timings": tables.timing_rows(inputs.timings),
        "measured": tables.measured_rows(metrics, inputs.verdict, inputs.settings, **counts),
        "classes": metrics.classes,
        "level": f"{100 * inputs.confidence:g}%",
        "num_test": metrics.num_test,
    }


def _tiles(inputs: ReportInputs) -> list[tuple[str, str, str]]:
    """The three or four numbers that people look for first: value, label, small print."""
    metrics, arm = inputs.metrics, inputs.promote.arm
    gain = metrics.gain.get(arm)
    tiles = [(percent(metrics.arms["real"].mean), "real only", f"{inputs.num_train:,} images")]  # type: ignore[index]
    if gain is not None:
        tiles.append((percent(metrics.arms[arm].mean), arm_name(arm), f"{inputs.num_synthetic or 0:,} synthetic images"))
        tiles.append((f"{points(gain.mean)} points", "gain over real only", f"{interval(gain.ci95)}; {p_value(gain.p_value)}"))
    if metrics.cas is not None:
        tiles.append((percent(metrics.cas), "synthetic only (CAS)", f"not fine-tuned: {percent(metrics.cas_zero_shot)}"))
    return tiles


def _pictures(inputs: ReportInputs) -> dict[str, bytes]:
    metrics = inputs.metrics
    sets = {"real": inputs.real, "not fine-tuned": inputs.zero_shot, "fine-tuned": inputs.synthetic}
    pictures = {
        "images": image_grid({title: snapshot for title, snapshot in sets.items() if snapshot is not None}, metrics.classes),
        "accuracy": figures.accuracy_figure(metrics, inputs.confidence),
        "per_class": figures.per_class_figure(metrics, inputs.promote.arm),
    }
    if inputs.promote.arm in metrics.gain:
        pictures["gain"] = figures.gain_figure(metrics, inputs.promote.arm, inputs.confidence)
    if inputs.predictions is not None:
        arms = dict.fromkeys((Arm.REAL, Arm.SYNTHETIC, inputs.promote.arm))
        plotted = {
            "reliability": mistakes.reliability_figure(inputs.predictions, list(arms)),
            "confusion": mistakes.confusion_figure(inputs.predictions, inputs.promote.arm, metrics.classes),
        }
        pictures |= {name: png for name, png in plotted.items() if png is not None}
    if inputs.settings is not None and inputs.settings.points:
        pictures |= {f"tuning_{name}": png for name, png in tuning.tuning_pictures(inputs.settings).items()}
    return pictures


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
