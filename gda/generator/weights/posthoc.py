"""Averages whose width is chosen after training: training stores two power-function averages, and any other width is fitted to them.

Karras et al. 2023, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3 and appendix C. The width of an
average, `sigma_rel`, is the standard deviation of its profile over training time, relative to that time.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch

from gda.errors import ConfigError, DataError
from gda.io.atomic import write_bytes
from gda.io.tensors import tensors_digest
from gda.runtime.disks import storage_errors

EMA_FOLDER = "ema"  # below a generator, one folder per stage
SIGMA_RELS = (0.05, 0.10)
SIGMA_REL_LIMIT = 12**-0.5  # gamma = 0, the plain mean; wider profiles would weight early steps above late ones
_NARROWEST = 1e-7  # one step of the longest training there is
_METADATA = "gda"  # one key with JSON: safetensors writes several keys in random order, and equal snapshots must give equal bytes
_NEGLIGIBLE = 1e-12  # share of the Gram matrix below which a direction is ignored: almost equal profiles have no unique weights


def gamma_to_sigma_rel(gamma: float) -> float:
    """Width of the profile t^gamma on (0, 1], for gamma >= 0."""
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def sigma_rel_to_gamma(sigma_rel: float) -> float:
    """The exponent gamma > 0 of the profile of this width. Raises `ConfigError` outside 1e-7 <= sigma_rel < 12^-1/2.

    Squared, `gamma_to_sigma_rel` is the cubic (g + 2)^2 (g + 3) = (g + 1) / sigma_rel^2, which has one positive root in that range.
    """
    if not _NARROWEST <= sigma_rel < SIGMA_REL_LIMIT:
        raise ConfigError(f"sigma_rel: expected {_NARROWEST:g} <= sigma_rel < {SIGMA_REL_LIMIT:.4f}, got {sigma_rel}")
    t = sigma_rel**-2.0
    return float(np.roots([1.0, 7.0, 16.0 - t, 12.0 - t]).real.max())


class PowerAverages:
    """Power-function averages of named float32 tensors, one set per width, on the tensors' device; other types are copied."""

    def __init__(self, values: Mapping[str, torch.Tensor], *, sigma_rels: Sequence[float] = SIGMA_RELS) -> None:
        self._gammas = {sigma_rel: sigma_rel_to_gamma(sigma_rel) for sigma_rel in sigma_rels}
        self._sets = {sigma_rel: {name: v.detach().clone() for name, v in values.items()} for sigma_rel in sigma_rels}
        self._averaged = [name for name, v in values.items() if v.is_floating_point()]
        self._copied = [name for name, v in values.items() if not v.is_floating_point()]

    @property
    def sigma_rels(self) -> tuple[float, ...]:
        return tuple(self._sets)

    @torch.no_grad()
    def update(self, values: Mapping[str, torch.Tensor], step: int) -> None:
        """Add the values after optimizer step `step`, counted from 1; at step 1 the averages become the values."""
        if step < 1:
            raise ValueError(f"step {step}: steps are counted from 1")
        for sigma_rel, average in self._sets.items():
            decay = (1 - 1 / step) ** (self._gammas[sigma_rel] + 1)
            if self._averaged:
                torch._foreach_lerp_([average[n] for n in self._averaged], [values[n].detach() for n in self._averaged], 1 - decay)
            for name in self._copied:
                average[name].copy_(values[name])

    def of(self, sigma_rel: float) -> dict[str, torch.Tensor]:
        """One average by name; not a copy."""
        return self._sets[sigma_rel]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state for a checkpoint, under `<sigma_rel>/<name>`; not copies."""
        return {f"{sigma_rel}/{name}": v for sigma_rel, average in self._sets.items() for name, v in average.items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore the state that `tensors` returned; values are copied."""
        for key, own in self.tensors().items():
            own.copy_(tensors[key])


