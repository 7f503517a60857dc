"""The card of the candidate, in the form that model hubs read: Markdown with a front matter, from recorded numbers alone."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from gda.artifacts.cards import ClassifierCard
from gda.artifacts.decision import Decision
from gda.artifacts.evaluation import Gain, Metrics
from gda.artifacts.verdict import Verdict
from gda.config.arm import in_order
from gda.report.wording import arm_name, count, gain_cells, interval, number, opened, p_value, percent, points

MODEL_CARD_FILE = "MODEL_CARD.md"
_MOST_CLASSES = 30  # named in full
_MOST_DESCRIPTION = 1000  # characters


def model_card(card: ClassifierCard, metrics: Metrics, verdict: Verdict | None, decision: Decision) -> str:
    """The whole card of the candidate that `card` describes; equal inputs give equal text."""
    parts = [
        _front_matter(card, metrics, decision),
        f"# {_text(decision.model_name)}",
        describe_candidate(card, metrics, decision),
        "## Use",
        _use(card, decision),
        "## What it was trained on",
        _bullets(_trained_on(card, metrics)),
        "## How good it is",
        _arms(metrics),
        "Accuracy on real test images, mean over seeds; gains are paired by seed and image. Intervals: "
        f"{_text(metrics.measured_with.get('intervals', 'bootstrap'))}; p: {_text(metrics.measured_with.get('p-value', 'sign flips'))}.",
        "## Limits",
        _bullets(_limits(card, metrics)),
        "## Decision",
        _bullets(_decided(metrics, verdict, decision)),
        "## Where the numbers are from",
        _bullets(_digests(card, metrics)),
    ]
    return "\n\n".join(parts) + "\n"


def describe_candidate(card: ClassifierCard, metrics: Metrics, decision: Decision) -> str:
    """The card in a few sentences, at most 1,000 characters: the description of a version in the registry."""
    result = metrics.arms[card.arm]
    own = percent(result.top1[result.seeds.index(card.seed)])
    gain = metrics.gain.get(card.arm)
    summary = (
        f"{card.model} that distinguishes {len(card.classes)} classes in images of {card.image_size} "
        f"pixels, trained as “{arm_name(card.arm)}”, seed {card.seed}: {own} of {count(metrics.num_test, 'real test image')} right, "
        f"{percent(result.mean)} in the mean over {count(len(result.seeds), 'seed')}."
    )
    if gain is not None:
        summary += f" Gain over real images alone: {_gain(gain)}."
    if decision.promoted:
        summary += " It passed the promotion gate."
    else:
        summary += " It did not pass the promotion gate: " + "; ".join(reason.rstrip(".") for reason in decision.reasons) + "."
    summary = _text(summary)
    return summary if len(summary) <= _MOST_DESCRIPTION else summary[: _MOST_DESCRIPTION - 1].rstrip("\\ ") + "…"


def _front_matter(card: ClassifierCard, metrics: Metrics, decision: Decision) -> str:
    result = metrics.arms[card.arm]
    held: dict[str, Any] = {
        "license": card.base_licence.lower(),
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "synthetic-data", str(card.arm)],
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": decision.model_name,
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"type": "snapshot", "name": metrics.snapshot_digest[:12], "split": "test"},
                        "metrics": [{"type": "accuracy", "value": result.top1[result.seeds.index(card.seed)]}],
                    }
                ],
            }
        ],
    }
    # JSON is YAML 1.2, and escapes special characters in names.
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in held.items()), "---"])


def _use(card: ClassifierCard, decision: Decision) -> str:
    model = f"models:/{decision.model_name}/{decision.model_version}" if decision.model_version else "models:/NAME/VERSION"
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (card.mean, card.std))
    return "\n".join(
        [
            "```python",
            "import mlflow",
            "import timm",
            "",
            f"model = mlflow.pyfunc.load_model({json.dumps(model)})  # uint8 images, NHWC, of any size, to probabilities",
            'network = timm.create_model("local-dir:CLASSIFIER", pretrained=True)  # the folder itself, to logits',
            "```",
            "",
            f"The network takes RGB images of {card.image_size} x {card.image_size} pixels, brought there by "
            f"{card.interpolation or 'lanczos'} resampling, less {mean} and divided by {std} where white is 1. "
            "`gda export CLASSIFIER --to onnx --out FILE` writes it for ONNX Runtime.",
            "",
            f"Classes in the order of its outputs: {_classes(card.classes)}.",
        ]
    )


def _trained_on(card: ClassifierCard, metrics: Metrics) -> Iterator[str]:
    if metrics.num_train is not None and card.arm not in ("synthetic", "zero_shot"):
        yield f"{count(metrics.num_train, 'real image')}, snapshot `{metrics.snapshot_digest[:12]}`"
    if card.synthetic_digest is not None:
        images = count(metrics.num_synthetic, "synthetic image") if metrics.num_synthetic is not None else "synthetic images"
        yield (
            f"{images}, snapshot `{card.synthetic_digest[:12]}`, of a generator whose base has the licence "
            f"{_text(card.base_licence)}" + (" (it was not stated)" if card.base_licence == "unknown" else "")
        )
    if card.targets is not None:
        yield f"synthetic images of these classes alone: {_classes(card.targets)}"
    if card.synthetic_parts > 1:
        yield f"one of {card.synthetic_parts} parts of the synthetic images, its seed's own"
    if card.pool_digest is not None:
        yield f"more real images from a pool, snapshot `{card.pool_digest[:12]}`"
    yield f"started from {'random weights' if card.pretrained is None else f'pretrained weights, file `{card.pretrained[:12]}`'}"
    yield f"{count(card.num_train_steps, 'optimizer step')}; the best of its seeds on validation images ({percent(card.val_top1)})"


def _arms(metrics: Metrics) -> str:
    rows = [("Trained on", "Accuracy", "Interval", "Gain over real", "p", "Seeds")]
    for arm in in_order(metrics.arms):
        result = metrics.arms[arm]
        gain = metrics.gain.get(arm)
        if result.mean is None or result.ci95 is None:
            rows.append((arm_name(arm), "–", f"not run: {result.skipped or 'unknown'}", "–", "–", "0"))
            continue
        own = (percent(result.mean), f"{percent(result.ci95[0])} to {percent(result.ci95[1])}")
        over = gain_cells(metrics, gain)
        rows.append((arm_name(arm), *own, *over, str(len(result.seeds))))
    return _table(rows)


def _limits(card: ClassifierCard, metrics: Metrics) -> Iterator[str]:
    result, gain = metrics.arms[card.arm], metrics.gain.get(card.arm)
    worst = min(range(len(metrics.classes)), key=lambda label: result.per_class[label])
    yield f"The worst class is {_text(metrics.classes[worst])}: {percent(result.per_class[worst])} of its test images are right."
    for pair in result.most_confused[:3]:
        yield f"{percent(pair.share)} of {_text(pair.class_name)} are taken for {_text(pair.predicted)}."
    if result.ece:
        mean = sum(result.ece) / len(result.ece)
        yield f"Its stated probabilities are off by {100 * mean:.1f} points in the mean (expected calibration error)."
    for harm in gain.harmed_classes if gain is not None else ():
        yield f"Against real images alone, {_text(harm.class_name)} is significantly worse: {points(harm.change)} points."
    if gain is not None and gain.smallest_visible_harm is not None:
        yield f"Harm to a single class below {100 * gain.smallest_visible_harm:.1f} points would not have shown."
    if gain is not None and gain.minimal_detectable_effect is not None:
        yield f"A gain below {100 * gain.minimal_detectable_effect:.1f} points would most likely not have been confirmed."
    for name, found in metrics.sets.items():
        if (own := found.arms.get(card.arm)) is not None:
            yield f"Of the {count(found.num_images, 'image')} from elsewhere in the set {_text(name)}, {percent(own.mean)} are right."
    if (metrics.test_openings or 0) > 1:
        yield f"Its test split was opened {opened(metrics.test_openings)}."
    yield "It was tested on images of the same source as those it was trained on; accuracy on images from elsewhere may be lower."


def _decided(metrics: Metrics, verdict: Verdict | None, decision: Decision) -> Iterator[str]:
    if decision.promoted:
        yield f"Promoted: better than {_text(decision.rival)} by interval and by test, and no class is significantly worse."
    else:
        yield "Not promoted: " + "; ".join(_text(reason.rstrip(".")) for reason in decision.reasons) + "."
    if verdict is None:
        yield "There was no verdict on synthetic images."
        return
    limited = {name: measure for name, measure in verdict.metrics.items() if measure.passed is not None}
    state = "passed" if verdict.passed else "was refused by"
    yield f"The synthetic set {state} validation" + (f" ({count(len(limited), 'check')})" if limited else "") + "."
    if limited:
        values = (f"{_text(name.replace('_', ' '))} {number(measure.value)}" for name, measure in limited.items())
        yield "Assessed: " + ", ".join(values) + "."
    for reason in verdict.reasons:
        yield _text(reason)


def _digests(card: ClassifierCard, metrics: Metrics) -> Iterator[str]:
    yield f"this classifier: `{card.digest}`"
    yield f"real snapshot: `{metrics.snapshot_digest}`, its test split `{metrics.test_digest}`"
    if card.synthetic_digest is not None:
        yield f"synthetic snapshot: `{card.synthetic_digest}`"
    for name, value in metrics.measured_with.items():
        yield f"{_text(name)}: {_text(value)}"


def _gain(gain: Gain) -> str:
    return f"{points(gain.mean)} points ({interval(gain.ci95)}, {p_value(gain.p_value)}, {count(gain.seeds, 'seed')})"


def _classes(names: Sequence[str]) -> str:
    listed = ", ".join(_text(name) for name in names[:_MOST_CLASSES])
    return listed if len(names) <= _MOST_CLASSES else f"{listed} and {len(names) - _MOST_CLASSES} more, in `classifier.json`"


def _bullets(lines: Iterator[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ([_text(cell) for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def _text(text: str) -> str:
    """On one line, with the special characters of Markdown and HTML escaped."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(text.split()))
