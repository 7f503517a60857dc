"""With and without synthetic images in each training: measured by predictions made by hand, and shown in a table of their own."""

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gda.artifacts.cards import ClassifierCard
from gda.artifacts.document import read_document
from gda.artifacts.evaluation import ClassHarm, GainWithinTraining, Metrics
from gda.config.arm import Arm
from gda.config.load import parse_config
from gda.config.sections import PromoteConfig
from gda.data.store.predictions import Predictions
from gda.evaluation.metrics import measure_arms
from gda.report import page
from gda.report.training_table import TrainingRow, training_rows
from gda.stats.arms import real_alone_as_long
from gda.stats.multiplicity.holm import holm

FIXTURES = Path(__file__).parents[2] / "contract/fixtures"
PASSED = read_document(FIXTURES / "metrics.passed.json", Metrics)
MIXED_VIT, REAL_VIT = Arm("real+synthetic_vit"), Arm("real_vit")
NAMES = ("a", "b", "c", "d")
LABELS = np.repeat(np.arange(4), 10).astype(np.int32)
SEEDS = tuple(range(8))
# Of 40 test images, how many an arm gets right; of each seed one more or less, so that gains are no constants.
RIGHT: Mapping[Arm, int] = {Arm.REAL: 20, Arm.REAL_LONG: 22, Arm.MIXED: 30, REAL_VIT: 10, MIXED_VIT: 12}
ALL = (Arm.REAL, Arm.REAL_LONG, REAL_VIT, Arm.MIXED, MIXED_VIT)


def measured(
    *arms: Arm, updates: Mapping[Arm, int] | None = None, skipped: Arm | None = None, seeds: Mapping[Arm, int] | None = None
) -> Metrics:
    """What is measured of `arms`, of which those that are long took 600 updates and the others 300."""
    cards, top = {}, {}
    for arm in arms:
        for seed in SEEDS[: (seeds or {}).get(arm, len(SEEDS))]:
            cards[arm, seed] = ClassifierCard(
                arm=arm,
                seed=seed,
                skipped="because it was refused" if arm is skipped else None,
                model="vit_tiny" if arm.training == "vit" else "resnet18",
                image_size=16,
                classes=NAMES,
                num_train_steps=(updates or {}).get(arm, 600 if arm.long else 300),
                val_top1=0.5,
                snapshot_digest="s",
            )
            if arm is not skipped:
                right = np.arange(40) * 7 % 40 < RIGHT.get(arm, 25) + seed % 2 * (1 if arm.data.mixes else -1)
                top[arm, seed] = np.stack([np.where(right, LABELS, (LABELS + 1) % 4)] * 2, axis=1).astype(np.int32)
    trainings: dict[str, Any] = {"vit": {"augment": "strong"}}
    config = parse_config(
        {"classify": {"arms": list(arms), "trainings": trainings}, "promote": {"arm": Arm.MIXED if Arm.MIXED in arms else arms[-1]}},
        where="test",
    )
    real: Any = SimpleNamespace(
        classes=[SimpleNamespace(name=name) for name in NAMES],
        index=SimpleNamespace(counts={"train": dict.fromkeys(NAMES, 5)}),
        manifest=lambda split: pd.DataFrame({"label": LABELS}),
        digest="s",
    )
    predictions = Predictions(labels=LABELS, top=top, test_digest="t")
    return measure_arms(config, cards, predictions, real, candidate=None, synthetic=None, verdict=None)


def test_each_architecture_is_compared_with_itself() -> None:
    """Protects the question of each training: a weak architecture gains, though it is far below the other on real images."""
    metrics = measured(*ALL)
    within = metrics.gain_within_training
    assert {arm: (each.rival, each.model) for arm, each in within.items()} == {
        Arm.MIXED: (Arm.REAL_LONG, "resnet18"),
        MIXED_VIT: (REAL_VIT, "vit_tiny"),
    }
    # Odd seeds of what mixes get one more image right, and of real ones one less.
    assert within[Arm.MIXED].gain.mean == pytest.approx((8 + 1) / 40)
    assert within[MIXED_VIT].gain.mean == pytest.approx((2 + 1) / 40)
    assert metrics.gain[MIXED_VIT].mean < 0 < within[MIXED_VIT].gain.mean
    assert [each.gain.p_value for each in within.values()] == [2.0**-7] * 2
    assert [each.p_holm for each in within.values()] == [2.0**-6] * 2


def test_p_values_are_corrected_together() -> None:
    """Protects the correction: by Holm over all lines, whichever their arms, in the order of the lines."""
    metrics = measured(*ALL, Arm.TARGETED, seeds={Arm.TARGETED: 3})
    within = metrics.gain_within_training
    assert list(within) == [Arm.MIXED, MIXED_VIT, Arm.TARGETED]
    assert tuple(each.p_holm for each in within.values()) == holm([each.gain.p_value for each in within.values()])
    assert [each.p_holm for each in within.values()] == [3 * 2.0**-7, 3 * 2.0**-7, 0.25]