def write_snapshot(folder: Path, averages: PowerAverages, step: int) -> None:
    """Store every average after `step`, one float32 file per width, each whole or absent; the same averages give the same bytes.

    Float32, where the paper stores float16: after a short fine-tuning two widths may differ by less than the rounding of float16, and a
    combination adds up several roundings. A snapshot of two widths takes 8 bytes per weight.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for sigma_rel in averages.sigma_rels:
        arrays = {name: v.cpu().contiguous().numpy() for name, v in averages.of(sigma_rel).items()}
        digests = {name: tensors_digest({name: array}) for name, array in arrays.items()}
        about = {"step": step, "sigma_rel": sigma_rel, "digests": digests}
        data = safetensors.numpy.save(arrays, metadata={_METADATA: json.dumps(about, sort_keys=True)})
        write_bytes(folder / f"step-{step:08d}-sigma_rel-{sigma_rel}.safetensors", data)


@dataclass(frozen=True, kw_only=True)
class StoredAverage:
    """A file of `write_snapshot`: the average of width `sigma_rel` after `step`, with the digest of each tensor by name."""

    path: Path
    step: int
    sigma_rel: float
    digests: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The weights of stored averages that give the average of width `sigma_rel` at `step`; they add up to 1.

    `residual` is the L2 distance of the fitted profile from the one requested, relative to the latter's norm.
    """

    sigma_rel: float
    step: int
    stored: tuple[StoredAverage, ...]
    weights: tuple[float, ...]
    residual: float


def stored_averages(folder: Path) -> list[StoredAverage]:
    """The averages in `folder` in order of step, read from the files' headers. Raises `DataError` naming an unusable file."""
    found = [_read_header(path) for path in sorted(folder.glob("*.safetensors"))]
    if not found:
        raise DataError(f"{folder}: holds no snapshots of averaged weights; finetune writes them where finetune.ema_snapshot_steps is set")
    return sorted(found, key=lambda stored: (stored.step, stored.sigma_rel))


def fit(stored: Sequence[StoredAverage], sigma_rel: float, step: int | None = None) -> Fit:
    """Fit the profile of width `sigma_rel` at `step` (default: the last stored) by those of `stored`.

    Raises `ConfigError` for a width or step out of range.
    """
    last = stored[-1].step
    step = last if step is None else step
    gamma = sigma_rel_to_gamma(sigma_rel)
    if not 1 <= step <= last:
        raise ConfigError(f"step: expected 1 to {last}, the last snapshot in {stored[-1].path.parent}, got {step}")
    # The first snapshot after `step` still holds information about earlier steps; later ones add none.
    reach = min(s.step for s in stored if s.step >= step)
    used = tuple(s for s in stored if s.step <= reach)
    for exact in used:
        if (exact.step, exact.sigma_rel) == (step, sigma_rel):
            return Fit(sigma_rel=sigma_rel, step=step, stored=(exact,), weights=(1.0,), residual=0.0)
    steps = np.array([s.step for s in used], dtype=np.float64)
    gammas = np.array([sigma_rel_to_gamma(s.sigma_rel) for s in used])
    weights, distance = _least_squares(steps, gammas, float(step), gamma)
    return Fit(sigma_rel=sigma_rel, step=step, stored=used, weights=tuple(weights.tolist()), residual=distance)


def residual(folder: Path, sigma_rel: float, *, step: int | None = None) -> float:
    """Relative L2 distance between the profile that `reconstruct` would use and the one requested; raises as it does."""
    return fit(stored_averages(folder), sigma_rel, step).residual


def reconstruct(folder: Path, sigma_rel: float, *, step: int | None = None) -> dict[str, torch.Tensor]:
    """The average of width `sigma_rel` at `step` (default: the last stored) from the snapshots in `folder`, float32 by name.

    Accurate if `residual` is small. Raises `ConfigError` for a width or step out of range, `DataError` naming a damaged file.
    """
    return combine(fit(stored_averages(folder), sigma_rel, step))


def combine(fitted: Fit) -> dict[str, torch.Tensor]:
    """The weighted sum of a fit's files, summed in float64 and read tensor by tensor; each tensor read is checked against its digest."""
    first = fitted.stored[0]
    for stored in fitted.stored:
        if stored.digests.keys() != first.digests.keys():
            raise DataError(f"{stored.path}: holds other tensors than {first.path}")
    files = [(stored, _open(stored.path)) for stored in fitted.stored]
    return {name: _weighted(name, files, fitted.weights) for name in sorted(first.digests)}


