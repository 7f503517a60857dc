"""The minimal detectable effect: answers that are known where one of the gate's two tests decides alone."""

import numpy as np
import pytest
from scipy import stats

from gda.stats.power import minimal_detectable_effect


def declared(differences: np.ndarray, *, alpha: float = 0.05) -> float:
    """The effect, where there is one."""
    found = minimal_detectable_effect(differences, alpha=alpha)
    assert found is not None
    return found


def by_seed(seeds: int, sd: float) -> np.ndarray:
    """Differences [seeds, 2] that are the same for both images, with exactly this deviation over seeds."""
    values = np.random.default_rng(1).normal(size=seeds)
    return np.tile((0.02 + (values - values.mean()) / values.std(ddof=1) * sd)[:, None], 2)


def test_six_seeds_must_agree() -> None:
    """Protects against declaring what the t test could show: six sign flips reach 0.05 only when every seed gains."""
    sd = 0.01
    unanimous = stats.norm.ppf(0.8 ** (1 / 6)) * sd
    assert declared(by_seed(6, sd)) >= 0.95 * unanimous
    # And no more than what both tests together need: the t test of five degrees of freedom, with half of its spread again for the flips.
    assert declared(by_seed(6, sd)) < 1.5 * (stats.t.ppf(0.975, 5) + stats.t.ppf(0.8, 5)) * sd / np.sqrt(6)


def test_many_seeds_need_what_the_t_test_needs() -> None:
    """Protects the size of the declared effect where seeds are many: the t test's own power (Cohen 1988)."""
    power_at = 2.9  # standard errors: P(|t| > 2.0930) is 0.8 with 19 degrees of freedom
    assert 1 - stats.nct.cdf(stats.t.ppf(0.975, 19), 19, power_at) == pytest.approx(0.8, abs=0.02)
    assert declared(by_seed(20, 0.01)) == pytest.approx(power_at * 0.01 / np.sqrt(20), rel=0.05)


def test_the_interval_counts_where_only_images_vary() -> None:
    """Protects the other test: seeds that all say the same leave the interval over images to decide, 1.96 + 0.84 standard errors away."""
    images = np.tile(np.repeat([1.0, 0.0, -1.0], [60, 300, 40]), (6, 1))
    error = images[0].std(ddof=1) / np.sqrt(400)
    assert declared(images) == pytest.approx((1.96 + 0.84) * error, rel=0.06)


def test_too_few_seeds_can_detect_nothing() -> None:
    """Protects against printing an effect that the sign-flip test could never have confirmed."""
    assert minimal_detectable_effect(np.zeros((5, 10)), alpha=0.05) is None
    assert minimal_detectable_effect(np.zeros((6, 10)), alpha=0.05) == 0.0
    sets = np.arange(12) % 5
    assert minimal_detectable_effect(np.zeros((12, 10)), alpha=0.05, sets=sets) is None
