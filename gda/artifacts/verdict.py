"""The verdict on a synthetic set: measures with interval, floor and limit, and the reasons."""

from typing import Literal

from pydantic import Field

from gda.artifacts.document import SCHEMA_VERSION, Document


class Measure(Document):
    """One metric of a verdict: its value with interval, floor and limit, and what it was measured with."""

    value: float | None = Field(description="null when it could not be measured, which fails the gate")
    low: float | None = Field(None, description="lower end of the 95% interval")
    high: float | None = Field(None, description="upper end of the 95% interval")
    floor: float | None = Field(None, description="the same metric, real against real, at equal N")
    one_class: float | None = Field(
        None, description="the same metric of real images of one class, at equal N: the score of a set that has collapsed to one class"
    )
    chance: float | None = Field(
        None, exclude_if=lambda share: share is None, description="what random labels would score; null where that has no meaning"
    )
    limit: float | None = Field(None, description="the threshold that applies; null when only reported")
    passed: bool | None = Field(None, description="null when only reported")
    n: int | None = Field(None, description="images it was measured on")
    class_name: str | None = Field(
        None, exclude_if=lambda name: name is None, description="the class that was measured, where it was a single one"
    )
    num_classes: int | None = Field(
        None, exclude_if=lambda count: count is None, description="number of classes of which this is the worst"
    )
    extractor: str | None = None
    reference_digest: str | None = None


class Filtering(Document):
    """What was removed from a set before it was assessed, and how it was assessed before that."""

    rounds: int = Field(ge=1)
    dropped: dict[str, int] = Field(description="images removed, by reason; each was replaced by a new one")
    synthetic_digest: str = Field(description="of the set as it was given")
    reasons: tuple[str, ...] = Field(description="why that set was refused")
    metrics: dict[str, Measure] = Field(description="of that set")


class Verdict(Document):
    """`verdict.json`: may this synthetic set be used, and why."""

    schema_version: Literal[1] = SCHEMA_VERSION
    passed: bool
    reasons: tuple[str, ...] = Field(description="one sentence each; why it was refused, empty when passed")
    metrics: dict[str, Measure]
    synthetic_digest: str
    real_digest: str
    filtering: Filtering | None = Field(None, description="where rejected images were replaced")
