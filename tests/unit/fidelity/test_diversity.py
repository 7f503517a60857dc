"""Vendi score and Inception Score against sets whose answer is known."""

import numpy as np
import pytest
from scipy.stats import entropy

from gda.errors import DataError
from gda.fidelity.diversity import inception_score, mean_distance, vendi_score


@pytest.mark.parametrize("d", [5, 400])
def test_vendi_counts_kinds_of_images(d: int) -> None:
    """Five directions, ten images each: five effective images, whichever of the two matrices is the smaller one."""
    rows = np.repeat(np.eye(5, d), 10, axis=0) * np.linspace(0.5, 9, 50)[:, None]
    assert vendi_score(rows) == pytest.approx(5.0, rel=1e-9)


def test_vendi_by_its_definition() -> None:
    """exp of the entropy of the eigenvalues of the n x n matrix of cosines, whether n or d is smaller."""
    rng = np.random.default_rng(0)
    for n, d in ((40, 7), (7, 40)):
        rows = rng.normal(size=(n, d))
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        expected = np.exp(entropy(np.clip(np.linalg.eigvalsh(unit @ unit.T / n), 1e-300, None)))
        assert vendi_score(rows) == pytest.approx(expected, rel=1e-9)


def test_vendi_at_its_ends() -> None:
    """One image over and over is one image; n unlike ones are n; blank features are one more kind."""
    assert vendi_score(np.full((30, 4), 2.5)) == pytest.approx(1.0)
    assert vendi_score(np.eye(9)) == pytest.approx(9.0)
    assert vendi_score(np.zeros((6, 3))) == pytest.approx(1.0)
    assert vendi_score(np.repeat([[1.0, 0.0], [0.0, 0.0]], 4, axis=0)) == pytest.approx(2.0)


def test_inception_score_at_its_ends() -> None:
    """Sure and evenly spread over four classes: 4. The same answer for all: 1. Sure of two classes out of four: 2."""
    assert inception_score(np.tile(np.eye(4), (5, 1))) == pytest.approx(4.0)
    assert inception_score(np.full((20, 4), 0.25)) == pytest.approx(1.0)
    assert inception_score(np.tile(np.eye(4)[:2], (5, 1))) == pytest.approx(2.0)


@pytest.mark.parametrize("spoiled", [np.zeros((0, 4)), np.full((5, 4), np.nan)], ids=["empty", "nan"])
def test_what_is_not_a_set_has_no_diversity(spoiled: np.ndarray) -> None:
    """An error that the gate counts against the set, not a NaN that no comparison refuses."""
    for score in (vendi_score, inception_score):
        with pytest.raises(DataError):
            score(spoiled)


def test_the_mean_distance_is_that_of_all_pairs_and_does_not_grow_with_n() -> None:
    """By hand; twice as many images of the same kind are as far apart."""
    assert mean_distance(np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])) == pytest.approx((5 + 1 + np.sqrt(18)) / 3)
    rows = np.random.default_rng(0).normal(size=(400, 8))
    assert mean_distance(rows[:200]) == pytest.approx(mean_distance(rows), rel=0.03)
    assert mean_distance(rows[:200] / 2) == pytest.approx(mean_distance(rows[:200]) / 2)


@pytest.mark.parametrize("rows", [np.zeros((1, 3)), np.zeros(3), np.array([[1.0], [np.nan]])])
def test_distances_need_two_finite_rows(rows: np.ndarray) -> None:
    """One image is as far from itself as nothing says."""
    with pytest.raises(DataError, match="two finite rows"):
        mean_distance(rows)
