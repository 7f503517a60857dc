"""Groups and top-5 in metrics.json and on the page: from predictions made by hand, named plainly, and absent where they say nothing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gda.artifacts.document import read_document
from gda.artifacts.evaluation import ArmResult, GroupResult, Metrics, SetArm, SetGain
from gda.config.load import Config, parse_config
from gda.config.sections import Arm, EvaluateConfig
from gda.data.store.predictions import Predictions
from gda.errors import UsageError
from gda.evaluation import group_metrics
from gda.report.group_tables import group_rows, top_rows

FIXTURES = Path(__file__).parents[2] / "contract/fixtures"
PASSED = read_document(FIXTURES / "metrics.passed.json", Metrics)
NAMES = ("a", "b", "c", "d", "e", "f")
LABELS = np.repeat(np.arange(6), 4).astype(np.int32)


def predictions() -> Predictions:
    """Two seeds of both arms: real is right on the first three images of a class, the arm on all but class 5; all are right within five."""
    first = {Arm.REAL: np.arange(24) % 4 < 3, Arm.MIXED: LABELS < 5}
    top = {}
    for arm, right in first.items():
        for seed in range(2):
            best = np.where(right, LABELS, (LABELS + 1) % 6)
            second = np.where(right, (LABELS + 1) % 6, LABELS)
            top[arm, seed] = np.stack([best, second], axis=1).astype(np.int32)
    return Predictions(labels=LABELS, top=top, test_digest="t")


def snapshot(train: tuple[int, ...] = (500, 120, 60, 40, 10, 5), groups: list[Any] | None = None) -> Any:
    """What is read of a snapshot: names, training images, and the manifest of the test split."""
    rows = pd.DataFrame({"label": LABELS} | ({} if groups is None else {"group": groups}))
    return SimpleNamespace(
        classes=[SimpleNamespace(name=name) for name in NAMES],
        index=SimpleNamespace(counts={"train": dict(zip(NAMES, train, strict=True))}),
        manifest=lambda split: rows,
    )


def results(real: Any, **evaluate: Any) -> dict[str, GroupResult]:
    config = Config(evaluate=EvaluateConfig(num_resamples=200, **evaluate))
    return group_metrics.group_results(config, predictions(), real, {Arm.REAL: 1, Arm.MIXED: 1})


def test_every_group_is_measured_for_every_arm() -> None:
    """Protects the numbers by hand: real is right 3 times in 4 everywhere, the arm always but for class 5, one of two few-shot classes."""
    found = results(snapshot())
    assert list(found) == [
        "balanced accuracy",
        "many-shot (over 100)",
        "medium-shot (20 to 100)",
        "few-shot (under 20)",
        "worst class",
    ]
    assert {name: (each.arms[Arm.REAL].mean, each.arms[Arm.MIXED].mean) for name, each in found.items()} == {
        "balanced accuracy": (0.75, pytest.approx(5 / 6)),
        "many-shot (over 100)": (0.75, 1.0),
        "medium-shot (20 to 100)": (0.75, 1.0),
        "few-shot (under 20)": (0.75, 0.5),
        # Classes are alike for real, so the first is its worst: its odd half is chosen in the even one and the other way round.
        "worst class": (0.75, 1.0),
    }
    few = found["few-shot (under 20)"]
    assert (few.kind, few.num_images, few.num_classes) == ("frequency", 8, 2)
    assert few.arms[Arm.REAL].gain is None
    assert few.arms[Arm.MIXED].gain is not None
    assert few.arms[Arm.MIXED].gain.mean == pytest.approx(-0.25)
    assert few.arms[Arm.MIXED].gain.seeds == 2


def test_cuts_and_tail_are_configured() -> None:
    """Protects the settings: other cuts are other groups, one bin alone is left out, a third of six classes are two."""
    assert [name for name in results(snapshot(), shot_cuts=(50, 50)) if "shot" in name] == ["many-shot (over 50)", "few-shot (under 50)"]
    assert not [name for name in results(snapshot((30,) * 6)) if "shot" in name]
    assert "worst 2 classes" in results(snapshot(), worst_share=0.3)
    with pytest.raises(UsageError, match="the smaller one first"):
        parse_config({"evaluate": {"shot_cuts": [100, 20]}}, where="params.yaml")


def test_groups_of_the_manifest() -> None:
    """Protects groups of the user's: a mean over their images, images without one in none; a single one, or many, are no comparison."""
    found = results(snapshot(groups=["night"] * 4 + ["day"] * 16 + [None, ""] + ["night"] * 2))
    given = {name: each for name, each in found.items() if each.kind == "given"}
    assert {name: each.num_images for name, each in given.items()} == {"group day": 16, "group night": 6}
    assert given["group night"].arms[Arm.MIXED].mean == pytest.approx(4 / 6)
    assert not [each for each in results(snapshot(groups=["day"] * 24)).values() if each.kind == "given"]
    assert not [each for each in results(snapshot(groups=list(range(24)))).values() if each.kind == "given"]


