"""`metrics.json`: accuracies by arm, gains with their intervals, harm to classes, groups and robustness sets."""

from typing import ClassVar, Literal

from pydantic import Field

from gda.artifacts.document import SCHEMA_VERSION, Document
from gda.config.arm import Arm


class Confusion(Document):
    """Share of a class's test images that are predicted as another class."""

    class_name: str
    predicted: str
    share: float


class ArmResult(Document):
    """One arm on the test split; accuracies are fractions in [0, 1]."""

    seeds: tuple[int, ...]
    top1: tuple[float, ...] = Field(description="by seed")
    top5: tuple[float, ...] = Field(description="by seed")
    mean: float | None
    ci95: tuple[float, float] | None
    per_class: tuple[float, ...] = Field(description="mean top-1 over seeds by class index")
    ece: tuple[float, ...] = Field((), description="expected calibration error by seed, 15 equal bins (Guo et al. 2017)")
    nll: tuple[float, ...] = Field((), description="mean negative log-likelihood of the true class by seed, nats")
    ci95_top5: tuple[float, float] | None = Field(None, description="of the mean of `top5`, over seeds and images")
    most_confused: tuple[Confusion, ...] = Field((), description="the largest shares of a class predicted as another, over seeds")
    val_top1: tuple[float, ...] = Field((), description="by seed, on the validation split")
    num_train_steps: int | None = None
    skipped: str | None = Field(None, description="why the arm did not run")


class ClassHarm(Document):
    """A class on which an arm is significantly worse than its rival; p-values are adjusted for all classes."""

    class_name: str
    change: float
    p_value: float


class Spread(Document):
    """Uncertainty of a mean over seeds and images, from which its interval at any level follows."""

    error: float = Field(description="standard error")
    seed_share: float = Field(description="share of its square that is due to seeds; the rest is due to images")
    seed_freedom: float = Field(description="degrees of freedom of the part of seeds, or of the synthetic sets that they trained on")
    image_freedom: float = Field(description="degrees of freedom of the part of images, or of groups of them")


class Gain(Document):
    """Accuracy of an arm minus its rival's, paired by seed and image; fractions, not points."""

    mean: float
    ci95: tuple[float, float] = Field(description="over seeds and images, at the level of evaluate.confidence; the gate has its own level")
    spread: Spread | None = Field(None, description="from which the gate computes its interval; null in files of earlier versions")
    sets: int = Field(1, ge=1, description="synthetic sets; 1: results hold for this one set")
    groups: int | None = Field(None, description="groups of test images; null: every image is a group")
    ci95_seeds: tuple[float, float] | None = Field(None, description="over seeds alone")
    ci95_images: tuple[float, float] | None = Field(None, description="over images alone")
    p_value: float = Field(description="two-sided sign-flip test over paired seeds, or over synthetic sets where there are six or more")
    mcnemar_p: float | None = None
    seeds: int = Field(ge=0, description="paired seeds")
    differences: tuple[float, ...] = Field((), description="by seed")
    harmed_classes: tuple[ClassHarm, ...] = ()
    smallest_visible_harm: float | None = Field(None, description="drop of one class that would have been found significant in any class")
    smallest_common_harm: float | None = Field(
        None, description="drop of the median class that would have been found significant if a tenth of the classes had it"
    )
    minimal_detectable_effect: float | None = Field(None, description="smallest gain that this many seeds could have shown")


class GainWithinTraining(Document):
    """An arm of real and synthetic images over training on real images alone, with the same settings and no fewer steps."""

    rival: Arm
    model: str = Field(description="architecture of the arm, by timm's name")
    gain: Gain
    p_holm: float = Field(ge=0.0, le=1.0, description="p-value of the gain, adjusted for the number of such arms (Holm 1979)")


class Candidate(Document):
    """The classifier that promotion is about: chosen on validation among the seeds of the declared arm."""

    arm: Arm
    seed: int
    path: str
    digest: str


class SetGain(Document):
    """Accuracy of an arm minus that of real on a robustness set or a group, paired by seed and image; fractions, not points."""

    mean: float
    ci95: tuple[float, float] = Field(description="over seeds and images")
    p_value: float = Field(
        description="two-sided sign-flip test over paired seeds; of one set and arm alone, not corrected for their number"
    )
    seeds: int = Field(ge=1, description="paired seeds")


class SetArm(Document):
    """One arm on a robustness set or a group; accuracies are fractions in [0, 1]."""

    seeds: tuple[int, ...]
    top1: tuple[float, ...] = Field(description="by seed")
    mean: float
    ci95: tuple[float, float]
    gain: SetGain | None = Field(None, description="over real; null for real itself")


class SetResult(Document):
    """A robustness set: images from elsewhere that no choice depends on; arms that did not run are left out."""

    num_images: int = Field(ge=1)
    left_out: int = Field(ge=0, description="images whose label is none of the classes")
    num_classes: int = Field(ge=1, description="classes that are correct for at least one image")
    restricted: bool = Field(description="predictions are among these classes only; false: among all classes")
    several_labels: bool = Field(description="each image has a list of labels, any of which is correct")
    digest: str = Field(description="of file names, contents and labels")
    arms: dict[Arm, SetArm]


class GroupResult(Document):
    """A group of the test images; groups of classes weight all classes equally. Arms that did not run are left out."""

    kind: Literal["frequency", "balanced", "worst", "given"] = Field(
        description="frequency: classes by their real training images; balanced: all classes; worst: lowest accuracy of real, "
        "chosen on other test images and seeds than those measured; given: the manifest's column `group`"
    )
    num_images: int = Field(ge=1)
    num_classes: int = Field(ge=1, description="worst: all that were chosen for at least one seed")
    arms: dict[Arm, SetArm]


class Metrics(Document):
    """`metrics.json` of evaluate."""

    compared: ClassVar[bool] = False  # `gda verify`, compare, and an evaluate that finds the file do this

    schema_version: Literal[1] = SCHEMA_VERSION
    arms: dict[Arm, ArmResult]
    cas: float | None = Field(description="top-1 of the synthetic arm on real test images, mean over seeds")
    cas_ci95: tuple[float, float] | None = None
    cas_zero_shot: float | None = None
    gain: dict[Arm, Gain] = Field(description="over real")
    gain_over_rivals: dict[Arm, Gain] = Field(default_factory=dict, description="the declared arm over each real-only rival")
    gain_within_training: dict[Arm, GainWithinTraining] = Field(
        default_factory=dict,
        exclude_if=lambda gains: not gains,
        description="each arm of real and synthetic images over real ones alone, same settings, no fewer steps; decides nothing",
    )
    sets: dict[str, SetResult] = Field(default_factory=dict, description="robustness sets by name; they decide nothing")
    gain_top5: dict[Arm, SetGain] = Field(default_factory=dict, description="over real in top-5 accuracy; decides nothing")
    groups: dict[str, GroupResult] = Field(default_factory=dict, description="groups of classes and images by name; they decide nothing")
    candidate: Candidate | None = None
    num_test: int = Field(ge=0)
    num_train: int | None = Field(None, description="real training images")
    num_synthetic: int | None = Field(None, description="synthetic training images")
    classes: tuple[str, ...]
    snapshot_digest: str
    test_digest: str = Field(description="digest of the test split alone")
    look: int = Field(
        1, ge=1, description="number of this look at these test images: each further look gets less of the significance level"
    )
    test_openings: int | None = Field(
        None,
        ge=1,
        description="evaluations that had opened this test split by then, this one included; null: not counted",
    )
    synthetic_digest: str | None = None
    verdict_passed: bool | None = None
    measured_with: dict[str, str] = Field(default_factory=dict)
