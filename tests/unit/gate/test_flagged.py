"""Which images a refusal flags: those of the failed checks, and none once an image matches the test split."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gda.artifacts.verdict import Measure, Verdict
from gda.fidelity.intervals import Estimate, share
from gda.gate.checks.labels import Agreement, Suspect
from gda.gate.checks.leaks import Leak
from gda.gate.flagged import flagged_images
from gda.gate.label_check import LabelCheck

FAILED = Measure(value=1.0, limit=0.5, passed=False)


def suspect(position: int, *, label: int = 0, confirmed: bool = False) -> Suspect:
    return Suspect(
        position=position, label=label, predicted=1, probability=0.9, own_probability=0.1, confident=confirmed, confirmed=confirmed
    )


def checked(*suspects: Suspect, by_class: tuple[Estimate | None, ...], limits: tuple[float | None, ...]) -> LabelCheck:
    found = Agreement(overall=share(1, 2), by_class=by_class, confident=share(0, 2), soft_gap=None, suspects=suspects)
    return LabelCheck(agreement=found, limits=limits, measures={})


def inspection(**found: Any) -> Any:
    """Of six records the second does not decode, so that positions among the others are not rows."""
    table = pd.DataFrame({"key": [f"k{i}" for i in range(6)], "decoded": [1, 0, 1, 1, 1, 1]})
    audit = SimpleNamespace(table=table, rows=np.array([0, 2, 3, 4, 5]))
    given = {"leaks": [], "labels": None, "copies": None, "repeated": []} | found
    return SimpleNamespace(subjects=SimpleNamespace(audit=audit, hashes=list("abcde")), **given)


def flagged(found: Any, *failed: str) -> dict[str, str]:
    metrics = dict.fromkeys(failed, FAILED) | {"kid": Measure(value=1.0)}
    return flagged_images(found, Verdict(passed=False, reasons=("r",), metrics=metrics, synthetic_digest="s", real_digest="r"))


def test_labels_that_are_confirmed_are_not_flagged() -> None:
    """Classifiers may be surer of another class than they use to be, and still think the label's class the likeliest."""
    labels = checked(suspect(1), suspect(3, confirmed=True), by_class=(share(1, 3),), limits=(0.5,))
    assert flagged(inspection(labels=labels), "label_agreement") == {"k2": "label not confirmed"}


def test_only_the_classes_that_failed_are_flagged() -> None:
    """Each by its own limit: a class that keeps it, or has none, keeps its disputed images though fewer are confirmed."""
    shares = (share(60, 100), share(40, 100), share(5, 100))
    labels = checked(*(suspect(i, label=i) for i in range(3)), by_class=shares, limits=(0.8, 0.2, None))
    assert flagged(inspection(labels=labels), "label_agreement_worst_class") == {"k0": "label not confirmed"}


@pytest.mark.parametrize(
    ("metric", "leak", "why"),
    [
        ("exact_train", Leak(split="train", query=4, reference=0, exact=True), "is a training image"),
        ("near_train", Leak(split="train", query=4, reference=0, exact=False), "is nearly a training image"),
        ("exact_val", Leak(split="val", query=4, reference=0, exact=True), "is a validation image"),
        ("near_val", Leak(split="val", query=4, reference=0, exact=False), "is nearly a validation image"),
    ],
)
def test_images_of_real_splits_are_flagged_by_the_check_that_failed(metric: str, leak: Leak, why: str) -> None:
    """And by no other one: the same image is left where its check passed."""
    assert flagged(inspection(leaks=[leak]), metric) == {"k5": why}
    assert flagged(inspection(leaks=[leak]), "duplicate_fraction") == {}


@pytest.mark.parametrize("met", ["exact_test", "near_test"])
def test_what_is_known_of_the_test_split_mends_nothing(met: str) -> None:
    """A set that was chosen by the test split would no longer be new to it."""
    leaks = [Leak(split="train", query=4, reference=0, exact=True), Leak(split="test", query=0, reference=0, exact=True)]
    assert flagged(inspection(leaks=leaks), "exact_train", met) == {}


def test_of_several_reasons_the_first_is_recorded_and_damaged_files_before_all() -> None:
    """One line an image."""
    labels = checked(suspect(4), suspect(0), by_class=(share(1, 3),), limits=(0.9,))
    found = inspection(labels=labels, leaks=[Leak(split="train", query=4, reference=0, exact=True)], repeated=[[0, 1]])
    reasons = flagged(found, "label_agreement", "exact_train", "near_duplicate_fraction", "undecodable")
    assert reasons == {
        "k0": "label not confirmed",
        "k1": "does not decode",
        "k2": "nearly repeats another image",
        "k5": "is a training image",
    }
