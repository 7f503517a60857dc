"""What the stages hand to each other: typed indexes of the files on disk. No torch, no IO beyond small JSON files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gda.arm import Arm
from gda.contents import require_recorded
from gda.errors import DataError
from gda.reading import read_bytes

SCHEMA_VERSION: Literal[1] = 1


class Document(BaseModel):
    """Base of every JSON document we write: frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    compared: ClassVar[bool] = True  # whether reading one alone compares it with the list of files beside it


class ClassInfo(Document):
    """A class: its stable name (the folder's) and the name that prompts use."""

    name: str
    prompt_name: str


class ShardInfo(Document):
    """One tar: file name, the split it holds, image count, sha256 of the file."""

    name: str
    split: Literal["train", "val", "test"]
    count: int = Field(ge=1)
    sha256: str


class SnapshotIndex(Document):
    """`snapshot.json`: written last, so its presence is the commit."""

    schema_version: Literal[1] = SCHEMA_VERSION
    kind: Literal["real", "synthetic"]
    classes: tuple[ClassInfo, ...]
    counts: dict[str, dict[str, int]] = Field(description="split -> class name -> images")
    shards: tuple[ShardInfo, ...]
    manifest_sha256: str
    digest: str = Field(description="content: key, split, label, pixel hash of every image")
    plan_digest: str | None = Field(None, description="synthetic only: what was asked for")
    provenance: dict[str, str] = Field(default_factory=dict, description="where the images come from, e.g. source, generator digest")
    licence: str = "unknown"
    quarantined: tuple[dict[str, str], ...] = Field((), description="unreadable images left out: file and reason")


class Measure(Document):
    """One metric of a verdict: its value with interval, floor and limit, and what it was measured with."""

    value: float | None = Field(description="null when it could not be measured, which fails the gate")
    low: float | None = Field(None, description="lower end of the 95% interval")
    high: float | None = Field(None, description="upper end of the 95% interval")
    floor: float | None = Field(None, description="the same metric, real against real, at equal N")
    one_class: float | None = Field(
        None, description="the same metric of real images of one class, at equal N: what a set scores that has collapsed to it"
    )
    chance: float | None = Field(
        None, exclude_if=lambda share: share is None, description="what labels given at random would score; null where that means nothing"
    )
    limit: float | None = Field(None, description="the threshold it was judged by; null when only reported")
    passed: bool | None = Field(None, description="null when only reported")
    n: int | None = Field(None, description="images it was measured on")
    class_name: str | None = Field(None, exclude_if=lambda name: name is None, description="the class it is of, where it is of one")
    num_classes: int | None = Field(None, exclude_if=lambda count: count is None, description="classes of which it is the worst")
    extractor: str | None = None
    reference_digest: str | None = None


class Filtering(Document):
    """What was taken out of a set before it was judged, and how it was judged before that."""

    rounds: int = Field(ge=1)
    dropped: dict[str, int] = Field(description="images taken out, by why; as many were drawn in their place")
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
    filtering: Filtering | None = Field(None, description="where images were dropped and others drawn in their place")


class Confusion(Document):
    """How many of a class's test images, as a share, are taken for another class."""

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
    most_confused: tuple[Confusion, ...] = Field((), description="the largest shares of a class that are taken for another, over seeds")
    val_top1: tuple[float, ...] = Field((), description="by seed, on the validation split")
    num_updates: int | None = None
    skipped: str | None = Field(None, description="why the arm did not run")


class ClassHarm(Document):
    """A class on which an arm is significantly worse than its rival; p-values are adjusted for all classes."""

    class_name: str
    change: float
    p_value: float


class Spread(Document):
    """How far a mean over seeds and images may be off: what its interval at any level follows from."""

    error: float = Field(description="standard error")
    seed_share: float = Field(description="share of its square that is due to seeds; the rest is due to images")
    seed_freedom: float = Field(description="degrees of freedom of the part of seeds, or of the synthetic sets that they trained on")
    image_freedom: float = Field(description="degrees of freedom of the part of images, or of groups of them")


