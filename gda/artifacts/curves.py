"""Documents of what is measured along an axis: accuracy by synthetic images, and by real ones."""

from typing import Literal

from pydantic import Field

from gda.artifacts.document import SCHEMA_VERSION, Document
from gda.config.arm import Arm


class RatioPoint(Document):
    """Real + synthetic at one ratio, on the validation split; `gain` is over real alone, with equal seeds and training steps."""

    ratio: float = Field(description="synthetic images to real training images")
    num_images: int = Field(description="synthetic images")
    top1: tuple[float, ...] = Field(description="by seed; ratios that were dropped early have fewer")
    gain: float
    ci95: tuple[float, float] = Field(description="over seeds, whose variance is pooled over ratios, and images")


class RatioCurve(Document):
    """`ratio.json`: how accuracy on validation depends on the number of synthetic images, and where it peaks."""

    schema_version: Literal[1] = SCHEMA_VERSION
    points: tuple[RatioPoint, ...] = Field(description="by ratio; empty when the synthetic set was refused, which `skipped` explains")
    real_top1: tuple[float, ...] = Field((), description="of real alone by seed")
    peak: float | None = Field(None, description="ratio at which a parabola over log ratio is highest, within the measured range")
    peak_ci95: tuple[float, float] | None = None
    best: float | None = Field(None, description="measured ratio with the highest mean accuracy among those kept to the end")
    enough: float | None = Field(None, description="smallest measured ratio within one standard error of the best")
    at_edge: Literal["", "smallest", "largest"] = Field(
        "", description="the peak is at this end of the measured range, so it may lie beyond"
    )
    notes: tuple[str, ...] = ()
    skipped: str | None = None
    num_real: int
    num_val: int
    num_train_steps: int
    snapshot_digest: str
    synthetic_digest: str


class Exchange(Document):
    """How many real images one synthetic image is worth, by what real alone reached at each size."""

    rate: float | None = Field(description="null where it lies beyond the sizes that were trained")
    low: float | None = Field(description="null where the interval is open")
    high: float | None
    num_synthetic: int
    method: Literal["power law", "measured sizes"] = Field(
        "power law",
        description="measured sizes: from the two sizes between which the arm lies, without a fit; older documents fitted a power law",
    )


class SizePoint(Document):
    """Results at one number of real training images, over all random subsets of it; accuracies are shares of the test split."""

    num_train: int
    choices: int = Field(description="evaluations, each on another random subset of that size")
    seeds: int = Field(description="paired seeds over all subsets")
    real_top1: tuple[float, ...] = Field(description="of real alone, by subset, mean over seeds")
    top1: tuple[float, ...] = Field(description="of the arm, by subset, mean over seeds")
    gain: float
    ci95: tuple[float, float] = Field(description="over subsets and images; with a single subset, over seeds and images")
    exchange: Exchange | None = Field(None, description="null with fewer than three sizes, and where `unpriced` gives a reason")
    unpriced: str | None = Field(None, description="why no exchange rate is stated")


class SizeComparison(Document):
    """`comparison.json`: the gain of one arm over real alone by the number of real training images, on one test split."""

    schema_version: Literal[1] = SCHEMA_VERSION
    arm: Arm
    points: tuple[SizePoint, ...] = Field(description="by number of real images")
    num_test: int
    test_digest: str
    skipped: tuple[str, ...] = Field((), description="evaluations in which the arm did not run, and why")
