"""Configuration: one strict, frozen section a stage, each field with its range, unit and one line of documentation.

Defaults documented here are the schema's; `params.yaml` holds what a project's own run says. Files are read as YAML 1.2
(in PyYAML `1e-4` is a string) and validated through JSON, so that tuples and enums accept what YAML can write.
"""

import json
import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gda.errors import ConfigError


class Arm(StrEnum):
    """One training condition of the comparison."""

    REAL = "real"
    REAL_LONG = "real_long"
    REAL_STRONG = "real_strong"
    ZERO_SHOT = "zero_shot"
    SYNTHETIC = "synthetic"
    MIXED = "real+synthetic"


class Section(BaseModel):
    """Base of every section: strict types, frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Guidance = Annotated[float, Field(ge=1.0, le=100.0)]


class SnapshotConfig(Section):
    source: str = Field("demo://mnist", description="image folder, tar pattern, Hugging Face imagefolder, .npz or demo://mnist")
    val_fraction: float = Field(0.15, gt=0.0, lt=0.9, description="share of images that fall to val where the source has no splits")
    test_fraction: float = Field(0.25, gt=0.0, lt=0.9, description="share of images that fall to test where the source has no splits")
    split_key: str = Field("gda", min_length=1, description="key of the hash that assigns splits")
    image_size: int | None = Field(
        None, ge=8, le=4096, description="resize the short side to this and crop the centre, pixels; null keeps sizes"
    )
    shard_size: int = Field(1000, ge=1, le=1_000_000, description="images a tar shard")
    max_bad_fraction: Fraction = Field(0.01, description="highest share of unreadable images before the source is refused")
    on_leak: Literal["warn", "reject"] = Field(
        "warn", description="what near matches between splits lead to; equal pixels in two splits are always refused"
    )
    demo_train_per_class: int = Field(20, ge=2, le=400, description="training images a class of demo://mnist")
    demo_val_per_class: int = Field(50, ge=2, le=100, description="validation images a class of demo://mnist")


class ReferenceConfig(Section):
    folds: int = Field(4, ge=2, le=20, description="cross-fitting folds of the label classifier")
    num_updates: int = Field(200, ge=1, description="optimizer updates of each fold's classifier")


class FinetuneConfig(Section):
    base: str = Field(
        "demo://glyphs", description="base weights: demo://glyphs, a local directory or a hub id, ORG/NAME[@REVISION][:VARIANT]"
    )
    method: Literal["full", "lora", "textual_inversion"] = Field(
        "full", description="what is trained: every weight, low-rank adapters, or one new token a class"
    )
    lora_rank: int = Field(16, ge=1, le=4096, description="rank of the adapters")
    lora_alpha: float | None = Field(None, gt=0.0, description="adapters are scaled by alpha / rank; null means alpha = rank")
    lora_target_modules: tuple[str, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"), min_length=1, description="layers that get an adapter, by the end of their name"
    )
    lora_scope: Literal["dataset", "class"] = Field("dataset", description="one set of adapters for all classes, or one a class")
    num_train_steps: int = Field(300, ge=1, le=10_000_000, description="optimizer steps of the base stage")
    sr_num_train_steps: int = Field(
        200, ge=0, le=10_000_000, description="optimizer steps of the super-resolution stage; 0 keeps it frozen"
    )
    train_batch_size: int = Field(64, ge=1, le=65536, description="images an optimizer step, over all processes")
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=65536, description="parts in which a process computes its share of a step's images"
    )
    gradient_checkpointing: bool = Field(False, description="compute activations twice rather than keep them: less memory, more time")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="precision of the network's passes; weights stay float32")
    compile: bool = Field(False, description="torch.compile of the network")
    parallelism: Literal["ddp", "fsdp"] = Field("ddp", description="how several processes share a network: whole copies, or a part each")
    optimizer: Literal["adamw", "adamw_8bit", "adafactor"] = Field("adamw", description="adamw_8bit needs the package bitsandbytes")
    learning_rate: float = Field(5e-4, gt=0.0, le=1.0, description="peak learning rate")
    lr_scheduler: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="course after the warm-up; cosine ends at 2%, linear at 0"
    )
    lr_warmup_steps: int = Field(20, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(0.01, ge=0.0, le=10.0)
    max_grad_norm: float = Field(1.0, gt=0.0, description="gradient norm is clipped to this")
    snr_gamma: float | None = Field(None, gt=0.0, description="min-SNR weighting, commonly 5; null weighs noise levels alike")
    ema_decay: float = Field(0.99, ge=0.0, lt=1.0, description="decay of averaged weights, per step")
    ema_snapshot_steps: int | None = Field(
        None, ge=1, description="steps between the snapshots from which gda ema makes any other average afterwards; null keeps none"
    )
    prompt_dropout: Fraction = Field(0.1, description="share of prompts replaced by the empty one, for guidance")
    prompt_template: str = Field("{class_name}", description="prompt of a class; {class_name} is replaced")
    prompt_file: str | None = Field(None, description="YAML or JSON file of class name -> prompt, or -> names from narrow to broad")
    class_balanced: bool = Field(False, description="draw every class equally often, however many images it has")
    horizontal_flip: bool = Field(False, description="mirror training images at random; off where a mirrored image means something else")
    jitter: Fraction | None = Field(
        None, description="strength of random affine jitter of training images, 0 is off; null means 0.5 in pixel space, 0 in latent space"
    )
    evaluation_steps: int | None = Field(None, ge=1, description="steps between evaluations that choose the weights; null keeps the last")
    evaluation_metric: Literal["fid", "kid"] = Field("fid", description="distance of drawn images to the held-out share of train")
    evaluation_fraction: float = Field(0.2, gt=0.0, lt=0.9, description="share of train held out for evaluations, by class")
    evaluation_images_per_class: int = Field(20, ge=2, description="images drawn a class at each evaluation")
    evaluation_guidance_scale: Guidance = Field(1.0, description="guidance of those images, 1 is off")
    evaluation_num_inference_steps: int = Field(8, ge=1, le=1000, description="denoising steps of those images")
    checkpointing_steps: int = Field(50, ge=1, description="steps between resumable checkpoints")
    checkpoints_total_limit: int = Field(2, ge=1, le=100, description="checkpoints kept")
    model_name: str | None = Field("gda-generator", min_length=1, description="registered model name in MLflow; null registers nothing")


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
    cas_num_updates: int = Field(300, ge=1, description="optimizer updates of each CAS classifier")
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
    fid_max_ratio: float = Field(8.0, gt=0.0, description="highest FID as a multiple of the real-vs-real floor at equal N")
    min_label_agreement: Fraction = Field(0.85, description="lowest share of images whose label the cross-fitted classifier confirms")
    min_class_agreement: Fraction = Field(0.6, description="lowest such share in any one class")
    min_coverage_ratio: Fraction = Field(0.5, description="lowest coverage of the real images as a share of the real-vs-real floor")
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
    on_fail: Literal["reject", "drop_and_redraw"] = Field(
        "reject", description="what a failed set leads to; drop_and_redraw takes out the images at fault and draws others in their place"
    )
    redraw_rounds: int = Field(3, ge=1, le=20, description="most rounds of dropping and redrawing")
    max_dropped_fraction: Fraction = Field(
        0.2, description="highest share of the images drawn that may be dropped, over all rounds; beyond it the generator is at fault"
    )
    limits: tuple[MetricLimit, ...] = Field(
        (), description="further limits of any metric, beside the above: {metric, at_most or at_least, of_floor}"
    )


DEMO_CLASSIFIER = "resnetv2_18"


def _default_model_args(given: dict[str, Any]) -> str:
    """Arguments that make the demo's model small (0.3 M parameters); they must not narrow, unasked, another one that a user names."""
    small = {"layers": [1, 1, 1], "channels": [32, 64, 128], "stem_chs": 32}
    return json.dumps(small if given.get("model") == DEMO_CLASSIFIER else {})


