"""Sections `evaluate` and `promote` of the configuration: what is measured on the test split, and what a model has to show."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from gda.config.arm import ARMS, Arm
from gda.config.base import Section

FilePath = Annotated[str, Field(min_length=1)]
SetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class EvaluateConfig(Section):
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="confidence level of every interval")
    num_resamples: int = Field(4000, ge=200, le=1_000_000, description="bootstrap resamples of the ratio curves")
    shot_cuts: tuple[int, int] = Field(
        (20, 100),
        description="two numbers of real training images: classes with fewer than the first are reported as few-shot, with more than the "
        "second as many-shot",
    )
    worst_share: float = Field(0.1, gt=0.0, lt=1.0, description="share of the classes that are reported together as the worst, rounded up")
    sets: dict[SetName, FilePath] = Field(
        default_factory=dict, description="robustness sets: name -> folder of class folders, or of images whose labels are in set_labels"
    )
    class_map: FilePath | None = Field(
        None,
        description="CSV (folder,class) or JSON object that maps the sets' folder names to our class names; an empty class or null leaves a"
        " folder out",
    )
    set_labels: dict[SetName, FilePath] = Field(
        default_factory=dict, description="set -> JSON list of several labels per image, ordered by file name, such as ReaL's"
    )
    restrict: tuple[str, ...] = Field(
        (), description="sets on which predictions are limited to the set's own classes, as for ImageNet-R and ImageNet-A"
    )

    @field_validator("shot_cuts")
    @classmethod
    def _cuts_ascend(cls, cuts: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= cuts[0] <= cuts[1]:
            raise ValueError(f"accepted: two numbers of images from 1 up, the smaller one first; not {list(cuts)}")
        return cuts

    @model_validator(mode="after")
    def _sets_are_there(self) -> "EvaluateConfig":
        for field, names in (("set_labels", self.set_labels), ("restrict", self.restrict)):
            if unknown := [name for name in names if name not in self.sets]:
                raise ValueError(f"{field} names {unknown[0]!r}, which is none of evaluate.sets ({', '.join(self.sets) or 'empty'})")
        return self


class PromoteConfig(Section):
    arm: Arm = Field(Arm.MIXED, description="the one arm that may be promoted, declared before the run")
    rivals: tuple[Arm, ...] = Field(
        (),
        description="arms that this one has to beat, trained without the validated synthetic set and declared before the run; empty uses "
        "the real-only training that is strongest on validation; plain real-only training of equal length must always be beaten",
    )
    min_seeds: int = Field(6, ge=2, description="lowest number of paired seeds; with five the sign-flip test cannot reach 0.05")
    alpha: float = Field(0.05, gt=0.0, lt=0.5, description="significance level of the gain and of per-class harm")
    model_name: str = Field("gda-classifier", min_length=1, description="registered model name in MLflow")
    allowed_licences: tuple[str, ...] = Field(
        ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "openrail++"),
        description="licences of the generator's base under which a classifier may be promoted; an unknown licence is never accepted",
    )

    @model_validator(mode="after")
    def _rivals_are_rivals(self) -> "PromoteConfig":
        if wrong := [arm for arm in self.rivals if not arm.data.rival or arm == self.arm]:
            raise ValueError(f"rivals names {wrong[0]}; accepted: {', '.join(arm for arm in ARMS if arm.data.rival and arm != self.arm)}")
        return self