class Gain(Document):
    """Accuracy of an arm minus its rival's, paired by seed and image; fractions, not points."""

    mean: float
    ci95: tuple[float, float] = Field(description="over seeds and images, at the level of evaluate.confidence; the gate has its own level")
    spread: Spread | None = Field(None, description="what the gate judges; null in files of before it was kept")
    sets: int = Field(1, ge=1, description="synthetic sets; 1: what is said is of this very set")
    groups: int | None = Field(None, description="groups of test images; null: each its own")
    ci95_seeds: tuple[float, float] | None = Field(None, description="over seeds alone")
    ci95_images: tuple[float, float] | None = Field(None, description="over images alone")
    p_value: float = Field(description="two-sided sign-flip test over paired seeds, or over synthetic sets where there are six or more")
    mcnemar_p: float | None = None
    seeds: int = Field(ge=0, description="paired seeds")
    differences: tuple[float, ...] = Field((), description="by seed")
    harmed_classes: tuple[ClassHarm, ...] = ()
    smallest_visible_harm: float | None = Field(
        None, description="drop of one class that would have been found significant in whichever class it happened"
    )
    smallest_common_harm: float | None = Field(
        None, description="drop of the median class that would have been found significant, had a tenth of the classes suffered it"
    )
    minimal_detectable_effect: float | None = Field(None, description="smallest gain that this many seeds could have shown")


class GainWithinTraining(Document):
    """An arm of real and synthetic images over training on real images alone, by the same settings and for no fewer updates."""

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
    """A robustness set: images from elsewhere that no choice has seen; arms that did not run are left out."""

    num_images: int = Field(ge=1)
    left_out: int = Field(ge=0, description="images without a label of ours")
    num_classes: int = Field(ge=1, description="classes that are right for some image")
    restricted: bool = Field(description="predictions over these classes alone; otherwise over all classes")
    several_labels: bool = Field(description="labels are a list for each image, any of which is right")
    digest: str = Field(description="of file names, contents and labels")
    arms: dict[Arm, SetArm]


class GroupResult(Document):
    """A group of the test images; in the groups of classes each class is as heavy. Arms that did not run are left out."""

    kind: Literal["frequency", "balanced", "worst", "given"] = Field(
        description="frequency: classes by their real training images; balanced: all classes; worst: those that real gets wrong most, "
        "chosen on other test images and seeds than measured on; given: the manifest's column `group`"
    )
    num_images: int = Field(ge=1)
    num_classes: int = Field(ge=1, description="worst: all that were chosen for some seed")
    arms: dict[Arm, SetArm]


class Metrics(Document):
    """`metrics.json` of evaluate."""

    compared: ClassVar[bool] = False  # by `gda verify`, by compare, and by an evaluate that finds it there

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
        description="each arm of real and synthetic images over real ones alone, trained alike and no shorter; decides nothing",
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
    look: int = Field(1, ge=1, description="which look at these test images this is: each further one has less of the significance level")
    test_openings: int | None = Field(
        None,
        ge=1,
        description="pieces of work that had opened this test split to evaluate by then, this one included; null: it was not counted",
    )
    synthetic_digest: str | None = None
    verdict_passed: bool | None = None
    measured_with: dict[str, str] = Field(default_factory=dict)


REFERENCE_FILE, REFERENCE_PROBABILITIES = "reference.json", "probabilities.safetensors"


class ReferenceIndex(Document):
    """`reference.json`, written last."""

    schema_version: Literal[1] = SCHEMA_VERSION
    digest: str = Field(description="content: snapshot, extractor, features and every fold's weights")
    snapshot_digest: str
    extractor: str
    extractor_digest: str
    image_size: int = Field(description="side to which images are brought before anything is measured, pixels")
    folds: tuple[str, ...] = Field(min_length=2, description="content digest of each fold's classifier, in fold-<k>/")
    cross_fitted: Literal["train", "train and val"] = Field(
        "train and val", description="what the folds were dealt from; earlier versions, which did not say, dealt val images too"
    )
    counts: dict[str, int] = Field(description="images by split")
    agreement: float = Field(description="share of training images whose label a classifier confirms that has not seen them")
    agreement_by_class: tuple[float | None, ...]
    fid_floor: float = Field(description="FID between disjoint halves of train and val together, mean over repeats")
    fid_floor_low: float
    fid_floor_high: float
    fid_floor_n: int = Field(description="images a side of the floor")

    def require_without_val(self, path: Path) -> None:
        """Raises `DataError` where the classifiers were trained on validation images, as those of earlier versions were."""
        if self.cross_fitted != "train":
            raise DataError(f"{path}: its classifiers have seen validation images, so nothing may be picked by them; compute it again")


