"""Calibration: by hand, at the edges, and of classifiers that are calibrated by construction."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gda.stats.calibration import negative_log_likelihood, reliability


def test_bins_and_their_error_by_hand() -> None:
    """Four images in two bins of ten: 0.05 too sure with three of them, 0.35 not sure enough with one."""
    found = reliability(np.array([0.91, 0.95, 0.99, 0.65]), np.array([True, True, False, True]), bins=10)
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 0, 3]
    assert found.confidence[[6, 9]] == pytest.approx([0.65, 0.95])
    assert found.accuracy[[6, 9]] == pytest.approx([1.0, 2 / 3])
    assert math.isnan(found.accuracy[0])
    assert found.error == pytest.approx(0.75 * (0.95 - 2 / 3) + 0.25 * 0.35)


def test_edges_belong_to_the_lower_bin_and_nothing_falls_out() -> None:
    """0 and 1 are probabilities as well."""
    found = reliability(np.array([0.0, 0.5, 1.0]), np.array([False, True, True]), bins=2)
    assert found.counts.tolist() == [2, 1]


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_the_error_is_that_of_the_mean_in_one_bin_and_never_less_in_more(seed: int, bins: int) -> None:
    """Bins can only take cancelling errors apart, and no error exceeds 1."""
    rng = np.random.default_rng(seed)
    confidence, correct = rng.uniform(size=50), rng.uniform(size=50) < 0.5
    one = reliability(confidence, correct, bins=1).error
    assert one == pytest.approx(abs(confidence.mean() - correct.mean()))
    assert one - 1e-12 <= reliability(confidence, correct, bins=bins).error <= 1.0


def test_who_is_right_as_often_as_they_say_has_hardly_any_error() -> None:
    """A calibrated classifier of 200,000 images, and the same one that reports half of its uncertainty."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1.0, 200_000)
    correct = rng.uniform(size=200_000) < confidence
    assert reliability(confidence, correct).error < 0.006
    assert reliability(1 - (1 - confidence) / 2, correct).error == pytest.approx(0.175, abs=0.005)  # half of a mean doubt of 0.35


@pytest.mark.parametrize(
    ("confidence", "correct"),
    [([], []), ([0.5], [True, False]), ([1.1], [True]), ([-0.1], [True]), ([math.nan], [True])],
)
def test_what_is_not_a_probability_an_answer_is_refused(confidence: list[float], correct: list[bool]) -> None:
    """Rather than a number that means nothing."""
    with pytest.raises(ValueError, match=r"as many confidences|not a probability"):
        reliability(np.array(confidence), np.array(correct, bool))


def test_the_likelihood_of_what_was_thought_impossible_is_finite() -> None:
    """One such image must not make a mean infinite; all others count as they are."""
    assert negative_log_likelihood(np.array([1.0, math.exp(-2.0)])) == pytest.approx(1.0)
    assert negative_log_likelihood(np.array([0.0], np.float32)) == pytest.approx(87.34, abs=0.01)
