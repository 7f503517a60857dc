"""Labels held against unseen real images: which class is the worst, and which limits its classes have."""

import numpy as np
import pytest

from gda.config.sections import ValidateConfig
from gda.gate.checks.labels import LabelCheckResult
from gda.gate.label_check import LabelCheck, check_labels
from gda.gate.measures import MeasuredWith

WITH = MeasuredWith(reference_digest="r")


def seen_as(shares: list[float], each: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and classes of `each` images per class, of which such a share is seen as its class and the rest as the next."""
    classes = np.repeat(np.arange(len(shares)), each)
    right = np.concatenate([np.arange(each) < round(share * each) for share in shares])
    seen = np.where(right, classes, (classes + 1) % len(shares))
    return np.eye(len(shares))[seen] * 0.8 + 0.2 / len(shares), classes


def check(synthetic: list[float], real: list[float], *, each: int = 200, **config: float) -> LabelCheck:
    seen, classes = seen_as(synthetic, each)
    unseen, truth = seen_as(real, each)
    return check_labels(seen, LabelCheckResult.hard(classes), unseen, truth, ValidateConfig(**config), names=list("abcd"), measured=WITH)  # type: ignore[arg-type]


def test_the_worst_class_is_the_one_furthest_below_its_own_limit() -> None:
    """A class that is hard in real images too must not hide one that is confirmed more often and yet far too seldom."""
    found = check([0.5, 0.55, 1.0, 1.0], [0.5, 1.0, 1.0, 1.0])
    worst = found.measures["label_agreement_worst_class"]
    assert (worst.value, worst.floor, worst.n, worst.chance, worst.class_name) == (0.55, 1.0, 200, 0.25, "b")
    assert found.limits == pytest.approx([0.25 + 0.6 * 0.25, 0.7, 0.7, 0.7])
    assert found.disputed(in_low_classes=True) == [i for i in range(200, 400) if i % 200 >= 110]
    assert len(found.disputed(in_low_classes=False)) == 100 + 90


def test_with_an_absolute_limit_the_worst_class_is_that_confirmed_least() -> None:
    """As it was before limits were relative."""
    found = check([0.5, 0.55, 1.0, 1.0], [0.5, 1.0, 1.0, 1.0], min_class_agreement=0.6)
    assert found.measures["label_agreement_worst_class"].value == 0.5
    assert found.limits == (0.6,) * 4


def test_a_class_that_no_classifier_recognises_is_left_out_unless_all_are() -> None:
    """Real images recognised no better than by chance give no limit for synthetic ones; if that holds for all, no class has a limit."""
    found = check([0.0, 0.9, 0.9, 0.95], [0.2, 1.0, 1.0, 1.0])
    assert found.limits[0] is None
    assert found.measures["label_agreement_worst_class"].value == 0.9
    assert found.disputed(in_low_classes=True) == []
    blind = check([0.9, 0.8, 1.0, 1.0], [0.2, 0.25, 0.2, 0.1])
    assert blind.limits == (None,) * 4
    assert blind.measures["label_agreement_worst_class"].value == 0.8
