"""The base class and common types of every configuration section."""

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of every section: strict types, frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    def recorded(self, exclude: Collection[str]) -> dict[str, Any]:
        """The fields that a fingerprint records, without `exclude`, as plain JSON types."""
        return self.model_dump(mode="json", exclude=set(exclude))


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
GuidanceScale = Annotated[float, Field(ge=1.0, le=100.0)]
