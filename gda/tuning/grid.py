"""The grid of a tuning sweep and the choice among its points: pure functions, without torch, disk or clock."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gda.artifacts.tuning import SamplingSettings, TuningPoint
from gda.config.sections import TuneConfig
from gda.errors import ConfigError, DataError

_WHOLE = (0.0, 1.0)
_DEFAULTS = SamplingSettings(guidance_scale=1.0)


@dataclass(frozen=True, kw_only=True)
class GeneratorParts:
    """The parts of a generator that decide which axes apply: the stages after its base, and snapshots of weights to average."""

    super_resolution: bool
    upscaler: bool
    averages: bool

    @property
    def enlarging(self) -> int:
        """Stages after the base; all of them are sampled with the `sr_` guidance and steps."""
        return self.super_resolution + self.upscaler


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting to try; `ema_sigma_rel` None is the generator's own weights."""

    settings: SamplingSettings
    ema_sigma_rel: float | None = None


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The points of a sweep, ordered and unique, and notes on axes that do not apply."""

    points: tuple[Point, ...]
    notes: tuple[str, ...]


def make_grid(tune: TuneConfig, parts: GeneratorParts) -> Grid:
    """The product of all axes of `tune`, without duplicates that would sample equal images.

    Guidance 1 ignores the interval; an axis that does not apply to the generator is set to its default, with a note.
    Raises `ConfigError` for an empty or reversed interval, and for mixes of log-variances without the ancestral sampler.
    """
    _check(tune)
    unused = _unused(tune, parts)
    product = itertools.product(
        tune.guidance_scales,
        tune.guidance_intervals,
        tune.log_variance_mixes,
        tune.num_inference_steps,
        *((getattr(_DEFAULTS, field),) if axis in unused else getattr(tune, axis) for axis, field in _SR_AXES.items()),
        (None,) if "ema_sigma_rels" in unused else tune.ema_sigma_rels,
    )
    points = {_point(tune.scheduler, *values) for values in product}
    return Grid(points=tuple(sorted(points, key=_order)), notes=tuple(f"tune.{axis}: {why}" for axis, why in unused.items() if why))


def nfe(settings: SamplingSettings, parts: GeneratorParts) -> int:
    """NFE, network evaluations per image: one per step, and a second one if guidance applies.

    Assumes steps evenly spaced over the noise levels; a scheduler's own spacing may differ by a step.
    """
    steps, (low, high) = settings.num_inference_steps, settings.guidance_interval
    guided = sum(low <= (step + 0.5) / steps <= high for step in range(steps)) if settings.guidance_scale != 1.0 else 0
    later = settings.sr_num_inference_steps * (2 if settings.sr_guidance_scale != 1.0 else 1)
    return steps + guided + parts.enlarging * later


def survivors(points: Sequence[TuningPoint], count: int) -> list[int]:
    """Indices of the `count` points of lowest FID, in that order. Raises `DataError` if no point could be sampled and measured."""
    measured = [(point.fid, place) for place, point in enumerate(points) if point.fid is not None]
    if not measured:
        raise DataError(f"tune: none of {len(points)} points could be sampled and measured; {_first_reason(points)}")
    return [place for _, place in sorted(measured)[:count]]


def choose_point(points: Sequence[TuningPoint]) -> TuningPoint:
    """The one-standard-error rule: of the points with a mean CAS within one standard error of the best, the one of lowest FID.

    So a difference in CAS that other seeds could reverse does not decide. Ties in FID go to the higher CAS, then to lower guidance,
    then to the lower NFE. Raises `DataError` if no point has a CAS.
    """
    scored = [(point.cas, point.fid, point) for point in points if point.cas is not None and point.fid is not None]
    if not scored:
        raise DataError(f"tune: no survivor could be sampled and scored; {_first_reason(points)}")
    enough = max(cas for cas, _, _ in scored) - standard_error([point for _, _, point in scored])
    within = [(fid, -cas, point.guidance_scale, point.nfe, place) for place, (cas, fid, point) in enumerate(scored) if cas >= enough]
    return scored[min(within)[-1]][2]


def standard_error(points: Sequence[TuningPoint]) -> float:
    """Standard error of a point's mean CAS over seeds; 0 with one seed.

    The variance is pooled over the points, because two or three seeds of one point estimate it poorly.
    """
    several = [point.cas_by_seed for point in points if len(point.cas_by_seed) > 1]
    return float(np.sqrt(np.mean([np.var(scores, ddof=1) / len(scores) for scores in several]))) if several else 0.0


def pareto(points: Sequence[TuningPoint]) -> list[bool]:
    """Whether no other point is at least as good in FID, CAS and NFE, and better in one of them.

    A missing CAS counts as the lowest; a point without FID is never on the front.
    """
    aims = [_aims(point) for point in points]
    rows = np.array([aim for aim in aims if aim is not None]).reshape(-1, 3)
    return [aim is not None and not bool(((rows <= aim).all(1) & (rows < aim).any(1)).any()) for aim in aims]


def like_the_best(points: Sequence[TuningPoint]) -> list[bool]:
    """Whether the interval of a point's FID overlaps that of the lowest FID, so that this number of images cannot distinguish them."""
    measured = [(point.fid, point.fid_ci95) for point in points if point.fid is not None and point.fid_ci95 is not None]
    if not measured:
        return [False] * len(points)
    low, high = min(measured)[1]
    return [point.fid_ci95 is not None and point.fid_ci95[0] <= high and low <= point.fid_ci95[1] for point in points]


