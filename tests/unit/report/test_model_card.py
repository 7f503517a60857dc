"""The candidate's card: what hubs parse of it, what people read, and names that would break it."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from gda.artifacts.cards import ClassifierCard
from gda.artifacts.decision import Decision
from gda.artifacts.document import read_document
from gda.artifacts.evaluation import ClassHarm, Confusion, Metrics
from gda.artifacts.verdict import Verdict
from gda.config.sections import Arm
from gda.report.model_card import describe_candidate, model_card

FIXTURES = Path(__file__).resolve().parents[2] / "contract" / "fixtures"
HOSTILE = 'a|b`c*\n# "quoted": {x} <b> [y](z) _u_'


def metrics_with(**changes: object) -> Metrics:
    held = read_document(FIXTURES / "metrics.passed.json", Metrics)
    return held.model_copy(update=changes)


def card_of(metrics: Metrics, **changes: object) -> ClassifierCard:
    fields = {
        "arm": Arm.MIXED,
        "seed": metrics.arms[Arm.MIXED].seeds[0],
        "model": "resnetv2_18",
        "image_size": 28,
        "classes": metrics.classes,
        "num_train_steps": 400,
        "val_top1": 0.95,
        "digest": "a" * 64,
        "snapshot_digest": metrics.snapshot_digest,
        "synthetic_digest": "b" * 64,
        "base_licence": "apache-2.0",
    }
    return ClassifierCard.model_validate(fields | changes)


def decision(**changes: object) -> Decision:
    fields = {"promoted": False, "reasons": ("the gain is not clear",), "candidate": None, "rival": "real", "model_name": "digits"}
    return Decision.model_validate(fields | changes)


def front_matter(text: str) -> dict:
    head = text.split("---\n")[1]
    return YAML(typ="safe", pure=True).load(head)


@pytest.mark.parametrize("name", ["digits", HOSTILE])
def test_hubs_can_read_the_front_matter(name: str) -> None:
    """Protects uploads: valid YAML whatever the model is called, with licence, library and the accuracy of this very seed."""
    metrics = metrics_with()
    held = front_matter(model_card(card_of(metrics), metrics, None, decision(model_name=name)))
    assert (held["license"], held["library_name"]) == ("apache-2.0", "timm")
    (index,) = held["model-index"]
    assert index["name"] == name
    assert index["results"][0]["metrics"][0]["value"] == metrics.arms[Arm.MIXED].top1[0]


def test_every_arm_is_a_row_of_one_table() -> None:
    """Protects the table from class names and reasons with bars in them: each row has as many cells as its head."""
    metrics = metrics_with()
    skipped = metrics.arms[Arm.SYNTHETIC].model_copy(update={"mean": None, "ci95": None, "skipped": "because a|b"})
    metrics = metrics.model_copy(update={"arms": metrics.arms | {Arm.SYNTHETIC: skipped}})
    rows = [line for line in model_card(card_of(metrics), metrics, None, decision()).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(metrics.arms)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}
    assert sum("not run: because a\\|b" in row for row in rows) == 1


def test_what_a_reader_must_know_is_stated() -> None:
    """Protects against a card that only praises: harm, confusions, calibration, the gate's reasons and what could not be seen."""
    metrics = metrics_with()
    gain = metrics.gain[Arm.MIXED].model_copy(
        update={
            "harmed_classes": (ClassHarm(class_name=HOSTILE, change=-0.021, p_value=0.01),),
            "smallest_visible_harm": 0.034,
            "minimal_detectable_effect": 0.012,
        }
    )
    result = metrics.arms[Arm.MIXED]
    per_class = tuple(0.5 if label == 1 else 0.9 for label in range(len(metrics.classes)))
    confused = (Confusion(class_name="x_y", predicted="z", share=0.125),)
    result = result.model_copy(update={"per_class": per_class, "most_confused": confused, "ece": (0.02, 0.04)})
    metrics = metrics.model_copy(update={"gain": metrics.gain | {Arm.MIXED: gain}, "arms": metrics.arms | {Arm.MIXED: result}})
    text = model_card(card_of(metrics, base_licence="unknown", targets=("a",)), metrics, None, decision())
    for expected in (
        "is significantly worse: \N{MINUS SIGN}2.1 points",
        "12.5% of x\\_y are taken for z",
        "off by 3.0 points",
        "Harm to a single class below 3.4 points would not have shown",
        "A gain below 1.2 points",
        "Not promoted: the gain is not clear.",
        "There was no verdict on synthetic images.",
        "unknown (it was not stated)",
        "synthetic images of these classes alone: a",
        f"The worst class is {metrics.classes[1]}: 50.0%",
    ):
        assert expected in text
    assert 'Against real images alone, a\\|b\\`c\\* \\# "quoted": {x}' in text, "escaped, and on one line"
    assert "<b>" not in text
    assert not re.search(r"^# .*quoted", text, re.MULTILINE)


def test_the_verdict_is_stated() -> None:
    """A passed set is stated with the measures that have limits, a refused one with its reasons."""
    metrics, verdict = metrics_with(), read_document(FIXTURES / "verdict.passed.json", Verdict)
    passed = verdict.model_copy(update={"passed": True, "reasons": ()})
    text = model_card(card_of(metrics), metrics, passed, decision(promoted=True, reasons=()))
    assert "The synthetic set passed validation (" in text
    assert "Promoted: better than real" in text
    assert "Assessed: " in text
    refused = verdict.model_copy(update={"passed": False, "reasons": ("FID 9 is above 6.",)})
    assert "was refused by validation" in (text := model_card(card_of(metrics), metrics, refused, decision()))
    assert "FID 9 is above 6." in text


def test_the_description_fits_a_registry() -> None:
    """A registry's list shows it whole: one paragraph, at most 1,000 characters, with the gain and the gate's word."""
    metrics = metrics_with()
    short = describe_candidate(card_of(metrics), metrics, decision())
    assert "Gain over real images alone" in short
    assert "did not pass the promotion gate: the gain is not clear." in short
    long = describe_candidate(card_of(metrics), metrics, decision(reasons=("x" * 3000,)))
    assert len(long) == 1000
    assert "\n" not in long


def test_many_classes_are_cut() -> None:
    """A thousand names would bury everything else."""
    metrics = metrics_with()
    text = model_card(card_of(metrics, classes=tuple(f"class {i}" for i in range(1000))), metrics, None, decision())
    assert "class 29 and 970 more" in text
    assert "class 30," not in text
