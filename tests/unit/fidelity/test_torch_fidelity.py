"""The same numbers as torch-fidelity's own functions give for the same features and logits, to 1e-5 of them."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from gda.errors import DataError
from gda.fidelity import kid
from gda.fidelity.compare import fid
from gda.fidelity.diversity import inception_score, inception_score_over_splits
from gda.fidelity.extractors import get_extractor
from gda.fidelity.kid import kernel_distance, kernel_distance_over_subsets
from gda.fidelity.prdc import prdc

SETTINGS = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1.0}


@pytest.fixture(scope="module")
def sets() -> tuple[np.ndarray, np.ndarray]:
    """float32 features of the shipped network for two kinds of pictures: blots, and the same with noise."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((700, 3, 5, 5), np.float32))
    blots = torch.nn.functional.interpolate(coarse, (28, 28), mode="bilinear")
    noisy = blots[:330] * 0.9 + 0.1 * torch.from_numpy(rng.random((330, 3, 28, 28), np.float32))
    extractor = get_extractor("glyph")
    return extractor.features((noisy * 255).byte()), extractor.features((blots[330:] * 255).byte())


def torch_of(features: np.ndarray) -> torch.Tensor:
    """As torch-fidelity takes them, in float64: its float32 sums are off by more than the tolerance of 1e-5."""
    return torch.from_numpy(features).double()


def test_fid(sets: tuple[np.ndarray, np.ndarray]) -> None:
    """Their eigenvalues of a product, our Cholesky factor: one distance."""
    one, two = (fid_features_to_statistics(torch_of(each)) for each in sets)
    reference = fid_statistics_to_metric(one, two, verbose=False)["frechet_inception_distance"]
    assert fid(*sets) == pytest.approx(reference, rel=1e-5)


@pytest.mark.parametrize(("subsets", "size"), [(20, 100), (3, 40), (1, 330), (2, 2)])
def test_kid(sets: tuple[np.ndarray, np.ndarray], subsets: int, size: int) -> None:
    """Mean and spread over the same random subsets, by one kernel matrix for all or one for each, whichever is less work."""
    reference = kid_features_to_metric(
        *map(torch_of, sets), kid_subsets=subsets, kid_subset_size=size, rng_seed=2020, verbose=False, **SETTINGS
    )
    ours = kernel_distance_over_subsets(*sets, subsets=subsets, size=size)
    assert ours[0] == pytest.approx(reference["kernel_inception_distance_mean"], rel=1e-5)
    assert ours[1] == pytest.approx(reference["kernel_inception_distance_std"], rel=1e-5, abs=1e-12)


def test_kid_over_subsets_approaches_the_kid_of_all(sets: tuple[np.ndarray, np.ndarray]) -> None:
    """What the gate states has the expectation of what torch-fidelity states, without sampling noise."""
    mean, spread = kernel_distance_over_subsets(*sets, subsets=400, size=60)
    assert abs(mean - kernel_distance(*sets)) < 4 * spread / 400**0.5


def test_kid_in_blocks_is_kid(sets: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by blocks of rows; their borders must not show."""
    whole = kernel_distance(*sets), kernel_distance_over_subsets(*sets, subsets=20, size=100)
    monkeypatch.setattr(kid, "rows_at_a_time", lambda columns: 64)
    assert kernel_distance(*sets) == pytest.approx(whole[0], rel=1e-9)
    assert kernel_distance_over_subsets(*sets, subsets=20, size=100) == pytest.approx(whole[1], rel=1e-9)


@pytest.mark.parametrize("k", [1, 3, 12])
def test_precision_and_recall(sets: tuple[np.ndarray, np.ndarray], k: int) -> None:
    """Counts of images, so equal and not just near; taken from the inside of [0, 1], where they say something."""
    reference = prc_features_to_metric(*map(torch_of, sets), prc_neighborhood=k, prc_batch_size=128, save_cpu_ram=True, verbose=False)
    ours = prdc(*sets, k=k)
    assert (ours.precision, ours.recall) == pytest.approx((reference["precision"], reference["recall"]), abs=1e-6)
    assert 0.01 < ours.recall < 0.99


@pytest.mark.parametrize("splits", [1, 7, 10])
def test_inception_score(splits: int) -> None:
    """From logits, over the same shuffled parts, also where they are not of one size."""
    logits = np.random.default_rng(1).normal(0, 3, (205, 8)).astype(np.float32)
    reference = isc_features_to_metric(torch.from_numpy(logits), splits)
    mean, spread = inception_score_over_splits(logits, splits=splits)
    assert mean == pytest.approx(reference["inception_score_mean"], rel=1e-5)
    assert spread == pytest.approx(reference["inception_score_std"], rel=1e-5, abs=1e-9)
    if splits == 1:
        assert mean == pytest.approx(inception_score(torch.from_numpy(logits).double().softmax(1).numpy()), rel=1e-12)


def test_too_few_rows_for_the_definition_are_refused(sets: tuple[np.ndarray, np.ndarray]) -> None:
    """Subsets of 1,000 of 330 images, or ten parts of nine: no number rather than another one."""
    with pytest.raises(DataError, match="subsets of 1000 rows do not fit in 330 and 370"):
        kernel_distance_over_subsets(*sets)
    with pytest.raises(DataError, match="9 images do not fill 10 splits"):
        inception_score_over_splits(np.zeros((9, 3)))
