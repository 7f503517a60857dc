"""The validation page: one self-contained HTML file with the verdict, the numbers and pictures of the worst cases."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import torch
from PIL import Image

from gda.artifacts.verdict import Measure, Verdict
from gda.data.images.codecs import encode_png
from gda.gate.checks.leaks import Leak
from gda.gate.inspection import Inspection

SHOWN = 16  # pictures per section
_LARGEST_PX = 96
_GROUP_SHOWN = 4  # pictures of a group of duplicates
_PAIRS_SHOWN = 5
_SHARES = ("fraction", "agreement", "gap", "near_", "precision", "recall", "coverage")
MEANING = {
    "fid": "distance of feature distributions (Frechet); smaller is closer to the real images",
    "fid_train": "the same against train alone; much smaller than against val indicates memorisation",
    "kid": "kernel distance of feature distributions, unbiased in the number of images",
    "precision": "share of synthetic images that lie among the real ones",
    "recall": "share of real images that lie among the synthetic ones",
    "density": "how many real neighbourhoods a synthetic image falls into, 1 is as real",
    "coverage": "share of real images with a synthetic one in their neighbourhood",
    "vendi": "effective number of different images, by the features; larger is more diverse",
    "inception_score": "Inception Score of the classes that classifiers trained on real images see; larger is surer and more diverse",
    "label_agreement": "labels confirmed by classifiers trained on real images",
    "label_agreement_worst_class": "the same in the class that is confirmed least",
    "confident_disagreement": "labels that contradict what those classifiers are as sure of as of real images (confident learning)",
    "soft_label_gap": "how much more often soft-labelled images show their first class than their weights say; 0 is honest",
    "text_alignment": "mean cosine of images and their prompts; larger is closer to the prompts",
    "copy_fraction": "memorisation rate: images closer to a training image than held-out real images come",
    "duplicate_fraction": "images that repeat another one of the set exactly",
    "near_duplicate_fraction": "images that repeat another one but for encoding, size, mirroring or light",
    "exact_train": "images that are a train image, pixel for pixel",
    "exact_val": "images that are a val image, pixel for pixel",
    "exact_test": "images that are a test image, pixel for pixel",
    "near_train": "images that are a train image but for encoding, size, mirroring or light",
    "near_val": "images that are a val image but for encoding, size, mirroring or light",
    "near_test": "images that are a test image but for encoding, size, mirroring or light",
    "images": "images in the set",
    "class_ratio": "images of the largest class over those of the smallest",
    "undecodable": "images that do not decode to the last byte",
    "failed_expectations": "structural expectations that failed",
    "kid_worst_class": "kernel distance within the class that is furthest above its floor",
    "mean_distance_worst_class": "mean distance between images of the least diverse class, compared with that of its real images",
    "coverage_worst_class": "coverage within the class that has least to spare under its limit",
    "recall_worst_class": "the same of recall: a class of a few pictures recalls next to none of its real images",
    "fid_reference": "distance to the statistics of validate.reference_statistics",
}
_COMPARED = ("fid", "kid", "precision", "recall", "density", "coverage", "vendi", "inception_score")
MEANING |= {f"{name}_val": "the same against val alone; real against real: train against val" for name in _COMPARED}
MEANING |= {
    f"{name}_at_class_size": "the same with as few images as a class has, compared with real images of one class" for name in _COMPARED
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A few pictures side by side (data URIs) with the lines under them."""

    pictures: Sequence[str]
    caption: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class PageSection:
    """A heading, an explanation, the figures shown and how many more there are."""

    title: str
    explanation: str
    figures: Sequence[Figure]
    more: int = 0


def render_page(verdict: Verdict, found: Inspection, classes: pd.DataFrame) -> str:
    """The page as HTML text; `classes` is the table of `class_table`. Equal input gives equal text."""
    folder = Path(__file__).parent / "templates"
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("validation.html").render(
        verdict=verdict,
        images=len(found.subjects.audit.table),
        metrics=[_metric_row(name, verdict.metrics[name], _before(verdict, name)) for name in MEANING if name in verdict.metrics],
        classes=_class_rows(classes),
        sections=[_disputed(found), _nearest(found), _leaked(found), _repeated(found)],
        provenance=_provenance(verdict),
        docs=found.structure is not None,
    )


