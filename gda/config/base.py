"""The base class and common types of every configuration section."""

from collections.abc import Collection
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of every section: strict types, frozen, no unknown keys, no NaN or infinity.

    `LATER` lists the fields that were added after the first release.
    """

    LATER: ClassVar[Collection[str]] = ()

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    def recorded(self, exclude: Collection[str]) -> dict[str, Any]:
        """The fields that a recipe records, without `exclude`, as plain JSON types.

        A field of `LATER` is left out while it has its default, so that outputs from before the field existed stay up to date.
        """
        off = {name for name in self.LATER if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(mode="json", exclude={*exclude, *off})


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
GuidanceScale = Annotated[float, Field(ge=1.0, le=100.0)]
