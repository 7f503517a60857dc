"""What every section of the configuration is built from."""

from collections.abc import Collection
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of every section: strict types, frozen, no unknown keys, no NaN or infinity.

    `LATER` are the fields that came after the first release.
    """

    LATER: ClassVar[Collection[str]] = ()

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    def recorded(self, exclude: Collection[str]) -> dict[str, Any]:
        """What a recipe keeps of the section, less `exclude`, as plain JSON types.

        Fields of `LATER` are left out at their default, so that outputs which were finished without them stay up to date.
        """
        off = {name for name in self.LATER if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(mode="json", exclude={*exclude, *off})


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Guidance = Annotated[float, Field(ge=1.0, le=100.0)]
