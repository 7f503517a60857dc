"""The sections of the configuration: one strict, frozen class per stage, each field with its range, unit and one line of documentation.

The defaults here are the schema's; the `params.yaml` of a project overrides them.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from gda.config.arm import Arm as Arm
from gda.config.base import Fraction, GuidanceScale, Section
from gda.config.classify import DEMO_CLASSIFIER as DEMO_CLASSIFIER
from gda.config.classify import ClassifyConfig as ClassifyConfig
from gda.config.decisions import EvaluateConfig as EvaluateConfig
from gda.config.decisions import PromoteConfig as PromoteConfig
from gda.config.finetune import FinetuneConfig as FinetuneConfig

ValueRange = tuple[float, float]


class SnapshotConfig(Section):
    source: str = Field(
        "demo://mnist",
        description="source of the images: an image folder, tar files, parquet files, .npz (a folder, file or pattern), demo://mnist or "
        "demo://digits",
    )
    val_fraction: float = Field(0.15, gt=0.0, lt=0.9, description="share of images assigned to val where the source has no splits")
    test_fraction: float = Field(0.25, gt=0.0, lt=0.9, description="share of images assigned to test where the source has no splits")
    split_column: str | None = Field(
        None,
        min_length=1,
        description="column of the source's table with the split of each image; null takes the split from the folders or from a hash",
    )
    group_column: str | None = Field(
        None,
        min_length=1,
        description="column of the source's table with the group of each image, such as its patient; images of one group stay in one split",
    )
    label_column: str | None = Field(
        None,
        min_length=1,
        description="column of the source's table, or extension of a tar member, that holds the class; null uses label or cls",
    )
    layout: str | None = Field(
        None,
        pattern=r"^([^{}/]+/)*(\{split\}/([^{}/]+/)*\{class\}|\{class\}(/[^{}/]+)*/\{split\}|\{class\})(/[^{}/]+)*$",
        description="folder layout of the source, such as {split}/{class}, {class} or */{class}; null infers it where only one layout is "
        "possible",
    )
    pixel_range: ValueRange | None = Field(
        None,
        description="values mapped to 0 and 255 for images of more than 8 bits; null uses the range stated in the files, or measures it "
        "over the set",
    )
    class_names: Literal["wordnet", "source"] = Field(
        "wordnet",
        description="names in prompts of classes that are WordNet ids (n01440764): wordnet uses WordNet's words for them, source keeps the "
        "ids",
    )
    split_key: str = Field("gda", min_length=1, description="key of the hash that assigns images to splits")
    image_size: int | None = Field(
        None, ge=8, le=4096, description="resize the short side to this many pixels and crop the centre; null keeps the original sizes"
    )
    shard_size: int = Field(1000, ge=1, le=1_000_000, description="images per tar shard")
    max_bad_fraction: Fraction = Field(0.01, description="highest share of unreadable images; a source with more is refused")
    on_leak: Literal["warn", "reject"] = Field(
        "warn",
        description="whether near matches between splits cause a warning or a refusal; equal pixels in two splits are always refused",
    )
    shots: int | None = Field(
        None, ge=1, description="training images per class for a few-shot comparison; null keeps all; validation and test do not change"
    )
    few_shot_seed: int = Field(
        0, ge=0, description="seed that picks the few-shot images; with one seed, a smaller number of shots is a subset of a larger one"
    )
    demo_train_per_class: int = Field(
        100, ge=1, le=100, description="training images per class of demo://mnist; its validation and test images do not change"
    )
    pool: str | None = Field(None, min_length=1, description="source of more real images, for the arm retrieved; null means no pool")

    @field_validator("pixel_range")
    @classmethod
    def _ascending(cls, value: ValueRange | None) -> ValueRange | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError("expected two numbers, the lower one first")
        return value


class ReferenceConfig(Section):
    folds: int = Field(4, ge=2, le=20, description="number of folds of the cross-fitted label classifiers")
    num_train_steps: int = Field(200, ge=1, description="optimizer steps of each fold's classifier")


Scheduler = Literal["model", "dpmsolver++", "unipc", "ddim", "ddpm"]
NoiseInterval = tuple[Fraction, Fraction]
InferenceSteps = Annotated[int, Field(ge=1, le=1000)]
NoiseLevel = Annotated[int, Field(ge=0, le=999)]


class TuneConfig(Section):
    guidance_scales: tuple[GuidanceScale, ...] = Field(
        (1.0, 1.5, 2.0, 3.0), min_length=1, description="guidance scales to try in the FID pass"
    )
    guidance_intervals: tuple[NoiseInterval, ...] = Field(
        ((0.0, 1.0),), min_length=1, description="guidance intervals to try, as in sample.guidance_interval"
    )
    log_variance_mixes: tuple[Fraction | None, ...] = Field(
        (None,), min_length=1, description="mixes of log-variances to try, as in sample.log_variance_mix"
    )
    num_inference_steps: tuple[InferenceSteps, ...] = Field(
        (16,), min_length=1, description="numbers of denoising steps of the base stage to try"
    )
    ema_sigma_rels: tuple[float | None, ...] = Field(
        (None,), min_length=1, description="relative widths of weight averages to try, as made by gda ema; null is the generator as it is"
    )
    scheduler: Scheduler = Field("model", description="sampler of every stage; model is the one that the generator came with")
    sr_guidance_scales: tuple[GuidanceScale, ...] = Field(
        (1.0,), min_length=1, description="guidance scales of the super-resolution stage to try"
    )
    sr_num_inference_steps: tuple[InferenceSteps, ...] = Field(
        (6,), min_length=1, description="numbers of denoising steps of the super-resolution stage to try"
    )
    sr_noise_levels: tuple[NoiseLevel, ...] = Field(
        (0,), min_length=1, description="levels of noise-conditioning augmentation to try when sampling the super-resolution stage"
    )
    sr_log_variance_mixes: tuple[Fraction | None, ...] = Field(
        (None,), min_length=1, description="mixes of log-variances of the super-resolution stage to try"
    )
    images_per_class: int = Field(20, ge=2, description="images per class at each grid point of the FID pass")
    survivors: int = Field(2, ge=1, description="grid points that go on to the CAS pass, best FID first")
    cas_images_per_class: int = Field(40, ge=2, description="images per class in the CAS pass")
    cas_num_train_steps: int = Field(300, ge=1, description="optimizer steps of each CAS classifier")
    cas_seeds: int = Field(2, ge=1, le=100, description="classifiers per grid point in the CAS pass, one per seed")
    batch_size: int = Field(50, ge=1, le=65536, description="images sampled at once")


class SampleConfig(Section):
    mode: Literal["text_to_image", "image_to_image"] = Field(
        "text_to_image",
        description="text_to_image samples from prompts alone; image_to_image adds noise to real training images and denoises them again",
    )
    quota: Literal["equal", "histogram", "multiple", "table"] = Field(
        "equal",
        description="images per class: equal takes images_per_class for each; histogram takes the same total in the proportions of the "
        "training images; multiple takes real_multiple times the training images; table reads quota_file",
    )
    images_per_class: int = Field(100, ge=1, le=10_000_000, description="synthetic images per class; their mean with quota histogram")
    real_multiple: float = Field(1.0, gt=0.0, le=10_000.0, description="synthetic images per real training image, with quota multiple")
    quota_file: str | None = Field(None, description="YAML, JSON or CSV file of class name -> number of images, with quota table")
    strengths: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(
        (0.3, 0.5, 0.7),
        min_length=1,
        description="strengths of the noise that image_to_image adds to its source image, 1 forgets the image; each strength gets a share "
        "of the set",
    )
    other_class_fraction: Fraction = Field(
        0.0,
        description="share of image_to_image records generated towards another class than their source's; their soft labels depend on the "
        "strength",
    )
    guidance_scale: GuidanceScale | None = Field(
        None, description="guidance scale of the base stage, 1 is off; null uses the tuned setting"
    )
    guidance_interval: NoiseInterval | None = Field(
        None,
        description="interval of noise levels with guidance, in shares of the training timesteps from 0 (an image) to 1 (noise); null uses "
        "the tuned setting, or all levels",
    )
    num_inference_steps: InferenceSteps | None = Field(
        None, description="denoising steps of the base stage; null uses the tuned setting, or 16"
    )
    scheduler: Scheduler | None = Field(
        None, description="sampler of every stage; model is the one that the generator came with; null uses the tuned setting, or model"
    )
    log_variance_mix: Fraction | None = Field(
        None,
        description="with scheduler ddpm: share of the largest step variance in the mix of log-variances; null uses the tuned setting, or "
        "the model's own",
    )
    sr_guidance_scale: GuidanceScale | None = Field(
        None, description="guidance scale of the super-resolution stage, 1 is off; null uses the tuned setting, or 1"
    )
    sr_num_inference_steps: InferenceSteps | None = Field(
        None, description="denoising steps of the super-resolution stage; null uses the tuned setting, or 6"
    )
    sr_noise_level: NoiseLevel | None = Field(
        None,
        description="level of noise-conditioning augmentation when sampling the super-resolution stage; null uses the tuned setting, or 0",
    )
    sr_log_variance_mix: Fraction | None = Field(None, description="log_variance_mix of the super-resolution stage")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="precision of the denoisers and the decoder")
    compile: bool = Field(
        False, description="compile the denoisers with torch.compile; the first batch of each size takes a minute or more"
    )
    image_format: Literal["png", "webp", "jpeg"] = Field("png", description="codec of the images; png and webp are lossless")
    jpeg_quality: int = Field(95, ge=1, le=100, description="quality of jpeg images")
    features: Literal["none", "statistics", "rows"] = Field(
        "none",
        description="features of validate.extractor that are written with each shard: statistics (float64 sums) or rows (float32 for each "
        "image)",
    )
    batch_size: int = Field(50, ge=1, le=65536, description="images sampled at once")
    shard_size: int = Field(250, ge=1, le=1_000_000, description="images per shard, a whole number of batches")
    zero_shot_images_per_class: int | None = Field(
        None, ge=1, description="images per class of the zero-shot control; null uses images_per_class"
    )
    img2img_images_per_class: int | None = Field(
        None, ge=1, description="images per class of the image-to-image control; null uses images_per_class"
    )


class MetricLimit(Section):
    metric: str = Field(min_length=1, description="a metric of verdict.json, such as kid or recall")
    at_most: float | None = Field(None, description="highest accepted value, compared with the upper end of the metric's interval")
    at_least: float | None = Field(
        None, description="lowest accepted value, compared with the lower end of the metric's interval; give either this or at_most"
    )
    of_floor: bool = Field(False, description="the limit is a multiple of the real-vs-real floor at equal N")

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
        description="file of the extractor's weights (a directory for CLIP); weights are never downloaded, and glyph has its own",
    )
    force_extractor: str | None = Field(
        None, description="name of an extractor that is used although it cannot know such images, as glyph for photographs; null refuses it"
    )
    image_size: int | None = Field(
        None,
        ge=8,
        le=2048,
        description="side in pixels to which real and synthetic images are resized before they are compared; null uses the larger of "
        "classify.image_size and the extractor's input",
    )
    reference_statistics: str | None = Field(
        None, min_length=1, description=".npz file with mu and sigma of the extractor; FID to it is reported as fid_reference"
    )
    fid_max_ratio: float = Field(10.0, gt=0.0, description="highest FID as a multiple of the real-vs-real floor at equal N")
    min_label_agreement_ratio: Fraction = Field(
        0.88,
        description="lowest share of labels that the cross-fitted classifiers confirm, relative to that of unseen real images; both are "
        "measured from the level of random labels",
    )
    min_class_agreement_ratio: Fraction = Field(
        0.6, description="lowest share of confirmed labels in any one class, relative to that class's unseen real images"
    )
    min_label_agreement: Fraction | None = Field(
        None, description="lowest absolute share of confirmed labels, in place of min_label_agreement_ratio; null applies the ratio"
    )
    min_class_agreement: Fraction | None = Field(
        None,
        description="lowest absolute share of confirmed labels in any one class, in place of min_class_agreement_ratio; null applies the "
        "ratio",
    )
    min_coverage_ratio: Fraction = Field(0.5, description="lowest coverage of the real images, as a share of the real-vs-real floor")
    min_class_coverage_ratio: Fraction = Field(
        0.25, description="lowest coverage of the real images of any one class, as a share of that class's real-vs-real floor"
    )
    min_class_recall_ratio: Fraction = Field(
        0.15,
        description="lowest recall of the real images of any one class, as a share of that class's real-vs-real floor; a class of a few "
        "repeated pictures fails it",
    )
    min_class_diversity: Fraction = Field(
        0.5, description="lowest mean feature distance between the images of a class, as a share of that between its real images"
    )
    max_class_ratio: float = Field(
        1.5, ge=1.0, description="highest ratio of the largest class to the smallest, as a multiple of that ratio in the sampling plan"
    )
    max_copy_fraction: Fraction = Field(
        0.05, description="highest share of images nearer to a training image than the copy threshold from held-out images"
    )
    copy_quantile: float = Field(
        0.01, gt=0.0, lt=0.5, description="share of held-out images that the copy check may flag, which sets its threshold"
    )
    max_duplicate_fraction: Fraction = Field(0.01, description="highest share of exact duplicates inside the set")
    max_near_duplicate_fraction: Fraction = Field(
        0.02,
        description="highest share of images that differ from another one only in encoding, size, mirroring or brightness, above the share "
        "among real images",
    )
    sscd_weights: str | None = Field(
        None,
        description="TorchScript file of SSCD, whose features are added to the copy check; the file is run as a program, so it must be "
        "trusted",
    )
    on_fail: Literal["reject", "replace_rejected"] = Field(
        "reject", description="reject refuses a failed set; replace_rejected replaces its flagged images by newly sampled ones"
    )
    replacement_rounds: int = Field(3, ge=1, le=20, description="highest number of rounds of replacing rejected images")
    max_replaced_fraction: Fraction = Field(
        0.2, description="highest share of the sampled images that may be replaced over all rounds; a set that needs more is refused"
    )
    limits: tuple[MetricLimit, ...] = Field((), description="further limits, for any metric: {metric, at_most or at_least, of_floor}")


class RatioConfig(Section):
    ratios: tuple[float, ...] = Field(
        (0.1, 0.25, 0.5, 1.0, 2.0, 5.0),
        min_length=1,
        max_length=100,
        description="numbers of synthetic images per real training image to try",
    )
    first_seeds: int = Field(
        2,
        ge=1,
        le=1000,
        description="seeds of every ratio in the first round; the ratios that are kept get twice as many in each further round",
    )
    seeds: int = Field(8, ge=1, le=1000, description="seeds of the ratios that are kept to the end, and of training on real images alone")
    keep_fraction: float = Field(0.5, gt=0.0, le=1.0, description="share of the ratios that continue after each round, at least two ratios")
    batch_share: Literal["count", "classify"] = Field(
        "count",
        description="synthetic share of a batch: count follows the numbers of images, so that each is seen equally often; classify uses "
        "classify.ratio for every number",
    )
    num_train_steps: int | None = Field(
        None, ge=1, description="optimizer steps of every classifier; null uses classify.mixed_num_train_steps"
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
