"""The three ways to a Frechet distance against closed forms, against each other, and against the number of cores."""

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from gda.errors import DataError
from gda.fidelity import frechet
from gda.fidelity.frechet import Statistics, frechet_distance, frechet_of_features, frechet_to, statistics
from gda.fidelity.kid import kernel_distance
from gda.fidelity.neighbours import squared_radii
from gda.fidelity.threads import one_thread

D = 200


def rotated(spectrum: np.ndarray, shift: float, seed: int = 0) -> Statistics:
    """Statistics whose covariance has this spectrum in one and the same random basis."""
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum), len(spectrum))))
    return Statistics(mean=np.full(len(spectrum), shift), cov=(basis * spectrum) @ basis.T, n=None)


def features(seed: int, n: int, d: int = D) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * np.exp(-np.arange(d) / 40) + rng.normal(size=d)


SPECTRA = {
    "well conditioned": (1 + np.arange(D) / D, 2 - np.arange(D) / D),
    "like features": (np.exp(-np.arange(D) / 40), np.exp(-np.arange(D) / 30)),
    "one dead feature": (np.r_[np.ones(D - 1), 0.0], np.full(D, 2.0)),
    "few images": (np.r_[np.ones(40), np.zeros(D - 40)], np.r_[np.full(30, 3.0), np.zeros(D - 30)]),
    "few against many": (1 + np.arange(D) / D, np.r_[np.ones(40), np.zeros(D - 40)]),
    "disjoint": (np.r_[np.ones(100), np.zeros(100)], np.r_[np.zeros(100), np.ones(100)]),
}


@pytest.mark.parametrize("kind", SPECTRA)
def test_commuting_covariances_have_a_closed_form(kind: str) -> None:
    """|shift|^2 d + sum (sqrt s - sqrt t)^2, to 1e-9 of it, whatever the rank: roots of what should be zero must not add up."""
    s, t = SPECTRA[kind]
    exact = 0.25 * D + np.square(np.sqrt(s) - np.sqrt(t)).sum()
    assert frechet_distance(rotated(s, 0.0), rotated(t, 0.5)) == pytest.approx(exact, rel=1e-9)
    assert frechet_distance(rotated(t, 0.5), rotated(s, 0.0)) == pytest.approx(exact, rel=1e-9)


def test_the_fast_way_is_taken_where_it_is_exact_and_only_there() -> None:
    """Full rank goes by Cholesky; a rank that is short by many must not, since every zero would be counted as 1e-8."""
    fast = {kind: frechet._by_cholesky(rotated(s, 0.0).cov, rotated(t, 0.0).cov) is not None for kind, (s, t) in SPECTRA.items()}
    assert {kind for kind, taken in fast.items() if taken} - {"one dead feature"} == {"well conditioned", "like features"}


@pytest.mark.parametrize(("n", "m"), [(50, 80), (50, 400), (400, 50), (D, D + 1), (2, 3), (400, 500)])
def test_features_and_their_statistics_are_at_the_same_distance(n: int, m: int) -> None:
    """With fewer images than dimensions on either side or both, the short way is the same number."""
    a, b = features(0, n), features(1, m)
    expected = _by_eigenvectors(statistics(a), statistics(b))
    assert frechet_of_features(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_to(statistics(b), a) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(expected, rel=1e-9)


def _by_eigenvectors(a: Statistics, b: Statistics) -> float:
    """The definition by square roots of matrices, with ranks that are known to be those of the number of images."""

    def root(given: Statistics) -> np.ndarray:
        values, vectors = np.linalg.eigh(given.cov)
        kept = np.arange(len(values)) >= len(values) - min(given.n - 1, len(values))
        return (vectors[:, kept] * np.sqrt(values[kept])).T

    shared = np.linalg.svd(root(a) @ root(b).T, compute_uv=False).sum()
    return float(np.square(a.mean - b.mean).sum() + np.trace(a.cov) + np.trace(b.cov) - 2 * shared)


def test_no_variance_at_all_leaves_the_gap_of_the_means() -> None:
    """Copies of one image against copies of another: no covariance to factor, and still a distance."""
    one, two = np.zeros((5, 3)), np.ones((300, 3))
    assert frechet_of_features(one, two) == frechet_to(statistics(two), one) == pytest.approx(3.0)
    assert frechet_distance(statistics(one), statistics(two)) == pytest.approx(3.0)


@pytest.mark.parametrize("spoiled", [np.zeros((1, 4)), np.full((5, 4), np.inf)], ids=["one row", "infinite"])
def test_the_short_ways_refuse_what_has_no_covariance(spoiled: np.ndarray) -> None:
    """A NaN distance would pass every comparison with a limit, by whichever way it comes."""
    sound = features(0, 9, 4)
    for attempt in (lambda: frechet_of_features(spoiled, sound), lambda: frechet_to(statistics(sound), spoiled)):
        with pytest.raises(DataError):
            attempt()


def test_linear_algebra_uses_one_thread() -> None:
    """Afterwards the previous number is allowed again, for other code in this process."""

    def threads() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        assert one_thread(threads)() == {1}
        assert threads() == {2}


def test_bits_do_not_depend_on_the_number_of_cores() -> None:
    """BLAS splits its sums by the cores it finds: a laptop and a server must still write the same verdict."""
    a, b = features(0, 700, 256), features(1, 900, 256)

    def all_of_it() -> tuple[float, ...]:
        apart = frechet_distance(statistics(a), statistics(b))
        return apart, frechet_of_features(a[:150], b[:200]), kernel_distance(a, b), float(squared_radii(a, k=3).sum())

    with threadpool_limits(1, user_api="blas"):
        alone = all_of_it()
    with threadpool_limits(2, user_api="blas"):
        assert all_of_it() == alone
