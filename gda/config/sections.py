"""The sections of the configuration: one strict, frozen class a stage, each field with its range, unit and one line of documentation.

Defaults documented here are the schema's; `params.yaml` holds what a project's own run says.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from gda.config.arm import ARMS
from gda.config.arm import Arm as Arm
from gda.config.base import Fraction, Guidance, Section
from gda.config.classify import DEMO_CLASSIFIER as DEMO_CLASSIFIER
from gda.config.classify import ClassifyConfig as ClassifyConfig
from gda.config.finetune import FinetuneConfig as FinetuneConfig

FilePath = Annotated[str, Field(min_length=1)]
ValueRange = tuple[float, float]
SetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class SnapshotConfig(Section):
    source: str = Field(
        "demo://mnist", description="image folder, tars, parquet files, .npz (a folder, file or pattern), demo://mnist or demo://digits"
    )
    val_fraction: float = Field(0.15, gt=0.0, lt=0.9, description="share of images that fall to val where the source has no splits")
    test_fraction: float = Field(0.25, gt=0.0, lt=0.9, description="share of images that fall to test where the source has no splits")
    split_column: str | None = Field(
        None, min_length=1, description="column of the source's table that says the split of each image; null: folders or a hash decide"
    )
    group_column: str | None = Field(
        None, min_length=1, description="column of the source's table; images of one group, as of one patient, stay in one split"
    )
    label_column: str | None = Field(
        None,
        min_length=1,
        description="column of the source's table, or ending of a tar's member, that holds the class; null: label or cls",
    )
    layout: str | None = Field(
        None,
        pattern=r"^([^{}/]+/)*(\{split\}/([^{}/]+/)*\{class\}|\{class\}(/[^{}/]+)*/\{split\}|\{class\})(/[^{}/]+)*$",
        description="what the source's folders mean, such as {split}/{class}, {class} or */{class}; null: read where there is one reading",
    )
    pixel_range: ValueRange | None = Field(
        None, description="values that become 0 and 255 in images of more than 8 bits; null: as the files say, or measured over the set"
    )
    class_names: Literal["wordnet", "source"] = Field(
        "wordnet", description="what prompts call classes that are WordNet ids (n01440764): wordnet, its words for them; source, the ids"
    )
    split_key: str = Field("gda", min_length=1, description="key of the hash that assigns splits")
    image_size: int | None = Field(
        None, ge=8, le=4096, description="resize the short side to this and crop the centre, pixels; null keeps sizes"
    )
    shard_size: int = Field(1000, ge=1, le=1_000_000, description="images a tar shard")
    max_bad_fraction: Fraction = Field(0.01, description="highest share of unreadable images before the source is refused")
    on_leak: Literal["warn", "reject"] = Field(
        "warn", description="what near matches between splits lead to; equal pixels in two splits are always refused"
    )
    shots: int | None = Field(
        None, ge=1, description="training images per class, for a few-shot comparison; null keeps all. Validation and test stay as they are"
    )
    few_shot_seed: int = Field(0, ge=0, description="which draw of so many shots; more shots of one draw contain fewer")
    demo_train_per_class: int = Field(
        100, ge=1, le=100, description="training images per class of demo://mnist; its validation and test images stay as they are"
    )
    pool: str | None = Field(None, min_length=1, description="source of more real images, for the arm retrieved; null: there is none")

    @field_validator("pixel_range")
    @classmethod
    def _ascending(cls, value: ValueRange | None) -> ValueRange | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError("expected two numbers, the lower one first")
        return value


class ReferenceConfig(Section):
    folds: int = Field(4, ge=2, le=20, description="cross-fitting folds of the label classifier")
    num_train_steps: int = Field(200, ge=1, description="optimizer updates of each fold's classifier")


Scheduler = Literal["model", "dpmsolver++", "unipc", "ddim", "ddpm"]
Interval = tuple[Fraction, Fraction]
Steps = Annotated[int, Field(ge=1, le=1000)]
NoiseLevel = Annotated[int, Field(ge=0, le=999)]


class TuneConfig(Section):
    guidance_scales: tuple[Guidance, ...] = Field((1.0, 1.5, 2.0, 3.0), min_length=1, description="guidance scales of the FID pass")
    guidance_intervals: tuple[Interval, ...] = Field(
        ((0.0, 1.0),), min_length=1, description="guided parts of the noise levels, as sample.guidance_interval"
    )
    log_variance_mixes: tuple[Fraction | None, ...] = Field(
        (None,), min_length=1, description="mixes of log-variances, as sample.log_variance_mix"
    )
    num_inference_steps: tuple[Steps, ...] = Field((16,), min_length=1, description="denoising steps of the base stage")
    ema_sigma_rels: tuple[float | None, ...] = Field(
        (None,), min_length=1, description="widths of averages of the weights, as gda ema makes them; null is the generator as it is"
    )
    scheduler: Scheduler = Field("model", description="sampler of every stage; model is the one that the generator came with")
    sr_guidance_scales: tuple[Guidance, ...] = Field((1.0,), min_length=1, description="guidance scales of the super-resolution stage")
    sr_num_inference_steps: tuple[Steps, ...] = Field((6,), min_length=1, description="denoising steps of the super-resolution stage")
    sr_noise_levels: tuple[NoiseLevel, ...] = Field((0,), min_length=1, description="noise-conditioning augmentation when sampling")
    sr_log_variance_mixes: tuple[Fraction | None, ...] = Field(
        (None,), min_length=1, description="log_variance_mixes of the super-resolution stage"
    )
    images_per_class: int = Field(20, ge=2, description="images a class at each point of the FID pass")
    survivors: int = Field(2, ge=1, description="points that go on to the CAS pass, best FID first")
    cas_images_per_class: int = Field(40, ge=2, description="images a class of the CAS pass")
    cas_num_train_steps: int = Field(300, ge=1, description="optimizer updates of each CAS classifier")
    cas_seeds: int = Field(2, ge=1, le=100, description="classifiers a survivor")
    batch_size: int = Field(50, ge=1, le=65536, description="images drawn at once")


class SampleConfig(Section):
    mode: Literal["text_to_image", "image_to_image"] = Field(
        "text_to_image", description="images from prompts alone, or from real training images noised and denoised again"
    )
    quota: Literal["equal", "histogram", "multiple", "table"] = Field(
        "equal",
        description="images a class: images_per_class each; as many in all but shared as the training images are; real_multiple times the "
        "training images; or as quota_file says",
    )
    images_per_class: int = Field(100, ge=1, le=10_000_000, description="synthetic images a class; of quota histogram the mean")
    real_multiple: float = Field(1.0, gt=0.0, le=10_000.0, description="synthetic images a real training image, of quota multiple")
    quota_file: str | None = Field(None, description="YAML, JSON or CSV file of class name -> images, of quota table")
    strengths: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(
        (0.3, 0.5, 0.7), min_length=1, description="how far image_to_image noises its source: 1 forgets it; each strength has its share"
    )
    other_class_fraction: Fraction = Field(
        0.0, description="share of image_to_image records drawn towards another class than their source's; they get soft labels by strength"
    )
    guidance_scale: Guidance | None = Field(None, description="guidance of the base stage, 1 is off; null means the tuned setting")
    guidance_interval: Interval | None = Field(
        None,
        description="part of the noise levels that is guided, in shares of the training timesteps from 0 (an image) to 1 (noise); "
        "null means the tuned setting, or all",
    )
    num_inference_steps: Steps | None = Field(None, description="denoising steps of the base stage; null means the tuned setting, or 16")
    scheduler: Scheduler | None = Field(
        None, description="sampler of every stage, model is the one that the generator came with; null means the tuned setting, or model"
    )
    log_variance_mix: Fraction | None = Field(
        None,
        description="of scheduler ddpm alone: share of the largest step variance in the mix of log-variances; null means the tuned "
        "setting, or the model's own",
    )
    sr_guidance_scale: Guidance | None = Field(
        None, description="guidance of the super-resolution stage, 1 is off; null means the tuned setting, or 1"
    )
    sr_num_inference_steps: Steps | None = Field(
        None, description="denoising steps of the super-resolution stage; null means the tuned setting, or 6"
    )
    sr_noise_level: NoiseLevel | None = Field(
        None, description="noise-conditioning augmentation when sampling; null means the tuned setting, or 0"
    )
    sr_log_variance_mix: Fraction | None = Field(None, description="log_variance_mix of the super-resolution stage")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="precision of the denoisers and the decoder")
    compile: bool = Field(False, description="torch.compile of the denoisers; --plan-only says from how many images on it pays")
    image_format: Literal["png", "webp", "jpeg"] = Field("png", description="codec of the images; png and webp are lossless")
    jpeg_quality: int = Field(95, ge=1, le=100, description="quality of jpeg")
    features: Literal["none", "statistics", "rows"] = Field(
        "none", description="feature statistics (float64 sums) or rows (float32) of validate.extractor, written with each shard"
    )
    batch_size: int = Field(50, ge=1, le=65536, description="images drawn at once")
    shard_size: int = Field(250, ge=1, le=1_000_000, description="images a shard; a whole number of batches")
    zero_shot_images_per_class: int | None = Field(
        None, ge=1, description="images a class of the zero-shot control; null draws as many as images_per_class"
    )
    img2img_images_per_class: int | None = Field(
        None, ge=1, description="images a class of the image-to-image control; null draws as many as images_per_class"
    )


class MetricLimit(Section):
    metric: str = Field(min_length=1, description="a metric of verdict.json, such as kid or recall")
    at_most: float | None = Field(None, description="highest value, by the upper end of its interval")
    at_least: float | None = Field(None, description="lowest value, by the lower end of its interval; either this or at_most")
    of_floor: bool = Field(False, description="the number is a multiple of the real-vs-real floor at equal N")

    @model_validator(mode="after")
    def _one_number(self) -> "MetricLimit":
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError(f"limit of {self.metric!r}: give either at_most or at_least")
        return self


class ValidateConfig(Section):
    extractor: str = Field(
        "glyph",
        min_length=1,
        description="feature network of FID, KID and nearest neighbours: glyph, inception-v3-compat, dinov2-vit-l-14, clip-vit-l-14, or "
        "a function of your own as module:attribute",
    )
    extractor_weights: str | None = Field(
        None,
        min_length=1,
        description="file (of CLIP, directory) of the extractor's weights, which are never downloaded; glyph has its own",
    )
    image_size: int | None = Field(
        None,
        ge=8,
        le=2048,
        description="side to which real and synthetic images are brought before they are compared, pixels; null means the larger of "
        "classify.image_size and the extractor's input",
    )
    reference_statistics: str | None = Field(
        None, min_length=1, description="an .npz with mu and sigma of the extractor, to which FID is stated as well, as fid_reference"
    )
    fid_max_ratio: float = Field(10.0, gt=0.0, description="highest FID as a multiple of the real-vs-real floor at equal N")
    min_label_agreement_ratio: Fraction = Field(
        0.88,
        description="lowest share of labels that the cross-fitted classifiers confirm, as a share of that of unseen real images; both are "
        "counted from what labels given at random reach",
    )
    min_class_agreement_ratio: Fraction = Field(0.6, description="the same in any one class, held against its own real images")
    min_label_agreement: Fraction | None = Field(
        None, description="lowest share of confirmed labels whatever real images reach, in place of the ratio; null: the ratio is judged"
    )
    min_class_agreement: Fraction | None = Field(
        None, description="lowest such share in any one class, in place of its ratio; null: the ratio is judged"
    )
    min_coverage_ratio: Fraction = Field(0.5, description="lowest coverage of the real images as a share of the real-vs-real floor")
    min_class_coverage_ratio: Fraction = Field(
        0.25, description="lowest coverage of the real images of any one class, as a share of the real-vs-real floor of that class"
    )
    min_class_recall_ratio: Fraction = Field(
        0.15, description="lowest recall of the real images of any one class, as a share of the same floor: a few pictures reach none"
    )
    min_class_diversity: Fraction = Field(
        0.5, description="lowest mean feature distance between the images of a class, as a share of that between its real images"
    )
    max_class_ratio: float = Field(
        1.5, ge=1.0, description="highest ratio of the largest class to the smallest, times the ratio that the plan asks for"
    )
    max_copy_fraction: Fraction = Field(
        0.05, description="highest share of images nearer to a training image than the holdout floor allows"
    )
    copy_quantile: float = Field(
        0.01, gt=0.0, lt=0.5, description="share of held-out images that the copy check may flag; sets its threshold"
    )
    max_duplicate_fraction: Fraction = Field(0.01, description="highest share of exact duplicates inside the set")
    max_near_duplicate_fraction: Fraction = Field(
        0.02,
        description="highest share of images that repeat another but for encoding, size, mirroring or light, above that of real images",
    )
    sscd_weights: str | None = Field(
        None, description="TorchScript file of SSCD, whose features then take part in the copy check; it is run as a program, so trust it"
    )
    on_fail: Literal["reject", "replace_rejected"] = Field(
        "reject", description="what a failed set leads to; replace_rejected takes out the images at fault and draws others in their place"
    )
    replacement_rounds: int = Field(3, ge=1, le=20, description="most rounds of dropping and redrawing")
    max_replaced_fraction: Fraction = Field(
        0.2, description="highest share of the images drawn that may be dropped, over all rounds; beyond it the generator is at fault"
    )
    limits: tuple[MetricLimit, ...] = Field(
        (), description="further limits of any metric, beside the above: {metric, at_most or at_least, of_floor}"
    )


class RatioConfig(Section):
    ratios: tuple[float, ...] = Field(
        (0.1, 0.25, 0.5, 1.0, 2.0, 5.0), min_length=1, max_length=100, description="synthetic images to real training images, by number"
    )
    first_seeds: int = Field(2, ge=1, le=1000, description="seeds of every ratio; those that are kept get twice as many, again and again")
    seeds: int = Field(8, ge=1, le=1000, description="seeds of the ratios that are kept to the end, and of real alone")
    keep_fraction: float = Field(0.5, gt=0.0, le=1.0, description="share of the ratios that continue after each round, at least two")
    batch_share: Literal["count", "classify"] = Field(
        "count",
        description="synthetic share of a batch: as of the images, each being seen as often; or classify.ratio whatever their number",
    )
    num_train_steps: int | None = Field(
        None, ge=1, description="optimizer updates of every classifier; null: classify.mixed_num_train_steps"
    )

    @field_validator("ratios")
    @classmethod
    def _positive_and_different(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        if min(ratios) <= 0 or max(ratios) > 1000 or len(set(ratios)) < len(ratios):
            raise ValueError("expected different ratios above 0 and up to 1000")
        return tuple(sorted(ratios))

    @model_validator(mode="after")
    def _grows(self) -> "RatioConfig":
        if self.seeds < self.first_seeds:
            raise ValueError(f"seeds must be at least first_seeds, got {self.seeds} and {self.first_seeds}")
        return self


class EvaluateConfig(Section):
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="level of every interval")
    num_resamples: int = Field(4000, ge=200, le=1_000_000, description="bootstrap resamples of the curves of ratios")
    shot_cuts: tuple[int, int] = Field(
        (20, 100), description="real training images of a class: below the first it is reported as few-shot, above the second as many-shot"
    )
    worst_share: float = Field(0.1, gt=0.0, lt=1.0, description="share of the classes that are reported together as the worst, rounded up")
    sets: dict[SetName, FilePath] = Field(
        default_factory=dict, description="robustness sets: name -> folder of class folders, or of images that set_labels has the labels of"
    )
    class_map: FilePath | None = Field(
        None,
        description="CSV (folder,class) or JSON object of the sets' folder names and our class names; an empty class or null is left out",
    )
    set_labels: dict[SetName, FilePath] = Field(
        default_factory=dict, description="set -> JSON list of several labels an image, by sorted file names, such as ReaL's"
    )
    restrict: tuple[str, ...] = Field(
        (), description="sets on which predictions are over the set's own classes alone, as for ImageNet-R and -A"
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
    arm: Arm = Field(Arm.MIXED, description="the one arm declared before the run")
    rivals: tuple[Arm, ...] = Field(
        (),
        description="arms without generated images that it has to beat, declared before the run; empty: real-only training where it is "
        "strongest on validation. It has to beat plain real-only training of equal length in any case",
    )
    min_seeds: int = Field(6, ge=2, description="fewest paired seeds; the sign-flip test cannot reach 0.05 with five")
    alpha: float = Field(0.05, gt=0.0, lt=0.5, description="significance level of gain and per-class harm")
    model_name: str = Field("gda-classifier", min_length=1, description="registered model name")
    allowed_licences: tuple[str, ...] = Field(
        ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "openrail++"),
        description="licences of the generator's base under which a classifier may be promoted; unknown never is",
    )

    @model_validator(mode="after")
    def _rivals_are_rivals(self) -> "PromoteConfig":
        if wrong := [arm for arm in self.rivals if not arm.data.rival or arm == self.arm]:
            raise ValueError(f"rivals names {wrong[0]}; accepted: {', '.join(arm for arm in ARMS if arm.data.rival and arm != self.arm)}")
        return self
