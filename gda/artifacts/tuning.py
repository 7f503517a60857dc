"""`settings.json`: the points of a sweep, and the settings that were chosen."""

from typing import Literal

from pydantic import Field

from gda.artifacts.document import SCHEMA_VERSION, Document
from gda.errors import DataError


class SamplingSettings(Document):
    """What determines an image, besides generator, prompt and seed; only cascades read the `sr_` fields."""

    guidance_scale: float
    num_inference_steps: int = 16
    scheduler: str = "model"
    guidance_interval: tuple[float, float] = Field(
        (0.0, 1.0), description="noise levels at which guidance is on, in shares of the timesteps"
    )
    log_variance_mix: float | None = Field(None, description="ancestral ddpm only; null leaves the variance to the model")
    sr_guidance_scale: float = 1.0
    sr_num_inference_steps: int = 6
    sr_noise_level: int = 0
    sr_log_variance_mix: float | None = None


class TuningPoint(Document):
    """One setting of the sweep; FID and CAS are on the validation split, CAS only for the survivors."""

    settings: SamplingSettings
    ema_sigma_rel: float | None = Field(None, description="width of the average of the weights; null: the generator without averaging")
    nfe: int = Field(ge=1, description="network evaluations (passes) per image; a guided step takes two")
    fid: float | None = Field(description="null where sampling or measuring failed, which `failed` explains")
    fid_ci95: tuple[float, float] | None = Field(None, description="spread of sets of this size, from halves without replacement")
    cas: float | None = None
    cas_by_seed: tuple[float, ...] = ()
    pareto: bool = Field(False, description="no other point is at least as good in FID, CAS and NFE, and better in one")
    failed: str | None = Field(None, description="why sampling or measuring failed; such a point is never chosen")

    @property
    def guidance_scale(self) -> float:
        """Guidance of the base stage."""
        return self.settings.guidance_scale


class Settings(Document):
    """`settings.json` of tune: the sampling settings chosen, with the full table."""

    schema_version: Literal[1] = SCHEMA_VERSION
    chosen: SamplingSettings
    ema_sigma_rel: float | None = Field(None, description="chosen width of the average of the weights; null: no averaging")
    points: tuple[TuningPoint, ...]
    extractor: str
    fid_floor: float | None = Field(description="FID of as many real training images, or all where there are fewer")
    num_images: int = Field(description="images per FID point")
    generator_digest: str = Field(description="of the given generator; `ema_sigma_rel` is the average of it that was chosen")
    snapshot_digest: str
    notes: tuple[str, ...] = Field((), description="axes that do not apply to this generator, in sentences")

    @property
    def guidance_scale(self) -> float:
        """The guidance that was chosen for the base stage."""
        return self.chosen.guidance_scale

    @property
    def chosen_point(self) -> TuningPoint:
        """The line of the table that was chosen. Raises `DataError` when the table does not hold it."""
        found = [point for point in self.points if (point.settings, point.ema_sigma_rel) == (self.chosen, self.ema_sigma_rel)]
        if not found:
            raise DataError("settings.json: the chosen settings are not in its table of points")
        return found[0]