class ClassifierCard(Document):
    """`classifier.json` beside timm's `config.json` and `model.safetensors`; a skipped arm has this file alone."""

    schema_version: Literal[1] = SCHEMA_VERSION
    arm: Arm
    seed: int
    skipped: str | None = Field(None, description="why there are no weights")
    model: str
    image_size: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    classes: tuple[str, ...]
    num_updates: int = 0
    val_top1: float | None = None
    digest: str = Field("", description="content digest of the weights and what they were trained from")
    snapshot_digest: str
    synthetic_digest: str | None = None
    pool_digest: str | None = Field(None, exclude_if=lambda digest: digest is None, description="of the pool of more real images")
    synthetic_parts: int = Field(
        1, ge=1, exclude_if=lambda parts: parts == 1, description="parts of the synthetic set, of which it was trained on one"
    )
    targets: tuple[str, ...] | None = Field(
        None, exclude_if=lambda names: names is None, description="the classes that got synthetic images; null is all of them"
    )
    base_licence: str = "unknown"
    weights: str | None = Field(None, exclude_if=lambda digest: digest is None, description="content digest of model.safetensors alone")
    pretrained: str | None = Field(
        None, exclude_if=lambda digest: digest is None, description="sha256 of the file of weights it was started from"
    )
    interpolation: Literal["lanczos", "bicubic", "bilinear"] | None = Field(
        None, exclude_if=lambda name: name is None, description="how images are brought to its size; null is lanczos"
    )


class DrawSettings(Document):
    """What decides an image besides generator, prompt and seed; the `sr_` fields are read by cascades alone."""

    guidance_scale: float
    num_inference_steps: int = 16
    scheduler: str = "model"
    guidance_interval: tuple[float, float] = Field((0.0, 1.0), description="guided part of the noise levels, in shares of the timesteps")
    log_variance_mix: float | None = Field(None, description="ancestral ddpm alone; null leaves the variance to the model")
    sr_guidance_scale: float = 1.0
    sr_num_inference_steps: int = 6
    sr_noise_level: int = 0
    sr_log_variance_mix: float | None = None


class TuningPoint(Document):
    """One setting of the sweep; FID and CAS are on the validation split, CAS only for the survivors."""

    settings: DrawSettings
    ema_sigma_rel: float | None = Field(None, description="width of the average of the weights; null is the generator as it is")
    passes: int = Field(ge=1, description="network passes an image takes; a guided step takes two")
    fid: float | None = Field(description="null where it could not be drawn or measured, which `failed` explains")
    fid_ci95: tuple[float, float] | None = Field(None, description="spread of sets of so many images, from halves without replacement")
    cas: float | None = None
    cas_by_seed: tuple[float, ...] = ()
    pareto: bool = Field(False, description="no other point is at least as good in FID, CAS and passes, and better in one")
    failed: str | None = Field(None, description="why it could not be drawn or measured; such a point is never chosen")

    @property
    def guidance_scale(self) -> float:
        """Guidance of the base stage."""
        return self.settings.guidance_scale


