"""Holm's correction: a worked example, the closed test that it is a short cut of, and how often it errs."""

import math
import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gda.stats.multiplicity.holm import holm

P_VALUES = st.lists(st.floats(0, 1) | st.just(math.nan) | st.sampled_from([0.0, 0.03125, 0.5, 1.0]), max_size=7)


def closed_test(p_values: list[float]) -> list[float]:
    """The largest Bonferroni-corrected p-value of all sets of hypotheses that a hypothesis is in (Marcus et al. 1976)."""
    indices = range(len(p_values))
    sets = [chosen for size in range(1, len(p_values) + 1) for chosen in combinations(indices, size)]
    return [max(min(1.0, len(chosen) * min(p_values[j] for j in chosen)) for chosen in sets if i in chosen) for i in indices]


def test_a_worked_example() -> None:
    """Protects the factors: of 0.005, 0.01, 0.03 and 0.04 they are 4, 3, 2 and 1, and the last is not below the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([0.03125]) == (0.03125,)
    assert holm([]) == ()


@given(P_VALUES)
def test_it_is_the_closed_test(p_values: list[float]) -> None:
    """Protects the short cut by the long way round, for ties, zeros, ones and missing p-values too."""
    assert holm(p_values) == pytest.approx(closed_test([1.0 if math.isnan(p) else p for p in p_values]))


@given(P_VALUES, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_nothing_becomes_more_certain(p_values: list[float], shuffler: random.Random) -> None:
    """Protects the place of each result: not below the p-value itself, in the same order, at most 1, never NaN."""
    adjusted = holm(p_values)
    order = list(range(len(p_values)))
    shuffler.shuffle(order)
    assert holm([p_values[i] for i in order]) == tuple(adjusted[i] for i in order)
    known = [1.0 if math.isnan(p) else p for p in p_values]
    assert all(p <= q <= 1.0 for p, q in zip(known, adjusted, strict=True))
    assert all(adjusted[i] <= adjusted[j] for i in order for j in order if known[i] <= known[j])


def test_any_of_many_nulls_is_named_as_seldom_as_stated() -> None:
    """Protects the rate: of five nulls, independent or alike, any is named in 5% of cases at most; uncorrected in 23%."""
    rng = np.random.default_rng(0)
    independent = rng.uniform(size=(10_000, 5))
    alike = np.repeat(rng.uniform(size=(10_000, 1)), 5, axis=1)
    for p_values in (independent, alike):
        assert np.mean([min(holm(row)) <= 0.05 for row in p_values.tolist()]) <= 0.05 + 3 * 0.0022
    assert (independent <= 0.05).any(axis=1).mean() > 0.2
    with_true = np.concatenate([np.full((10_000, 2), 1e-6), independent[:, :3]], axis=1)
    assert np.mean([min(holm(row)[2:]) <= 0.05 for row in with_true.tolist()]) == pytest.approx(0.05, abs=3 * 0.0022)


@pytest.mark.parametrize("wrong", [-0.01, 1.01, math.inf])
def test_what_is_no_p_value_is_refused(wrong: float) -> None:
    """Protects against a statistic in the place of a p-value."""
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        holm([0.5, wrong])