class ClassifyConfig(Section):
    model: str = Field(DEMO_CLASSIFIER, description="a timm architecture by name")
    model_args_json: str = Field(
        default_factory=_default_model_args,
        description="keyword arguments of timm.create_model, as JSON; by default the demo's model is small, any other as timm has it",
    )
    image_size: int = Field(28, ge=8, le=2048, description="input side, pixels")
    num_updates: int = Field(300, ge=1, description="optimizer updates of the arms real, synthetic and zero_shot")
    mixed_num_updates: int = Field(
        600, ge=1, description="optimizer updates of real+synthetic, and of its rivals real_long and real_strong"
    )
    batch_size: int = Field(64, ge=1, le=65536, description="images an update")
    ratio: float = Field(1.0, gt=0.0, le=100.0, description="synthetic to real images in a mixed batch")
    learning_rate: float = Field(2e-3, gt=0.0, le=10.0, description="peak learning rate (AdamW, linear warm-up, cosine decay to zero)")
    weight_decay: float = Field(0.05, ge=0.0, le=10.0, description="of matrices and kernels; norms and biases have none")
    warmup_updates: int = Field(20, ge=0, description="updates of linear warm-up")
    label_smoothing: float = Field(0.1, ge=0.0, lt=1.0, description="share of the target spread over all classes")
    horizontal_flip: bool = Field(False, description="mirror training images at random; off where a mirrored image means something else")
    seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4, 5), min_length=1, description="seeds of real and real+synthetic")
    control_seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="seeds of the other arms")


