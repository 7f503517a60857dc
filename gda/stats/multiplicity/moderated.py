"""Variances of many similar quantities, each from few values, moderated by what they have in common."""

import math

import numpy as np
from scipy import special

from gda.stats.paired import Floats

FEWEST = 30  # variances needed to moderate each other: with ten that agree by chance, 7% of tests at 0.05 err
_DOUBT = 3.0  # standard errors by which the spread of the variances is taken for larger than it was found
_STEPS = 50


def moderated(variances: Floats, expected: Floats, freedom: float) -> tuple[Floats, float]:
    """Each of `variances` [n] shrunk towards what all of them predict, and the degrees of freedom that it has then.

    `variances` have `freedom` degrees each, and would be in the proportions of `expected` [n] if they differed by chance alone. Their ratio
    to it is taken as scaled inverse chi-squared, whose scale and degrees of freedom are found by the moments of its logarithm (Smyth
    2004, sections 4 and 6.2). The spread of few variances is uncertain, so it is set three standard errors above what was found, and no
    variance has more freedom than all together. Zeros are not used; with fewer than 30 others, nothing is changed.
    """
    known = (variances > 0) & (expected > 0)
    num = int(known.sum())
    if num < FEWEST:
        return variances, freedom
    logs = np.log(variances[known] / expected[known]) - float(special.digamma(freedom / 2)) + math.log(freedom / 2)
    spread = float(logs.var(ddof=1)) * (1 + _DOUBT * math.sqrt(2 / (num - 1))) - float(special.polygamma(1, freedom / 2))
    if spread <= 0:
        return expected * math.exp(float(logs.mean())), num * freedom
    prior = 2 * _inverse_trigamma(spread)
    scale = math.exp(float(logs.mean()) + float(special.digamma(prior / 2)) - math.log(prior / 2))
    return (prior * scale * expected + freedom * variances) / (prior + freedom), min(prior + freedom, num * freedom)


def _inverse_trigamma(value: float) -> float:
    """Newton's steps on the reciprocal, which is convex, so that they converge from one side (Smyth 2004, appendix)."""
    found = 0.5 + 1 / value
    for _ in range(_STEPS):
        trigamma = float(special.polygamma(1, found))
        step = trigamma * (1 - trigamma / value) / float(special.polygamma(2, found))
        found += step
        if -step < 1e-8 * found:
            break
    return found
