"""Numbers of robustness sets: accuracies and gains that can be counted by hand."""

import numpy as np
import pytest

from gda.stats.held_out import set_arm, set_gain
from gda.stats.paired import sign_flip_test


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_accuracy_by_seed_and_its_interval() -> None:
    """Protects the mean from mixing seeds and images up, and the interval from leaving [0, 1]."""
    correct = np.array([[True, True, True, True], [True, True, True, False]])
    result = set_arm(correct, seeds=(4, 7))
    assert (result.seeds, result.top1, result.mean) == ((4, 7), (1.0, 0.75), 0.875)
    assert 0.0 <= result.ci95[0] < 0.875 < result.ci95[1] <= 1.0
    assert result.gain is None


def test_gain_is_paired() -> None:
    """Protects the sign and the pairing: image by image the same arms differ by known amounts, and exchanging them negates all."""
    draw = np.random.default_rng(3)
    rival = draw.random((6, 40)) < 0.5
    better = rival | (draw.random((6, 40)) < 0.4)
    gain = set_gain(better, rival, rng())
    assert gain.mean == pytest.approx(better.mean() - rival.mean())
    assert 0.0 < gain.ci95[0] < gain.mean < gain.ci95[1]
    assert gain.p_value == sign_flip_test(better.mean(axis=1) - rival.mean(axis=1)) == 2**-5
    assert gain.seeds == 6
    loss = set_gain(rival, better, rng())
    assert (loss.mean, loss.ci95) == (-gain.mean, (-gain.ci95[1], -gain.ci95[0]))


def test_the_level_is_the_one_asked_for() -> None:
    """Protects evaluate.confidence: a higher level gives a wider interval of both numbers."""
    draw = np.random.default_rng(5)
    one, other = draw.random((6, 60)) < 0.7, draw.random((6, 60)) < 0.6
    narrow, wide = (set_gain(one, other, rng(), confidence=level).ci95 for level in (0.6, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    low, high = (set_arm(one, seeds=range(6), confidence=level).ci95 for level in (0.6, 0.99))
    assert high[0] < low[0] < low[1] < high[1]


def test_nothing_is_no_result() -> None:
    """Protects from an accuracy of no images, and from comparing arms of other seeds."""
    with pytest.raises(ValueError, match="equal, non-empty"):
        set_gain(np.zeros((2, 3), dtype=bool), np.zeros((3, 3), dtype=bool), rng())
    with pytest.raises(ValueError, match="non-empty"):
        set_arm(np.zeros((2, 0), dtype=bool), seeds=(0, 1))