_SR_AXES = {
    "sr_guidance_scales": "sr_guidance_scale",
    "sr_num_inference_steps": "sr_num_inference_steps",
    "sr_noise_levels": "sr_noise_level",
    "sr_log_variance_mixes": "sr_log_variance_mix",
}


def _point(
    scheduler: str, guidance: float, interval: tuple[float, float], mix: float | None, steps: int, *rest: float | int | None
) -> Point:
    *later, sigma_rel = rest
    values = dict(zip(_SR_AXES.values(), later, strict=True)) | {
        "guidance_scale": guidance,
        "guidance_interval": interval if guidance != 1.0 else _WHOLE,
        "log_variance_mix": mix,
        "num_inference_steps": steps,
        "scheduler": scheduler,
    }
    return Point(settings=SamplingSettings.model_validate(values), ema_sigma_rel=sigma_rel)


def _order(point: Point) -> tuple[float, ...]:
    """By guidance first; null before every number."""
    values = point.settings.model_dump(exclude={"scheduler"}) | {"ema_sigma_rel": point.ema_sigma_rel}
    low, high = values.pop("guidance_interval")
    return tuple(-1.0 if value is None else float(value) for value in [values.pop("guidance_scale"), low, high, *values.values()])


def _check(tune: TuneConfig) -> None:
    for low, high in tune.guidance_intervals:
        if low >= high:
            raise ConfigError(f"tune.guidance_intervals: must go from a lower to a higher share, got [{low:g}, {high:g}]")
    for axis in ("log_variance_mixes", "sr_log_variance_mixes"):
        given = [mix for mix in getattr(tune, axis) if mix is not None]
        if given and tune.scheduler != "ddpm":
            raise ConfigError(f"tune.{axis}: must be [null] unless tune.scheduler is ddpm, got {given[0]:g} with {tune.scheduler}")


def _unused(tune: TuneConfig, parts: GeneratorParts) -> dict[str, str]:
    """Axes that do not apply to the generator, with the text of the note: empty if the user left the axis at its default."""
    missing: dict[str, str] = {}
    if not parts.enlarging:
        missing |= dict.fromkeys(_SR_AXES, "the generator has no stage after its base")
    elif not parts.super_resolution:
        missing |= dict.fromkeys(("sr_noise_levels", "sr_log_variance_mixes"), "the generator has no super-resolution stage")
    if not parts.averages:
        missing["ema_sigma_rels"] = "the generator was not fine-tuned, so there is nothing to average"
    default = TuneConfig()
    return {axis: "" if getattr(tune, axis) == getattr(default, axis) else f"does not apply, {why}" for axis, why in missing.items()}


def _aims(point: TuningPoint) -> tuple[float, float, float] | None:
    """The values to minimise."""
    return None if point.fid is None else (point.fid, 0.0 if point.cas is None else -1.0 - point.cas, float(point.nfe))


def _first_reason(points: Sequence[TuningPoint]) -> str:
    reasons = [point.failed for point in points if point.failed]
    return f"the first: {reasons[0]}" if reasons else "none has a FID"