def class_table(found: Inspection, names: Sequence[str], floors: Sequence[float | None]) -> pd.DataFrame:
    """A row per class of the real set: images, label agreement, that of unseen real images, and images flagged as copies.

    KID, coverage, recall and mean distance with their interval; `_real` is the same of real images, `compared` images on each side.
    """
    rows = []
    for label, name in enumerate(names):
        in_class = found.subjects.labels == label
        estimate = found.labels.agreement.by_class[label] if found.labels is not None else None
        rows.append(
            {
                "class": name,
                "images": int((found.subjects.audit.table["class"] == name).sum()),
                "label_agreement": None if estimate is None else estimate.value,
                "label_agreement_real": floors[label],
                "flagged_copies": int(found.copies.flagged[in_class].sum()) if found.copies is not None else None,
                **_class_closeness(found, label),
            }
        )
    return pd.DataFrame(rows)


def _class_closeness(found: Inspection, label: int) -> dict[str, float | None]:
    measured = found.closeness.by_class[label] if found.closeness is not None else None
    row: dict[str, float | None] = {"compared": None if measured is None else measured["kid"].n}
    for name in ("kid", "coverage", "recall", "mean_distance"):
        ends = ("", "_low", "_high", "_real")
        if measured is None:
            row |= {f"{name}{end}": None for end in ends}
            continue
        estimate, floor = measured[name].estimate, measured[name].floor
        row |= dict(zip((f"{name}{end}" for end in ends), (estimate.value, estimate.low, estimate.high, floor.value), strict=True))
    return row


def suspect_table(found: Inspection, names: Sequence[str]) -> pd.DataFrame:
    """A row per disputed label, most confidently disputed first."""
    keys = _keys(found)
    suspects = found.labels.agreement.suspects if found.labels is not None else ()
    columns = ["key", "class", "seen_as", "probability", "probability_of_class", "confident"]
    rows = [
        (keys[s.position], _name(names, s.label), names[s.predicted], s.probability, s.own_probability, int(s.confident)) for s in suspects
    ]
    return pd.DataFrame(rows, columns=columns)


def _disputed(found: Inspection) -> PageSection:
    names, suspects = found.subjects.real["train"].classes, found.labels.agreement.suspects if found.labels is not None else ()
    figures = [
        Figure(
            pictures=[_picture(found.subjects.audit.images[s.position])],
            caption=[f"{_name(names, s.label)}?", f"{names[s.predicted]} {s.probability:.0%}"],
        )
        for s in suspects[:SHOWN]
    ]
    explanation = (
        "What the label says, and below it what classifiers trained on real images see: first where they are as sure of it as of real "
        "images of that class." + _confusions(found, names)
    )
    return PageSection(title="Disputed labels", explanation=explanation, figures=figures, more=max(0, len(suspects) - SHOWN))


def _confusions(found: Inspection, names: Sequence[str]) -> str:
    pairs = found.labels.agreement.confusions(_PAIRS_SHOWN) if found.labels is not None else []
    frequent = [f"{_name(names, label)} seen as {names[seen]} ({count})" for label, seen, count in pairs]
    return f" Most often: {', '.join(frequent)}." if frequent else ""


def _nearest(found: Inspection) -> PageSection:
    explanation = (
        "Synthetic left, nearest training image right. Nearness below 1 is closer than held-out real images come, and counts as a copy. "
        "Tried on planted copies, this finds most that were re-encoded, mirrored, cropped to 80% of the side or more, turned by up to 12 "
        "degrees, shifted or lit differently; of pictures with hardly any contrast it misses about half, and of pasted parts nothing is "
        "known. benchmarks/README.md has the figures."
    )
    if found.copies is None:
        return PageSection(title="Nearest training images", explanation=explanation, figures=[])
    order = np.argsort(found.copies.nearness, kind="stable")[:SHOWN]
    train = found.subjects.real["train"].images
    figures = [
        Figure(
            pictures=[_picture(found.subjects.audit.images[i]), _picture(train[found.copies.neighbour[i]])],
            caption=[_keys(found)[i], f"nearness {found.copies.nearness[i]:.2f}"],
        )
        for i in order
    ]
    return PageSection(title="Nearest training images", explanation=explanation, figures=figures)