class Settings(Document):
    """`settings.json` of tune: the sampling settings chosen, with the full table."""

    schema_version: Literal[1] = SCHEMA_VERSION
    chosen: DrawSettings
    ema_sigma_rel: float | None = Field(None, description="width of the average of the weights that was chosen; null: as it is")
    points: tuple[TuningPoint, ...]
    extractor: str
    fid_floor: float | None = Field(description="FID of as many real training images, or all where there are fewer")
    num_images: int = Field(description="images a FID point")
    generator_digest: str = Field(description="of the generator that was given; `ema_sigma_rel` says which average of it was chosen")
    snapshot_digest: str
    notes: tuple[str, ...] = Field((), description="axes that do not apply to this generator, in sentences")

    @property
    def guidance_scale(self) -> float:
        """The guidance that was chosen for the base stage."""
        return self.chosen.guidance_scale

    @property
    def chosen_point(self) -> TuningPoint:
        """The line of the table that was chosen. Raises `DataError` when the table does not hold it."""
        found = [point for point in self.points if (point.settings, point.ema_sigma_rel) == (self.chosen, self.ema_sigma_rel)]
        if not found:
            raise DataError("settings.json: the chosen settings are not in its table of points")
        return found[0]


Family = Literal["pixel_cascade", "latent_unet", "flow_transformer"]


class GeneratorCard(Document):
    """`generator.json` of an exported generator."""

    schema_version: Literal[1] = SCHEMA_VERSION
    family: Family
    digest: str = Field(description="tensors and allow-listed configuration of every stage")
    base_digest: str | None = Field(None, description="the base it was fine-tuned from; null for a base")
    snapshot_digest: str | None = None
    prompts: dict[str, str] = Field(default_factory=dict, description="class name -> prompt")
    licence: str = "unknown"
    num_train_steps: dict[str, int] = Field(default_factory=dict)
    adapters: dict[str, str] = Field(default_factory=dict, description="class name -> folder of the adapter that its images are drawn with")
    training: dict[str, Any] = Field(default_factory=dict, description="how it was fine-tuned: the configuration's section finetune")
    metrics: dict[str, float] = Field(default_factory=dict, description="what was measured while it was fine-tuned")
    averaging: str = Field("", description="how gda ema averaged the weights after training; empty: as finetune did")
    source: str = Field("", description="where the base came from: hub id with commit, demo://glyphs, or a directory's name; or empty")


class Decision(Document):
    """`decision.json` of promote: pure outcome of the gate, and what was done in the registry."""

    schema_version: Literal[1] = SCHEMA_VERSION
    promoted: bool
    reasons: tuple[str, ...]
    candidate: Candidate | None
    rival: str = Field(description="what the candidate was compared with: champion version or 'real'")
    model_name: str
    model_version: str | None = None
    aliases: tuple[str, ...] = ()
    dry_run: bool = False
    test_openings: int | None = Field(
        None,
        ge=1,
        exclude_if=lambda n: n is None,
        description="pieces of work known to have opened the test split to evaluate; null: the evaluation did not count",
    )


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """A generator that becomes a version of the registered model `name`.

    `path` is the published folder; it must hold the `generator.json` whose digest `tags["gda.digest"]` repeats.
    """

    name: str
    path: Path
    tags: Mapping[str, str]
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a stage's `run` returns: where the output is, its content digest, and what to print and track.

    Every file named here must lie in the output: a run is logged later when the tracking server is away.
    """

    output: Path
    digest: str
    summary: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, list[tuple[int, float]]] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    images: Mapping[str, list[tuple[int, Path]]] = field(default_factory=dict)  # name -> (step, PNG), one image a step
    model: RegisteredModel | None = None
    reused: bool = False
    refused: bool = False


D = TypeVar("D", bound=Document)


def read_document(path: Path, kind: type[D]) -> D:
    """Read and validate a JSON document, and compare it with what the `recipe.json` beside it lists.

    Raises `DataError` naming the file when it is missing, cut short, changed since it was written or not of this kind.
    """
    if not path.exists():
        raise DataError(f"{path}: not found; it is written last, so its absence means unfinished or not a {kind.__name__}")
    data = read_bytes(path)
    if kind.compared:
        require_recorded(path, data)
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: not a valid {kind.__name__} ({where}: {first['msg']})") from None


def dump_document(document: Document) -> bytes:
    """The bytes we store: indented, sorted keys, newline at the end; equal documents give equal bytes."""
    content: dict[str, Any] = document.model_dump(mode="json")
    return (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
