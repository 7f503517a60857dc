"""What every section of the configuration is built from."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of every section: strict types, frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Guidance = Annotated[float, Field(ge=1.0, le=100.0)]
