"""The outcome of a stage read back from its published output, for a run whose process was killed before it kept its measures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gda.artifacts.cards import ClassifierCard, GeneratorCard
from gda.artifacts.curves import RatioCurve, SizeComparison
from gda.artifacts.decision import Decision
from gda.artifacts.document import read_document
from gda.artifacts.evaluation import Metrics
from gda.artifacts.fingerprint import digest_of
from gda.artifacts.outcome import Outcome
from gda.artifacts.reference import ReferenceIndex
from gda.artifacts.snapshot import SnapshotIndex
from gda.artifacts.tuning import Settings
from gda.artifacts.verdict import Verdict
from gda.io.skipped_arms import SKIPPED_FILE
from gda.tracking.generator_versions import generator_model

# The file of an output that is there when it is published, by the stage that made it.
MARKERS = {"promote": "decision.json"}
PUBLISHED = "fingerprint.json"


def published_outcome(stage: str, out: Path, params: dict[str, Any]) -> Outcome:
    """Outcome of the stage that made `out`, with its digest, its scalar metrics and its files, but without curves.

    Raises `DataError` for an output that is damaged, `KeyError` for a stage that publishes nothing.
    """
    if (skipped := out / SKIPPED_FILE).is_file():
        return _outcome(out, digest_of(json.loads(skipped.read_bytes())), {})
    return _READ[stage](out, params)


def _outcome(out: Path, digest: str, metrics: dict[str, Any], *names: str, refused: bool = False, model: Any = None) -> Outcome:
    numbers = {name: float(value) for name, value in metrics.items() if value is not None}
    files = tuple(out / name for name in names if (out / name).is_file())
    return Outcome(output=out, digest=digest, summary="", metrics=numbers, files=files, refused=refused, model=model)


def _snapshot(out: Path, _: dict[str, Any]) -> Outcome:
    index = read_document(out / "snapshot.json", SnapshotIndex)
    counts = {f"images_{split}": sum(classes.values()) for split, classes in index.counts.items()}
    return _outcome(out, index.digest, counts | {"quarantined": len(index.quarantined)})


def _sample(out: Path, _: dict[str, Any]) -> Outcome:
    index = read_document(out / "snapshot.json", SnapshotIndex)
    return _outcome(out, index.digest, {"images": sum(sum(classes.values()) for classes in index.counts.values())})


def _reference(out: Path, _: dict[str, Any]) -> Outcome:
    index = read_document(out / "reference.json", ReferenceIndex)
    return _outcome(out, index.digest, {"agreement": index.agreement, "fid_floor": index.fid_floor})


def _finetune(out: Path, params: dict[str, Any]) -> Outcome:
    card = read_document(out / "generator.json", GeneratorCard)
    model = generator_model(params.get("model_name"), out, card, description=f"fine-tuned from {card.source}")
    return _outcome(out, card.digest, dict(card.metrics), "generator.json", "README.md", model=model)


def _tune(out: Path, _: dict[str, Any]) -> Outcome:
    settings = read_document(out / "settings.json", Settings)
    chosen = settings.chosen_point
    measured = {"fid": chosen.fid, "cas": chosen.cas, "guidance_scale": chosen.guidance_scale, "nfe": chosen.nfe}
    return _outcome(out, digest_of(settings.model_dump(mode="json")), measured, "settings.json")


def _validate(out: Path, _: dict[str, Any]) -> Outcome:
    verdict = read_document(out / "verdict.json", Verdict)
    metrics = {name: measure.value for name, measure in verdict.metrics.items()}
    digest = digest_of(verdict.model_dump(mode="json"))
    return _outcome(out, digest, metrics, "verdict.json", "index.html", refused=not verdict.passed)


def _classify(out: Path, _: dict[str, Any]) -> Outcome:
    card = read_document(out / "classifier.json", ClassifierCard)
    names = sorted(path.name for path in out.iterdir())
    refused = card.skipped is not None and card.synthetic_digest is not None
    return _outcome(out, card.digest, {"val_top1": card.val_top1}, *names, refused=refused)


def _evaluate(out: Path, _: dict[str, Any]) -> Outcome:
    metrics = read_document(out / "metrics.json", Metrics)
    numbers = {f"top1_{arm.replace('+', '_')}": result.mean for arm, result in metrics.arms.items()}
    numbers |= {f"gain_{arm.replace('+', '_')}": gain.mean for arm, gain in metrics.gain.items()}
    names = sorted(path.name for path in out.iterdir() if path.suffix in (".html", ".json", ".png", ".csv"))
    return _outcome(out, digest_of(metrics.model_dump(mode="json")), numbers, *names)


def _ratio(out: Path, _: dict[str, Any]) -> Outcome:
    curve = read_document(out / "ratio.json", RatioCurve)
    measured = {"peak_ratio": curve.peak, "best_ratio": curve.best, "enough_ratio": curve.enough}
    return _outcome(out, digest_of(curve.model_dump(mode="json")), measured, "ratio.json", refused=curve.skipped is not None)


def _compare(out: Path, _: dict[str, Any]) -> Outcome:
    comparison = read_document(out / "comparison.json", SizeComparison)
    measured = {f"gain_at_{point.num_train}": point.gain for point in comparison.points}
    return _outcome(out, digest_of(comparison.model_dump(mode="json")), measured, "comparison.json")


def _promote(out: Path, _: dict[str, Any]) -> Outcome:
    decision = read_document(out / "decision.json", Decision)
    digest = digest_of(decision.model_dump(mode="json"))
    return _outcome(out, digest, {"promoted": decision.promoted}, "decision.json", "MODEL_CARD.md", refused=not decision.promoted)


_READ: dict[str, Callable[[Path, dict[str, Any]], Outcome]] = {
    "snapshot": _snapshot,
    "reference": _reference,
    "finetune": _finetune,
    "tune": _tune,
    "sample": _sample,
    "validate": _validate,
    "ratio": _ratio,
    "classify": _classify,
    "evaluate": _evaluate,
    "compare": _compare,
    "promote": _promote,
}
