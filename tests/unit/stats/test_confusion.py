"""Confusions counted over seeds, and the largest of them."""

import numpy as np
import pytest

from gda.stats.confusion import confusion_counts, most_confused


def test_counts_are_by_class_and_prediction_over_seeds() -> None:
    """Rows are what an image is, columns what it is taken for."""
    counts = confusion_counts(np.array([[0, 1, 1], [2, 1, 0]]), np.array([0, 1, 1]), 3)
    assert counts.tolist() == [[1, 0, 1], [1, 3, 0], [0, 0, 0]]


def test_the_largest_shares_come_first_and_right_answers_never() -> None:
    """A small class's confusion counts by its share; what never happens is not listed, nor a class without images."""
    counts = np.array([[90, 10, 0], [1, 1, 0], [0, 0, 0]])
    assert most_confused(counts, 9) == [(1, 0, 0.5), (0, 1, 0.1)]
    assert most_confused(counts, 1) == [(1, 0, 0.5)]
    assert most_confused(np.diag([3, 4]), 5) == []


@pytest.mark.parametrize(
    ("predicted", "labels"),
    [(np.zeros(3, int), np.zeros(3, int)), (np.zeros((1, 2), int), np.zeros(3, int)), (np.full((1, 1), 2), np.zeros(1, int))],
)
def test_what_does_not_pair_is_refused(predicted: np.ndarray, labels: np.ndarray) -> None:
    """A class beyond the last would be counted as another one."""
    with pytest.raises(ValueError, match=r"expected predictions|is not one of"):
        confusion_counts(predicted, labels, 2)