def _leaked(found: Inspection) -> PageSection:
    # Exact ones first, then held-out splits before train, because they decide.
    leaks = sorted(found.leaks, key=lambda leak: (not leak.exact, leak.split == "train", leak.split, leak.query))
    explanation = "Synthetic left, real right: the same picture pixel for pixel, or but for encoding, size, mirroring or light."
    figures = [_leak_figure(found, leak) for leak in leaks[:SHOWN]]
    return PageSection(title="Images of real splits", explanation=explanation, figures=figures, more=max(0, len(leaks) - SHOWN))


def _leak_figure(found: Inspection, leak: Leak) -> Figure:
    real = found.subjects.real[leak.split]
    pictures = [_picture(found.subjects.audit.images[leak.query]), _picture(real.images[leak.reference])]
    return Figure(
        pictures=pictures,
        caption=[_keys(found)[leak.query], f"{leak.split} {real.keys[leak.reference]}", "exact" if leak.exact else "near"],
    )


def _repeated(found: Inspection) -> PageSection:
    images, keys = found.subjects.audit.images, _keys(found)
    figures = [
        Figure(pictures=[_picture(images[row]) for row in rows[:_GROUP_SHOWN]], caption=[f"{len(rows)} images", keys[rows[0]]])
        for rows in found.repeated[:SHOWN]
    ]
    explanation = "Synthetic images that show one picture, exactly or but for encoding, size, mirroring or light, largest group first."
    return PageSection(title="Duplicates", explanation=explanation, figures=figures, more=max(0, len(found.repeated) - SHOWN))


def _picture(image: torch.Tensor) -> str:
    """A data URI of a uint8 [3, h, w] image, at most 96 pixels wide."""
    pixels = image.permute(1, 2, 0).numpy()
    if pixels.shape[0] > _LARGEST_PX:
        pixels = np.asarray(Image.fromarray(pixels).resize((_LARGEST_PX, _LARGEST_PX), Image.Resampling.BOX))
    return "data:image/png;base64," + base64.b64encode(encode_png(pixels)).decode()


def _before(verdict: Verdict, name: str) -> Measure | None:
    return verdict.filtering.metrics.get(name) if verdict.filtering is not None else None


def _metric_row(name: str, measure: Measure, before: Measure | None) -> dict[str, Any]:
    def shown(value: float | None) -> str:
        if value is None:
            return "–"
        return f"{value:.1%}" if any(part in name for part in _SHARES) else f"{value:.4g}"

    interval = f"{shown(measure.low)} to {shown(measure.high)}" if measure.low is not None else "–"
    numbers = {"value": shown(measure.value), "interval": interval, "floor": shown(measure.floor), "limit": shown(measure.limit)}
    numbers["one_class"] = shown(measure.one_class)
    numbers["before"] = shown(None if before is None else before.value)
    return {"name": name, "meaning": MEANING[name], "passed": measure.passed, "n": measure.n or "–", **numbers}


def _class_rows(classes: pd.DataFrame) -> list[dict[str, Any]]:
    largest = max(1, int(classes["images"].max())) if len(classes) else 1
    return [
        {
            "name": row["class"],
            "images": row["images"],
            "width": round(100 * row["images"] / largest),
            "agreement": _shown(row["label_agreement"], ".1%"),
            "floor": _shown(row["label_agreement_real"], ".1%"),
            "flagged": row["flagged_copies"],
            "kid": f"{_shown(row['kid'], '.3g')} ({_shown(row['kid_real'], '.3g')})",
            "coverage": f"{_shown(row['coverage'], '.1%')} ({_shown(row['coverage_real'], '.1%')})",
            "recall": f"{_shown(row['recall'], '.1%')} ({_shown(row['recall_real'], '.1%')})",
            "distance": f"{_shown(row['mean_distance'], '.3g')} ({_shown(row['mean_distance_real'], '.3g')})",
        }
        for row in classes.to_dict("records")
    ]


def _shown(value: float | None, form: str) -> str:
    return "–" if pd.isna(value) else format(value, form)


def _provenance(verdict: Verdict) -> list[tuple[str, str]]:
    fid = verdict.metrics.get("fid")
    parts = [("synthetic set", verdict.synthetic_digest), ("real set", verdict.real_digest)]
    if fid is not None and fid.extractor is not None:
        parts += [("extractor", fid.extractor), ("reference", fid.reference_digest or "–")]
    return parts


def _keys(found: Inspection) -> list[str]:
    return found.subjects.audit.table["key"].iloc[found.subjects.audit.rows].tolist()


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if label >= 0 else "unknown class"
