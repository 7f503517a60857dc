"""What every section of the configuration is built from."""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of every section: strict types, frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Arm(StrEnum):
    """One training condition of the comparison."""

    REAL = "real"
    REAL_LONG = "real_long"
    REAL_STRONG = "real_strong"
    RETRIEVED = "retrieved"
    ZERO_SHOT = "zero_shot"
    IMG2IMG = "img2img"
    SYNTHETIC = "synthetic"
    MIXED = "real+synthetic"
    TARGETED = "targeted"
    LAST_LAYER = "last_layer"


# Arms whose every seed is compared by seed: the usual candidate and what it has to beat. The others are controls with fewer seeds.
PAIRED_ARMS = (Arm.REAL, Arm.REAL_LONG, Arm.REAL_STRONG, Arm.MIXED)
# Arms without generated images beyond the real ones, or with images that no generator was trained for: what a candidate may have to beat.
RIVAL_ARMS = (Arm.REAL, Arm.REAL_LONG, Arm.REAL_STRONG, Arm.RETRIEVED, Arm.IMG2IMG)