def test_a_pair_is_compared_once() -> None:
    """Protects one number for one question: gains that are measured elsewhere are those very objects, and others are not."""
    metrics = measured(*ALL)
    assert metrics.gain_within_training[Arm.MIXED].gain is metrics.gain_over_rivals[Arm.REAL_LONG]
    assert metrics.gain_within_training[MIXED_VIT].gain not in [*metrics.gain.values(), *metrics.gain_over_rivals.values()]
    equal = measured(Arm.REAL, Arm.REAL_LONG, Arm.MIXED, updates={Arm.REAL: 600})
    assert equal.gain_within_training[Arm.MIXED].rival is Arm.REAL
    assert equal.gain_within_training[Arm.MIXED].gain is equal.gain[Arm.MIXED]
    shorter = measured(Arm.REAL, Arm.REAL_LONG, Arm.MIXED, updates={Arm.REAL: 700, Arm.REAL_LONG: 650})
    assert shorter.gain_within_training[Arm.MIXED].rival is Arm.REAL_LONG


@pytest.mark.parametrize(
    "changes",
    [
        {"arms": (Arm.REAL, Arm.REAL_LONG, Arm.REAL_STRONG, Arm.MIXED, MIXED_VIT)},
        {"arms": ALL, "skipped": MIXED_VIT},
        {"arms": ALL, "skipped": REAL_VIT},
        {"arms": ALL, "updates": {REAL_VIT: 599}},
    ],
    ids=["no real arm of its training", "it was skipped", "its rival was skipped", "its rival was shorter"],
)
def test_without_a_fair_rival_nothing_is_reported(changes: dict[str, Any]) -> None:
    """Protects readers from a comparison that says nothing: other settings, fewer updates, or an arm that did not run."""
    assert list(measured(*changes.pop("arms"), **changes).gain_within_training) == [Arm.MIXED]


def test_an_arm_that_did_not_run_is_no_rival() -> None:
    """Protects the gate and the table from metrics that hold updates of an arm without classifiers."""
    skipped = PASSED.arms | {Arm.REAL_LONG: PASSED.arms[Arm.REAL_LONG].model_copy(update={"skipped": "because of the disk"})}
    assert (real_alone_as_long(Arm.MIXED, PASSED.arms), real_alone_as_long(Arm.MIXED, skipped)) == (Arm.REAL_LONG, None)


@pytest.mark.parametrize("name", ["synthetic", "retrieved", "img2img", "real+zero_shot", "real_strong"])
def test_only_validated_images_with_real_ones_are_compared(name: str) -> None:
    """Protects the table from controls, and from images that are not mixed with real ones."""
    arms = [Arm(name)] if name == "real_strong" else [Arm(name), Arm("real_vit"), Arm(f"{name}_vit")]
    assert measured(Arm.REAL, Arm.REAL_LONG, *arms).gain_within_training == {}


def test_metrics_of_before_are_read_and_written_alike() -> None:
    """Protects files of earlier versions, and those of runs without such a pair: they have no such field, and get none."""
    assert PASSED.gain_within_training == {}
    assert "gain_within_training" not in PASSED.model_dump(mode="json")
    assert Metrics.model_validate_json(measured(*ALL).model_dump_json()).gain_within_training.keys() == {Arm.MIXED, MIXED_VIT}


GAIN = PASSED.gain_over_rivals[Arm.REAL_LONG].model_copy(update={"p_value": 0.0078125, "seeds": 8, "differences": (0.01,) * 8})


def compared(p_holm: float = 0.015625, **changes: Any) -> GainWithinTraining:
    """What is recorded of a gain of `GAIN`, with `changes` to it."""
    return GainWithinTraining(rival=REAL_VIT, model="vit_tiny", gain=GAIN, p_holm=0.5).model_copy(
        update={"gain": GAIN.model_copy(update=changes), "p_holm": p_holm}
    )


def metrics_of(first: GainWithinTraining, *others: Arm) -> Metrics:
    """Metrics with `first` of the architecture vit, and those of the plain training."""
    right = dict.fromkeys((*ALL, *others), 0.8) | {Arm.REAL: 0.7, Arm.REAL_LONG: 0.72, REAL_VIT: 0.75}
    arms = {arm: PASSED.arms[Arm.REAL].model_copy(update={"seeds": SEEDS, "top1": (top1,) * 8}) for arm, top1 in right.items()}
    plain = GainWithinTraining(rival=Arm.REAL_LONG, model="resnet18", gain=GAIN, p_holm=0.015625)
    within = {Arm.MIXED: plain, **dict.fromkeys(others, plain), MIXED_VIT: first}
    return PASSED.model_copy(update={"arms": arms, "gain_within_training": within})


def row_of(first: GainWithinTraining, *others: Arm, **promote: Any) -> TrainingRow:
    return training_rows(metrics_of(first, *others), PromoteConfig(**promote))[-1]