@contextmanager
def whole_file(path: Path) -> Iterator[None]:
    """Turn errors from reading a safetensors file into a `DataError` that names it."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: not a whole safetensors file ({error})") from None


def _least_squares(steps: np.ndarray, gammas: np.ndarray, step: float, gamma: float) -> tuple[np.ndarray, float]:
    """Weights of the stored profiles, and the relative L2 distance of their sum from the profile (step, gamma).

    The weights must add up to 1, which the paper does not require: fine-tuned weights are a large constant plus a small change, and
    a sum of 0.99 would scale the constant. Profiles are scaled to unit norm first, to improve the condition of the Gram matrix.
    """
    norms, target = np.sqrt(_inner(steps, gammas, steps, gammas)), np.sqrt(_inner(step, gamma, step, gamma))
    gram = _inner(steps[:, None], gammas[:, None], steps, gammas) / np.outer(norms, norms)
    wanted = _inner(steps, gammas, step, gamma) / (norms * target)
    mass = target / norms  # contribution of a unit of each scaled profile to the sum of weights
    inverse = np.linalg.pinv(gram, rcond=_NEGLIGIBLE, hermitian=True)
    free, correction = inverse @ wanted, inverse @ mass
    scaled = free + correction * (1 - mass @ free) / (mass @ correction)
    squared = 1 - 2 * wanted @ scaled + scaled @ gram @ scaled
    return scaled * mass, math.sqrt(max(0.0, float(squared)))


def _inner(steps_a: Any, gammas_a: Any, steps_b: Any, gammas_b: Any) -> Any:
    """Inner product of profiles (gamma + 1) t^gamma / T^(gamma + 1) on (0, T], broadcast; the ratio keeps large powers finite.

    The update rule weights step i by the profile's integral over (i - 1, i], so this distance bounds the one over steps.
    """
    longer = np.maximum(steps_a, steps_b)
    exponent = np.where(steps_a < steps_b, gammas_b, gammas_a)
    ratio = np.minimum(steps_a, steps_b) / longer
    return (gammas_a + 1) * (gammas_b + 1) / (gammas_a + gammas_b + 1) * ratio**exponent / longer


def _open(path: Path) -> Any:
    with whole_file(path):
        return safetensors.safe_open(path, framework="numpy")


def _read_header(path: Path) -> StoredAverage:
    metadata = _open(path).metadata() or {}
    try:
        about = json.loads(metadata[_METADATA])
        return StoredAverage(path=path, step=int(about["step"]), sigma_rel=float(about["sigma_rel"]), digests=dict(about["digests"]))
    except (KeyError, ValueError, TypeError):
        raise DataError(f"{path}: not a snapshot of averaged weights, its header does not state step, width and digests") from None


def _weighted(name: str, files: Sequence[tuple[StoredAverage, Any]], weights: Sequence[float]) -> torch.Tensor:
    """The weighted sum of one tensor in its own type; for a tensor that was not averaged, its newest value."""
    newest = _read_tensor(*files[-1], name)
    if newest.dtype.kind != "f":
        return torch.from_numpy(newest)
    total = weights[-1] * newest.astype(np.float64)
    for (stored, file), weight in zip(files[:-1], weights[:-1], strict=True):
        array = _read_tensor(stored, file, name)
        if array.shape != newest.shape:
            raise DataError(f"{stored.path}: {name} has shape {array.shape}, in {files[-1][0].path.name} {newest.shape}")
        total += weight * array.astype(np.float64)
    return torch.from_numpy(np.asarray(total, newest.dtype))


def _read_tensor(stored: StoredAverage, file: Any, name: str) -> np.ndarray:
    with whole_file(stored.path):
        array: np.ndarray = file.get_tensor(name)
    if tensors_digest({name: array}) != stored.digests[name]:
        raise DataError(f"{stored.path}: damaged, {name} is not what was written")
    return array
