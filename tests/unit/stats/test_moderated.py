"""Variances that lend each other certainty: known spreads are found, and little is borrowed where they differ."""

import numpy as np
import pytest
from scipy import special, stats

from gda.stats.multiplicity.moderated import _inverse_trigamma, moderated


def sampled(rng: np.random.Generator, prior: float, freedom: float, num: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    """True variances, scaled inverse chi-squared with `prior` degrees of freedom about 2, and those found with `freedom`."""
    true = 2 * prior / rng.chisquare(prior, num) if np.isfinite(prior) else np.full(num, 2.0)
    return true, true * rng.chisquare(freedom, num) / freedom


@pytest.mark.parametrize("prior", [4.0, 20.0])
def test_the_freedom_that_is_lent_is_that_of_the_prior(prior: float) -> None:
    """Protects the moments' estimate against variances whose prior is known; it errs to less, which is the careful side."""
    true, found = sampled(np.random.default_rng(0), prior, 5)
    shrunk, freedom = moderated(found, np.ones(found.size), 5)
    assert 0.6 * prior <= freedom - 5 <= 1.1 * prior
    assert np.square(np.log(shrunk / true)).mean() < 0.7 * np.square(np.log(found / true)).mean()


def test_a_statistic_has_the_tail_that_its_freedom_says() -> None:
    """Protects the use of it: among many nulls, one in a thousand is beyond the quantile of one in a thousand."""
    rng = np.random.default_rng(1)
    true, found = sampled(rng, 8.0, 5, num=200_000)
    shrunk, freedom = moderated(found, np.ones(found.size), 5)
    statistics = rng.normal(0, np.sqrt(true)) / np.sqrt(shrunk)
    assert 0.8e-3 < (statistics > stats.t.isf(1e-3, freedom)).mean() < 1.2e-3


def test_equal_variances_share_all() -> None:
    """Protects the limit: without a spread beyond chance each has the mean, and as much freedom as all or many together."""
    _, found = sampled(np.random.default_rng(2), np.inf, 5)
    shrunk, freedom = moderated(found, np.ones(found.size), 5)
    assert freedom > 50
    assert shrunk.std() < 0.1 * found.std()
    constant, freedom = moderated(np.full(40, 3.0), np.ones(40), 5)
    assert constant == pytest.approx(3.0 * np.exp(np.log(2.5) - special.digamma(2.5)))
    assert freedom == 200


def test_few_variances_lend_little() -> None:
    """Protects against classes that agree by chance: forty lend less than five thousand, and under thirty nothing is lent."""
    _, found = sampled(np.random.default_rng(3), 20.0, 5)
    freedoms = [moderated(found[:num], np.ones(num), 5)[1] for num in (40, 5000)]
    assert 5 < freedoms[0] < freedoms[1]
    shrunk, freedom = moderated(found[:29], np.ones(29), 5)
    assert (shrunk.tolist(), freedom) == (found[:29].tolist(), 5)


def test_zeros_are_raised_and_do_not_affect_the_others() -> None:
    """Protects classes in which no seed differs: they take no part in the fit, and are not taken for certain."""
    _, found = sampled(np.random.default_rng(4), 6.0, 5, num=500)
    alone, freedom = moderated(found, np.ones(500), 5)
    both, same = moderated(np.append(found, 0.0), np.ones(501), 5)
    assert freedom == same
    assert both[:500] == pytest.approx(alone)
    assert both[500] > 0.2


@pytest.mark.parametrize("value", [1e-4, 0.1, 1.0, 50.0])
def test_the_inverse_of_trigamma(value: float) -> None:
    """Protects the root that Newton's steps find."""
    assert special.polygamma(1, _inverse_trigamma(value)) == pytest.approx(value, rel=1e-6)
