"""Labels against what classifiers see: confirmed, disputed, disputed with confidence, and soft ones."""

import numpy as np
import pytest

from gda.data.store.soft_labels import names_to_labels
from gda.errors import DataError
from gda.fidelity.intervals import share
from gda.gate.checks.labels import LabelCheckResult, agreement, class_thresholds

# Three classes; of the second these classifiers are never very sure, of the third always.
THRESHOLDS = np.array([0.7, 0.4, 0.9])


def test_a_threshold_is_the_mean_confidence_in_unseen_real_images() -> None:
    """By hand; a class without images can convince nobody."""
    probabilities = np.array([[0.9, 0.1, 0.0], [0.5, 0.5, 0.0], [0.6, 0.4, 0.0]])
    assert class_thresholds(probabilities, np.array([0, 0, 1])) == pytest.approx([0.7, 0.4, np.inf])


ROWS = np.array(
    [
        [0.80, 0.10, 0.10],  # 0: confirmed
        [0.60, 0.35, 0.05],  # 1: labelled 1, likeliest 0, but not as sure as of real images of class 0
        [0.50, 0.45, 0.05],  # 2: labelled 0 and likeliest so, yet as sure of class 1 as of its real images, and not of class 0
        [0.75, 0.20, 0.05],  # 3: labelled 1, and surely 0
        [0.05, 0.05, 0.90],  # 4: labelled 2: confirmed
        [0.75, 0.20, 0.05],  # 5: labelled with a class that the classifiers do not know
    ]
)
CLASSES = np.array([0, 1, 0, 1, 2, -1])


def test_labels_are_confirmed_by_the_likeliest_class_and_disputed_where_another_reaches_its_threshold() -> None:
    """The off-diagonal of the confident joint, worked out by hand for each row."""
    found = agreement(ROWS, LabelCheckResult.hard(CLASSES), THRESHOLDS)
    assert found.overall == share(3, 6)
    assert found.confident == share(3, 6)
    assert found.by_class == (share(2, 2), share(0, 2), share(1, 1))
    assert found.soft_gap is None
    suspects = [(s.position, s.label, s.predicted, s.confident, s.confirmed) for s in found.suspects]
    assert suspects == [(5, -1, 0, True, False), (3, 1, 0, True, False), (2, 0, 1, True, True), (1, 1, 0, False, False)]
    assert (found.suspects[1].probability, found.suspects[1].own_probability) == (0.75, 0.2)
    assert found.suspects[0].own_probability == 0.0


def test_the_commonest_confusions_come_first() -> None:
    """(label, seen as, images): what to look at before single pictures."""
    found = agreement(ROWS, LabelCheckResult.hard(CLASSES), THRESHOLDS)
    assert found.confusions(1) == [(1, 0, 2)]
    assert sorted(found.confusions(9)) == [(-1, 0, 1), (0, 1, 1), (1, 0, 2)]
    assert agreement(ROWS[:1], LabelCheckResult.hard(CLASSES[:1]), THRESHOLDS).confusions(9) == []


def soft(classes: list[int], second: list[int], weights: list[float]) -> LabelCheckResult:
    return LabelCheckResult(classes=np.array(classes), second=np.array(second), weights=np.array(weights))


def test_a_soft_label_is_confirmed_by_either_of_its_classes() -> None:
    """An image half-way from class 1 to class 0 may be seen as either, and as nothing else."""
    rows = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.05, 0.05, 0.9]])
    found = agreement(rows, soft([0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5]), THRESHOLDS)
    assert found.overall == share(2, 3)
    assert [(s.position, s.predicted, s.own_probability) for s in found.suspects] == [(2, 2, pytest.approx(0.1))]
    # It counts for the class it was generated for.
    assert found.by_class == (share(2, 3), None, None)


def test_weights_that_say_less_than_is_to_be_seen_show_as_a_gap() -> None:
    """Labelled a quarter class 0, seen as class 0 three times of four; the one seen as neither is no evidence about the weights."""
    rows = np.array([[0.8, 0.1, 0.1]] * 3 + [[0.2, 0.7, 0.1], [0.0, 0.0, 1.0], [0.9, 0.1, 0.0]])
    labels = soft([0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, -1], [0.25, 0.25, 0.25, 0.25, 0.25, 1.0])
    gap = agreement(rows, labels, THRESHOLDS).soft_gap
    assert gap is not None
    assert gap.value == pytest.approx(0.75 - 0.25)
    assert (gap.low, gap.high) == pytest.approx((share(3, 4).low - 0.25, share(3, 4).high - 0.25))


def test_a_second_class_that_is_unknown_confirms_nothing() -> None:
    """-1 stands for no class, which nothing can be seen as."""
    found = agreement(ROWS[:1], soft([-1], [-1], [1.0]), THRESHOLDS)
    assert found.overall.value == 0.0


@pytest.mark.parametrize("rows", [np.zeros((0, 3)), np.array([[np.nan, 0.5, 0.5]])])
def test_nothing_and_nan_are_refused(rows: np.ndarray) -> None:
    """Neither confirms nor disputes."""
    with pytest.raises(DataError, match="finite probabilities"):
        agreement(rows, LabelCheckResult.hard(np.zeros(len(rows), int)), THRESHOLDS)


def test_names_become_labels() -> None:
    """By the classes that are known; anything else, and nothing, is -1."""
    assert names_to_labels(["b", "c", None, "a"], ["a", "b"]).tolist() == [1, -1, -1, 0]  # type: ignore[list-item]