def test_a_line_has_everything() -> None:
    """Protects the numbers of a line: accuracies that differ by the gain, its interval, both p-values, harm, and the judgement."""
    rows = training_rows(metrics_of(compared(mean=0.031, ci95=(0.02, 0.04))), PromoteConfig())
    assert [(row.training, row.notes) for row in rows] == [("standard", ("resnet18",)), ("vit", ("vit_tiny",))]
    assert rows[1].cells == ("75.0%", "78.1%", "+3.1 (+2.0 to +4.0)", "0.0078", "0.016", "none")
    assert (rows[1].verdict, rows[1].holds) == ("holds", True)


HARM = ClassHarm(class_name="pear", change=-0.1, p_value=0.01)


@pytest.mark.parametrize(
    ("changes", "promote", "verdict"),
    [
        ({"ci95": (0.0, 0.02)}, {}, "no clear gain"),
        ({"ci95": (-0.01, 0.02)}, {}, "no clear gain"),
        ({"ci95": (-0.03, -0.01)}, {}, "likely worse"),
        ({"ci95": (math.nan, math.nan)}, {}, "no clear gain"),
        ({"p_holm": 0.0501}, {}, "p too large"),
        ({"p_holm": math.nan}, {}, "p too large"),
        ({}, {"alpha": 0.01}, "9 seeds needed"),
        ({"sets": 6, "p_holm": 0.0625}, {}, "7 synthetic sets needed"),
        ({"harmed_classes": (HARM,)}, {}, "harms a class"),
        ({"harmed_classes": (HARM,) * 4}, {}, "harms 4 classes"),
        ({}, {"min_seeds": 9}, "fewer than 9 seeds"),
        ({"seeds": 3}, {}, "too few seeds to say"),
        ({"p_holm": 0.05}, {}, "holds"),
    ],
)
def test_why_a_gain_does_not_hold(changes: dict[str, Any], promote: dict[str, Any], verdict: str) -> None:
    """Protects each condition alone: what misses one does not hold, whatever the others, and the line says which."""
    row = row_of(compared(**changes), **promote)
    assert (row.verdict, row.holds) == (verdict, verdict == "holds")


def test_a_control_with_fewer_seeds_is_a_mean_alone() -> None:
    """Protects readers from an interval, a p-value and classes of two seeds."""
    assert row_of(compared(seeds=2, harmed_classes=(HARM,))).cells[2:] == ("+1.5", "–", "–", "–")


def test_harmed_classes_are_named_while_they_are_few() -> None:
    """Protects the width of the table: up to three names, and their number beyond."""
    assert row_of(compared(harmed_classes=(HARM,) * 3)).cells[-1] == "3: pear, pear, pear"
    assert row_of(compared(harmed_classes=(HARM,) * 1200)).cells[-1] == "1,200"


def test_lines_of_one_training_are_distinguished() -> None:
    """Protects readers from two lines of one name: they stand together, and what else is done with the images is stated."""
    rows = training_rows(metrics_of(compared(), Arm.LAST_LAYER, Arm.MIXED_STRONG, Arm.TARGETED), PromoteConfig())
    assert [(row.training, *row.notes[1:]) for row in rows] == [
        ("standard",),
        ("standard", "synthetic images of hard classes"),
        ("standard", "head on real images at the end"),
        ("strong",),
        ("vit",),
    ]


def rendered(metrics: Metrics) -> str:
    inputs = page.ReportInputs(
        metrics=metrics,
        verdict=None,
        settings=None,
        promote=PromoteConfig(),
        confidence=0.95,
        gate_reasons=(),
        real=SimpleNamespace(index=SimpleNamespace(counts={"train": {"apple": 6, "pear": 6}})),  # type: ignore[arg-type]
    )
    names = ("images", "accuracy", "per_class", "gain")
    return page.render_report(inputs, dict.fromkeys(names, b""))


def test_the_page_shows_two_trainings_and_is_unchanged_by_one() -> None:
    """Protects the pages of runs with one training, to the byte; with two there is a table, and what it does not decide."""
    both = metrics_of(compared())
    text = rendered(both)
    assert "<h3>With and without synthetic images, training by training</h3>" in text
    assert '<td><b>vit</b><br><span class="note">vit_<wbr>tiny</span></td>' in text
    assert text.count('<td class="mark pass">✓ holds</td>') == 2
    assert "corrected p is at most 0.05, no class is harmed, and at least 6 seeds were compared" in text
    assert "only the declared arm, “real + synthetic”, can be promoted, and the gate checks it alone" in text
    none = rendered(both.model_copy(update={"gain_within_training": {}}))
    one = rendered(both.model_copy(update={"gain_within_training": {Arm.MIXED: both.gain_within_training[Arm.MIXED]}}))
    assert one == none
    start = text.index("\n<h3>With and without")
    end = text.index("\n<h2>", start + 1)
    assert text[:start] + text[end:] == none
