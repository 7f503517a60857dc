"""Numbers of robustness sets: accuracies and gains that can be counted by hand."""

import numpy as np
import pytest

from gda.stats.paired import sign_flip_test
from gda.stats.robustness import set_arm, set_gain


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
    random = np.random.default_rng(3)
    rival = random.random((6, 40)) < 0.5
    better = rival | (random.random((6, 40)) < 0.4)
    gain = set_gain(better, rival, rng())
    assert gain.mean == pytest.approx(better.mean() - rival.mean())
    assert 0.0 < gain.ci95[0] < gain.mean < gain.ci95[1]
    assert gain.p_value == sign_flip_test(better.mean(axis=1) - rival.mean(axis=1)) == 2**-5
    assert gain.seeds == 6
    loss = set_gain(rival, better, rng())
    assert (loss.mean, loss.ci95) == (-gain.mean, (-gain.ci95[1], -gain.ci95[0]))


def test_the_level_is_the_one_requested() -> None:
    """Protects evaluate.confidence: a higher level gives a wider interval of both numbers."""
    random = np.random.default_rng(5)
    one, other = random.random((6, 60)) < 0.7, random.random((6, 60)) < 0.6
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


def test_what_was_sampled_together_counts_as_one() -> None:
    """Protects robustness sets and top-5 from the slack of seeds that share synthetic images, and of images that were taken together."""
    random = np.random.default_rng(7)
    by_set, by_group = random.normal(0, 1, 2)[np.arange(12) % 2], random.normal(0, 1, 20).repeat(10)
    own, rival = (random.normal(0.5, 1, (12, 200)) + by_set[:, None] * sign + by_group * sign > 0 for sign in (0.5, -0.5))
    sets, groups = np.arange(12) % 2, np.arange(200) // 10
    plain = set_gain(own, rival, rng())
    for one in (set_gain(own, rival, rng(), sets=sets), set_gain(own, rival, rng(), groups=groups)):
        assert one.mean == plain.mean
        assert one.ci95[1] - one.ci95[0] > 1.3 * (plain.ci95[1] - plain.ci95[0])
    wide, narrow = (set_arm(own, seeds=range(12), sets=one).ci95 for one in (sets, None))
    assert wide[1] - wide[0] > 1.3 * (narrow[1] - narrow[0])


def test_sets_are_flipped_where_there_are_enough() -> None:
    """Protects the p-value: six sets of two seeds have the smallest value of six signs, not of twelve."""
    differences = np.ones((12, 30), dtype=bool), np.zeros((12, 30), dtype=bool)
    assert set_gain(*differences, rng()).p_value == 2.0**-11
    assert set_gain(*differences, rng(), sets=np.arange(12) % 6).p_value == 2.0**-5
