"""The levels of repeated looks: what they add up to, and that looking often really errs no more than stated."""

import numpy as np
import pytest
from scipy import stats

from gda.stats.multiplicity.looks import fewest_flips, level_of_look
from gda.stats.paired import sign_flip_test


def test_all_looks_together_have_the_level() -> None:
    """Protects the sum: 0.04, 0.005, 0.0025 and so on for 0.05, for ever."""
    assert [level_of_look(0.05, look) for look in (1, 2, 3)] == pytest.approx([0.04, 0.005, 0.0025])
    assert 0.049 < sum(level_of_look(0.05, look) for look in range(1, 60)) <= 0.05


def test_six_seeds_can_pass_at_the_first_look_and_nine_at_the_second() -> None:
    """Protects small runs: the first level stays above the smallest p-value of six sign flips, 2^-5."""
    assert level_of_look(0.05, 1) > 2.0**-5
    assert 2.0**-8 < level_of_look(0.05, 2) < 2.0**-7


def test_looking_until_it_is_significant_errs_as_seldom_as_one_look() -> None:
    """Protects optional stopping: ten looks at growing data, each at its own level, take at most alpha of all nulls for a gain."""
    rng = np.random.default_rng(0)
    sums = rng.normal(size=(20000, 10)).cumsum(axis=1) / np.sqrt(np.arange(1, 11))
    levels = np.array([level_of_look(0.05, look) for look in range(1, 11)])
    p_values = 2 * stats.norm.sf(np.abs(sums))
    assert 0.04 < (p_values <= levels).any(axis=1).mean() <= 0.05
    assert (p_values <= 0.05).any(axis=1).mean() > 0.15


def test_looks_are_counted_from_one() -> None:
    """Protects against a level above alpha for a look that nobody took."""
    with pytest.raises(ValueError, match="from 1"):
        level_of_look(0.05, 0)


@pytest.mark.parametrize("look", range(1, 10))
def test_the_fewest_signs_are_the_fewest(look: int) -> None:
    """Protects what a refused user reads: with that many all of one sign pass, with one less they cannot."""
    level = level_of_look(0.05, look)
    needed = fewest_flips(level)
    assert sign_flip_test(np.ones(needed)) <= level < sign_flip_test(np.ones(needed - 1))
