"""Mean and covariance of a feature set in a file: `mu` [d] and `sigma` [d, d] in an `.npz`, as in files of ADM and pytorch-fid."""

import io
import zipfile
from pathlib import Path

import numpy as np

from gda.errors import ConfigError, DataError
from gda.fidelity.frechet import Statistics
from gda.fidelity.threads import one_thread
from gda.io.tensors import tensors_digest
from gda.runtime.reading import PickledError, parser, read_npz

_FIELD = "validate.reference_statistics"
_LARGEST = 1 << 30  # bytes of an array: 11,000 dimensions
_SLACK = 1e-5  # relative to the largest entry: what float32 leaves of symmetry and of eigenvalues that are zero


def read_statistics_file(path: Path, *, dim: int, extractor: str) -> Statistics:
    """Statistics of features with `dim` dimensions; such a file does not hold their count.

    Raises `ConfigError` where there is no file, `DataError` unless `mu` and `sigma` are finite and of that dimension, and `sigma` is a
    covariance: symmetric, without negative eigenvalues. Nothing is ever unpickled.
    """
    mean, cov = _arrays(path)
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise DataError(f"{path}: mu has shape {mean.shape} and sigma {cov.shape}; (d,) and (d, d) are accepted")
    if len(mean) != dim:
        raise DataError(
            f"{path}: holds statistics of {len(mean)} features, but {extractor} has {dim}; measure them with the same extractor"
        )
    for name, array in (("mu", mean), ("sigma", cov)):
        if not np.isfinite(array).all():
            raise DataError(f"{path}: {name} has {np.count_nonzero(~np.isfinite(array))} values that are not finite")
    largest = float(np.abs(cov).max())
    if (apart := float(np.abs(cov - cov.T).max())) > _SLACK * largest:
        raise DataError(f"{path}: sigma is not symmetric (off by {apart:.3g}), so it is no covariance")
    cov = (cov + cov.T) / 2
    if (smallest := _smallest_eigenvalue(cov)) < -_SLACK * largest:
        raise DataError(f"{path}: sigma has the eigenvalue {smallest:.3g}, so it is no covariance; none may be below zero")
    return Statistics(mean=mean, cov=cov, n=None)


def statistics_bytes(statistics: Statistics) -> bytes:
    """The bytes of such a file, as `numpy.savez` writes it but without a time stamp: equal statistics give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in (("mu", statistics.mean), ("sigma", statistics.cov)):
            data = io.BytesIO()
            np.lib.format.write_array(data, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), data.getvalue())
    return buffer.getvalue()


def statistics_digest(statistics: Statistics) -> str:
    """Content digest, independent of the file and the type of its floats."""
    return tensors_digest({"mu": statistics.mean, "sigma": statistics.cov})


def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """`mu` and `sigma` in float64."""
    if not path.exists():
        raise ConfigError(f"{_FIELD}: {path} does not exist; the path of an .npz with mu and sigma is accepted")
    _require_archive(path)
    try:
        found, held = read_npz(path, ("mu", "sigma"), limit=_LARGEST)
    except PickledError:
        raise DataError(_pickled(path)) from None
    if missing := [name for name in ("mu", "sigma") if name not in found]:
        raise DataError(f"{path}: has no {' and no '.join(missing)}, but {', '.join(sorted(held)) or 'nothing'}")
    arrays = [found[name] for name in ("mu", "sigma")]
    for name, array in zip(("mu", "sigma"), arrays, strict=True):
        if array.dtype.kind not in "fiu":
            raise DataError(f"{path}: {name} holds {array.dtype}; real numbers are accepted")
    return arrays[0].astype(np.float64), arrays[1].astype(np.float64)


def _require_archive(path: Path) -> None:
    """Refuse a single array and a pickle, which are recognised by their first bytes."""
    with parser(path, "a whole .npz"), path.open("rb") as file:
        head = file.read(6)
    if head == b"\x93NUMPY":
        raise DataError(f"{path}: is a single array; an .npz with mu and sigma is accepted")
    if head.startswith(b"\x80"):
        raise DataError(_pickled(path))


def _pickled(path: Path) -> str:
    code = f"import numpy as n; f = n.load({path.name!r}, allow_pickle=True); n.savez('plain.npz', mu=f['mu'], sigma=f['sigma'])"
    return f'{path}: is pickled, and reading it could run any code; if you trust it, convert it once: python -c "{code}"'


@one_thread
def _smallest_eigenvalue(cov: np.ndarray) -> float:
    return float(np.linalg.eigvalsh(cov)[0]) if len(cov) else 0.0