class EvaluateConfig(Section):
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="level of every interval")
    num_resamples: int = Field(4000, ge=200, le=1_000_000, description="bootstrap resamples")


class PromoteConfig(Section):
    arm: Arm = Field(Arm.MIXED, description="the one arm declared before the run")
    min_seeds: int = Field(6, ge=2, description="fewest paired seeds; the sign-flip test cannot reach 0.05 with five")
    alpha: float = Field(0.05, gt=0.0, lt=0.5, description="significance level of gain and per-class harm")
    model_name: str = Field("gda-classifier", min_length=1, description="registered model name")
    allowed_licences: tuple[str, ...] = Field(
        ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "openrail++"),
        description="licences of the generator's base under which a classifier may be promoted; unknown never is",
    )


class Config(Section):
    """The whole configuration; `seed` names every random stream."""

    seed: int = Field(0, ge=0, le=2**63 - 1)
    snapshot: SnapshotConfig = SnapshotConfig()
    reference: ReferenceConfig = ReferenceConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    tune: TuneConfig = TuneConfig()
    sample: SampleConfig = SampleConfig()
    validate_: ValidateConfig = Field(ValidateConfig(), alias="validate")
    classify: ClassifyConfig = ClassifyConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    promote: PromoteConfig = PromoteConfig()


def load_config(params: Path | None = None, overrides: tuple[str, ...] = ()) -> Config:
    """Read `params` (YAML 1.2; None means schema defaults) and apply `section.field=value` overrides.

    Raises `ConfigError` with one line that names the field, what was given and what is accepted.
    """
    content: dict[str, Any] = _read_yaml(params) if params is not None else {}
    for item in overrides:
        _override(content, item)
    return parse_config(content, where=str(params) if params is not None else "--set")


def parse_config(content: dict[str, Any], *, where: str) -> Config:
    """Validate a nested dictionary; `where` is named in the error."""
    _require_finite(content, where)
    try:
        text = json.dumps(content)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None
    try:
        return Config.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_one_line(error)}") from None


def dump_config(config: Config) -> dict[str, Any]:
    """The resolved whole as plain JSON types, with the names that `params.yaml` uses."""
    return config.model_dump(mode="json", by_alias=True)


def _require_finite(value: Any, where: str, field: str = "") -> None:
    """JSON has no word for NaN and infinity, so they are refused before, by the field's name."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {field}: must be a finite number, got {value}")
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        _require_finite(child, where, f"{field}.{name}".lstrip("."))


def _read_yaml(path: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe", pure=True).load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(content).__name__}")
    return content


def _override(content: dict[str, Any], item: str) -> None:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path, equals, text = item.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {item!r}: expected section.field=value")
    try:
        value = YAML(typ="safe", pure=True).load(text) if text else None
    except YAMLError:
        raise ConfigError(f"--set {item!r}: {text!r} is not a YAML value") from None
    *parents, leaf = path.split(".")
    for name in parents:
        content = content.setdefault(name, {})
        if not isinstance(content, dict):
            raise ConfigError(f"--set {item!r}: {name!r} is not a section")
    content[leaf] = value


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "top level"
    if first["type"] == "extra_forbidden":
        return f"unknown key {field!r}; {_accepted_keys(first['loc'])}"
    given = json.dumps(first["input"], default=str)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{field}: {first['msg'][0].lower()}{first['msg'][1:]}, got {given}{more}"


def _accepted_keys(loc: tuple[int | str, ...]) -> str:
    import difflib

    model: type[BaseModel] = Config
    for part in loc[:-1]:
        annotation = next(f.annotation for n, f in model.model_fields.items() if part in (n, f.alias))
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    names = [f.alias or n for n, f in model.model_fields.items()]
    close = difflib.get_close_matches(str(loc[-1]), names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"accepted: {', '.join(names)}"
