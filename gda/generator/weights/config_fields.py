"""Reads fields of one JSON configuration of a model; the error for a rejected value states file, field, value and accepted values."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from gda.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The content of a configuration; `where` names its file. A missing field takes the default that is passed."""

    where: str
    content: Mapping[str, Any]

    def refuse(self, field: str, accepted: str, found: Any = None) -> DataError:
        """The error for a field; the value it shows is `found`, or by default the one in the file."""
        value = self.content.get(field) if found is None else found
        return DataError(f"{self.where}: {field} must be {accepted}, found {value!r}")

    def whole(self, field: str, default: Any = None, *, low: int = 1, high: int = 10**6) -> int:
        """A whole number from `low` to `high`."""
        value = self.content.get(field, default)
        if type(value) is not int or not low <= value <= high:
            raise self.refuse(field, f"a whole number from {low} to {high}", value)
        return value

    def number(self, field: str, default: Any = None, *, above: float = -math.inf) -> float:
        """A finite number above `above`."""
        value = self.content.get(field, default)
        if type(value) not in (int, float) or not math.isfinite(value) or value <= above:
            raise self.refuse(field, "a finite number" + (f" above {above:g}" if above > -math.inf else ""), value)
        return float(value)

    def numbers(self, field: str, length: int, *, above: float = -math.inf) -> list[float] | None:
        """A list of finite numbers above `above`, or None if the field is null."""
        values = self.content.get(field)
        if values is None:
            return None
        right = isinstance(values, list) and len(values) == length
        if not right or not all(type(v) in (int, float) and math.isfinite(v) and v > above for v in values):
            raise self.refuse(field, f"null or a list of {length} finite numbers" + (f" above {above:g}" if above > -math.inf else ""))
        return [float(v) for v in values]

    def one_of(self, field: str, accepted: Collection[Any], default: Any = None) -> Any:
        """One of the accepted values; types must match too."""
        value = self.content.get(field, default)
        if not any(type(value) is type(one) and value == one for one in accepted):
            names = ", ".join("null" if one is None else str(one).lower() if isinstance(one, bool) else str(one) for one in accepted)
            raise self.refuse(field, f"one of: {names}" if len(accepted) > 1 else names, value)
        return value

    def require_absent(self, *fields: str, reason: str) -> None:
        """Each field is null or missing."""
        for field in fields:
            if self.content.get(field) is not None:
                raise self.refuse(field, f"null ({reason})")

    def require_equal(self, field: str, expected: int, reason: str, default: Any = None) -> None:
        """A whole number that must equal `expected`."""
        if self.whole(field, default) != expected:
            raise self.refuse(field, f"{expected}, {reason}", self.content.get(field, default))
