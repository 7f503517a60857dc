"""Statistics that a user brings: ADM's `mu` and `sigma` are taken as they are, everything else is refused in words that help."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gda.errors import ConfigError, DataError, GdaError
from gda.fidelity.frechet import Statistics, frechet_distance, statistics
from gda.fidelity.statistics_file import read_statistics_file, statistics_bytes, statistics_digest

D = 6


@pytest.fixture
def given() -> Statistics:
    return statistics(np.random.default_rng(0).normal(size=(50, D)))


def read(path: Path) -> Statistics:
    return read_statistics_file(path, dim=D, extractor="glyph")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_numpys_own_file_is_read(tmp_path: Path, given: Statistics, dtype: type) -> None:
    """Files of other tools hold float64 or float32, and more than the two arrays: ADM's have `mu_s` and `sigma_s` as well."""
    path = tmp_path / "adm.npz"
    np.savez(path, mu=given.mean.astype(dtype), sigma=given.cov.astype(dtype), mu_s=np.zeros(3))
    found = read(path)
    assert found.cov.dtype == np.float64
    assert frechet_distance(found, given) == pytest.approx(0.0, abs=1e-5)
    assert (statistics_digest(found) == statistics_digest(given)) == (dtype is np.float64)


def test_what_is_written_is_read_back_and_has_no_time_in_it(tmp_path: Path, given: Statistics) -> None:
    """Equal statistics, equal bytes; and plain numpy reads them."""
    path = tmp_path / "ours.npz"
    path.write_bytes(statistics_bytes(given))
    assert statistics_digest(read(path)) == statistics_digest(given)
    assert statistics_bytes(given) == statistics_bytes(read(path))
    with np.load(path) as file:
        assert np.array_equal(file["sigma"], given.cov)


def spoiled(name: str, change: Callable[[np.ndarray], object]) -> Callable[[Path, Statistics], None]:
    def write(path: Path, given: Statistics) -> None:
        arrays = {"mu": given.mean, "sigma": given.cov}
        np.savez(path, **(arrays | {name: change(arrays[name].copy())}))  # type: ignore[arg-type]

    return write


def _with(place: tuple[int, ...], value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return change


def _other(dim: int) -> Callable[[Path, Statistics], None]:
    return lambda path, given: np.savez(path, mu=np.zeros(dim), sigma=np.eye(dim))


def _cut(path: Path, given: Statistics) -> None:
    path.write_bytes(statistics_bytes(given)[:400])


def _single(path: Path, given: Statistics) -> None:
    with path.open("wb") as file:
        np.save(file, given.cov)


REFUSED: dict[str, tuple[Callable[[Path, Statistics], None], str]] = {
    "mu is a matrix": (spoiled("mu", lambda mu: mu[None]), r"mu has shape \(1, 6\)"),
    "sigma is not square": (spoiled("sigma", lambda sigma: sigma[:, :5]), r"sigma \(6, 5\); \(d,\) and \(d, d\) are accepted"),
    "another extractor": (_other(2048), "statistics of 2048 features, but glyph has 6"),
    "no features": (_other(0), "statistics of 0 features"),
    "not finite": (spoiled("sigma", _with((2, 2), np.nan)), "sigma has 1 values that are not finite"),
    "infinite mean": (spoiled("mu", _with((1,), np.inf)), "mu has 1 values that are not finite"),
    "not symmetric": (spoiled("sigma", _with((0, 3), 5.0)), "sigma is not symmetric"),
    "negative": (spoiled("sigma", _with((3, 3), -1.0)), "sigma has the eigenvalue -1.*none may be below zero"),
    "words": (spoiled("mu", lambda mu: np.array(["a"] * D)), "mu holds <U1; real numbers are accepted"),
    "no mu": (lambda path, given: np.savez(path, mean=given.mean, sigma=given.cov), "has no mu, but mean, sigma"),
    "nothing": (lambda path, given: np.savez(path), "has no mu and no sigma, but nothing"),
    "cut short": (_cut, "not a whole .npz"),
    "empty": (lambda path, given: path.write_bytes(b""), "not a whole .npz"),
    "a single array": (_single, "is a single array"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_serve_is_refused_by_name(tmp_path: Path, given: Statistics, kind: str) -> None:
    """Each would otherwise give a number that means nothing, or a traceback."""
    write, message = REFUSED[kind]
    path = tmp_path / "given.npz"
    write(path, given)
    with pytest.raises(DataError, match=f"given.npz: .*{message}"):
        read(path)


class Trap:
    """A pickle that runs code when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (_spring, (str(self.mark),))


def _spring(mark: str) -> dict[str, object]:
    Path(mark).touch()
    return {"mu": np.zeros(D), "sigma": np.eye(D)}


@pytest.mark.parametrize("how", ["pickle", "object arrays"])
def test_a_pickle_is_never_opened_and_the_way_to_convert_it_works(tmp_path: Path, how: str) -> None:
    """Reading a pickle runs what its writer wants; who trusts it gets a command that makes a plain file of it."""
    path, mark = tmp_path / "old.npz", tmp_path / "sprung"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Trap(mark)))
    else:
        np.savez(path, mu=np.array([Trap(mark)], dtype=object), sigma=np.eye(D))
    with pytest.raises(DataError, match="is pickled, and reading it could run any code; if you trust it, convert it once: python -c "):
        read(path)
    assert not mark.exists()


def test_the_command_that_converts_a_pickle_does(tmp_path: Path, given: Statistics) -> None:
    """Advice that fails is worse than none."""
    path = tmp_path / "old.pkl"
    path.write_bytes(pickle.dumps({"mu": given.mean, "sigma": given.cov}))
    with pytest.raises(GdaError) as refused:
        read(path)
    code = str(refused.value).split('python -c "')[1].removesuffix('"')
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert statistics_digest(read(tmp_path / "plain.npz")) == statistics_digest(given)


def test_a_file_that_is_not_there_is_a_mistake_of_configuration(tmp_path: Path) -> None:
    """It names the field, since the path was written there."""
    with pytest.raises(ConfigError, match=r"validate\.reference_statistics: .*nowhere\.npz does not exist"):
        read(tmp_path / "nowhere.npz")
