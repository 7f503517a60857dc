"""FID, KID, precision and recall against closed forms and against torch-fidelity on the same features."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from gda.errors import DataError
from gda.fidelity.frechet import Statistics, frechet_distance, statistics
from gda.fidelity.kid import kernel_distance
from gda.fidelity.prdc import prdc


def features(seed: int, n: int, d: int, shift: float = 0.0) -> np.ndarray:
    """Correlated features [n, d]."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / d**0.5 + shift


def test_frechet_closed_form_for_diagonal_covariances() -> None:
    """For diagonal covariances the distance is |mu - nu|^2 + sum (s - t)^2 over standard deviations."""
    s, t = np.array([1.0, 2.0, 0.0]), np.array([3.0, 0.5, 1.0])
    a = Statistics(mean=np.zeros(3), cov=np.diag(s**2), n=10)
    b = Statistics(mean=np.array([1.0, -2.0, 0.5]), cov=np.diag(t**2), n=10)
    assert frechet_distance(a, b) == pytest.approx(5.25 + ((s - t) ** 2).sum(), rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(400, 16), (300, 64), (40, 64)])
def test_fid_agrees_with_torch_fidelity(n: int, d: int) -> None:
    """Same features, same number, to 1e-6 of it, also where there are fewer images than dimensions."""
    a, b = features(0, n, d), features(1, n + 30, d, shift=0.3)
    reference = fid_statistics_to_metric(
        fid_features_to_statistics(torch.from_numpy(a)), fid_features_to_statistics(torch.from_numpy(b)), verbose=False
    )["frechet_inception_distance"]
    # With fewer images than dimensions their general eigenvalues of a singular matrix lose half the digits.
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(reference, rel=1e-6 if n > d else 1e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 40), d=st.integers(1, 8))
def test_frechet_is_symmetric_and_zero_only_for_equal_statistics(seed: int, n: int, d: int) -> None:
    """A distance must not depend on which set comes first, and a set is at distance zero from itself."""
    a, b = statistics(features(seed, n, d)), statistics(features(seed + 1, n + 1, d, shift=1.0))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6, abs=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-6 * np.trace(a.cov))
    assert frechet_distance(a, b) > 0


@pytest.mark.parametrize("spoiled", [np.zeros((1, 4)), np.zeros((0, 4)), np.full((5, 4), np.nan)], ids=["one row", "empty", "nan"])
def test_statistics_refuse_what_has_no_covariance(spoiled: np.ndarray) -> None:
    """NaN features would give a NaN distance, which passes every comparison with a limit."""
    with pytest.raises(DataError):
        statistics(spoiled)


def test_kid_agrees_with_torch_fidelity() -> None:
    """On subsets that hold every image the estimator is the same one."""
    a, b = features(2, 60, 12), features(3, 60, 12, shift=0.5)
    reference = kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), kid_subsets=2, kid_subset_size=60, kid_kernel="poly", kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1.0, rng_seed=0, verbose=False,
    )["kernel_inception_distance_mean"]  # fmt: skip
    assert kernel_distance(a, b) == pytest.approx(reference, rel=1e-9)


def test_kid_does_not_grow_as_sets_shrink() -> None:
    """Unbiased: between sets of one source the mean is zero at any size, whereas FID grows."""
    pool, rng = features(4, 2000, 8), np.random.default_rng(0)
    orders = [rng.permutation(2000)[:40] for _ in range(200)]
    values = np.array([kernel_distance(pool[d[:20]], pool[d[20:]]) for d in orders])
    assert abs(values.mean()) < 3 * values.std() / 200**0.5


def test_precision_and_recall_agree_with_torch_fidelity() -> None:
    """The same balls around the same neighbours."""
    fake, real = features(5, 90, 6, shift=0.8), features(6, 130, 6)
    reference = prc_features_to_metric(
        torch.from_numpy(fake), torch.from_numpy(real), prc_neighborhood=3, prc_batch_size=50, save_cpu_ram=False, verbose=False
    )
    ours = prdc(fake, real, k=3)
    assert ours.precision == pytest.approx(reference["precision"], abs=1e-6)
    assert ours.recall == pytest.approx(reference["recall"], abs=1e-6)
    assert 0.05 < ours.precision < 0.95  # the comparison says nothing at the ends


def test_prdc_by_hand_for_a_collapsed_generator() -> None:
    """One real point sampled again and again: every image plausible, almost nothing of the real set covered."""
    real = np.arange(10.0)[:, None]
    collapsed = prdc(np.full((8, 1), 4.0), real, k=2)
    # Inner points reach to distance 1, so the points 3, 4, 5 hold 4.0 in their balls; the ends 0 and 9 reach to 2.
    assert (collapsed.precision, collapsed.coverage, collapsed.density) == (1.0, 0.3, 1.5)
    assert collapsed.recall == 0.1  # its own balls have radius zero


def test_prdc_refuses_sets_smaller_than_a_neighbourhood() -> None:
    """With three images there is no third other image, and any answer would be made up."""
    with pytest.raises(DataError, match="more than 3 rows"):
        prdc(np.zeros((3, 2)), np.zeros((9, 2)))