def test_top5_gains_are_paired() -> None:
    """Protects the gain in top-5 from being that of top-1: within five all are right, so that it is 0."""
    gains = group_metrics.top5_gains(Config(), predictions(), {Arm.REAL: 1, Arm.MIXED: 1})
    assert {arm: (gain.mean, gain.seeds) for arm, gain in gains.items()} == {Arm.MIXED: (0.0, 2)}


GAIN = SetGain(mean=0.1, ci95=(0.05, 0.15), p_value=0.5, seeds=6)


def with_groups() -> Metrics:
    arms = {
        Arm.REAL: SetArm(seeds=(0, 1), top1=(0.5, 0.5), mean=0.5, ci95=(0.4, 0.6)),
        Arm.MIXED: SetArm(seeds=(0, 1), top1=(0.6, 0.6), mean=0.6, ci95=(0.5, 0.7), gain=GAIN),
    }
    group = GroupResult(kind="frequency", num_images=1200, num_classes=1, arms=arms)
    top = {arm: result.model_copy(update={"ci95_top5": (0.98, 1.0)}) for arm, result in PASSED.arms.items() if result.skipped is None}
    update = {"groups": {"few-shot (under 20)": group}, "arms": top, "gain_top5": {Arm.MIXED: GAIN}, "classes": NAMES}
    return PASSED.model_copy(update=update)


def test_the_table_of_groups_says_what_was_measured() -> None:
    """Protects readers from a gain without its interval and from a group without its size."""
    (group,) = group_rows(with_groups())
    assert (group.name, group.measured) == ("few-shot (under 20)", "1,200 images of 1 class")
    assert group.rows == (
        ("real only", "2", "50.0%", "40.0 to 60.0", "–", "–"),
        ("real + synthetic", "2", "60.0%", "50.0 to 70.0", "+10.0 (+5.0 to +15.0)", "p = 0.5"),
    )


@pytest.mark.parametrize(("off", "shown"), [(0.0, 0), (1e-12, 0), (1e-4, 1)])
def test_balanced_accuracy_is_shown_where_it_is_not_top1(off: float, shown: int) -> None:
    """Protects the page from the same numbers twice, and from leaving them out where classes have unequally many test images."""
    same = {
        arm: SetArm(seeds=(0,), top1=(0.5,), mean=(PASSED.arms[arm].mean or 0.0) + off, ci95=(0.4, 0.6)) for arm in (Arm.REAL, Arm.MIXED)
    }
    group = GroupResult(kind="balanced", num_images=10, num_classes=2, arms=same)
    assert len(group_rows(PASSED.model_copy(update={"groups": {"balanced accuracy": group}}))) == shown


def test_the_table_of_top5_has_both_intervals_and_the_gain() -> None:
    """Protects top-5 from being a number without an interval; with five classes it is always 100% and left out."""
    rows = {row[0]: row[1:] for row in top_rows(with_groups())}
    assert rows["real + synthetic"] == ("95.1%", "93.7 to 96.5", "100.0%", "98.0 to 100.0", "+10.0 (+5.0 to +15.0)", "p = 0.5")
    assert rows["real only"][4:] == ("–", "–")
    assert top_rows(with_groups().model_copy(update={"classes": NAMES[:5]})) == []


def test_metrics_of_before_are_read_and_have_no_tables() -> None:
    """Protects metrics.json of before groups and intervals of top-5 were measured."""
    content = PASSED.model_dump(mode="json")
    for name in ("groups", "gain_top5"):
        content.pop(name, None)
    for arm in content["arms"].values():
        arm.pop("ci95_top5", None)
    old = Metrics.model_validate(content)
    assert (group_rows(old), top_rows(old.model_copy(update={"classes": NAMES}))) == ([], [])
    assert ArmResult.model_validate(content["arms"]["real"]).ci95_top5 is None
