"""The cards of finished classifiers and generators."""

from typing import Any, Literal

from pydantic import Field

from gda.artifacts.document import SCHEMA_VERSION, Document
from gda.config.arm import Arm


class ClassifierCard(Document):
    """`classifier.json`, next to timm's `config.json` and `model.safetensors`; a skipped arm has only this file."""

    schema_version: Literal[1] = SCHEMA_VERSION
    arm: Arm
    seed: int
    skipped: str | None = Field(None, description="why there are no weights")
    model: str
    image_size: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    classes: tuple[str, ...]
    num_train_steps: int = 0
    val_top1: float | None = None
    digest: str = Field("", description="content digest of the weights and of what they were trained on")
    snapshot_digest: str
    synthetic_digest: str | None = None
    pool_digest: str | None = Field(None, exclude_if=lambda digest: digest is None, description="of the pool of more real images")
    synthetic_parts: int = Field(
        1,
        ge=1,
        exclude_if=lambda parts: parts == 1,
        description="parts that the synthetic set was split into; the classifier was trained on one",
    )
    targets: tuple[str, ...] | None = Field(
        None, exclude_if=lambda names: names is None, description="the classes that got synthetic images; null: all"
    )
    base_licence: str = "unknown"
    weights: str | None = Field(None, exclude_if=lambda digest: digest is None, description="content digest of model.safetensors alone")
    pretrained: str | None = Field(
        None, exclude_if=lambda digest: digest is None, description="sha256 of the weights file that training started from"
    )
    interpolation: Literal["lanczos", "bicubic", "bilinear"] | None = Field(
        None, exclude_if=lambda name: name is None, description="how images are resized to its input size; null: lanczos"
    )


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
    adapters: dict[str, str] = Field(default_factory=dict, description="class name -> folder of the adapter that samples its images")
    training: dict[str, Any] = Field(default_factory=dict, description="how it was fine-tuned: the configuration's section finetune")
    metrics: dict[str, float] = Field(default_factory=dict, description="what was measured while it was fine-tuned")
    averaging: str = Field("", description="how gda ema averaged the weights after training; empty: as finetune did")
    source: str = Field("", description="where the base came from: hub id with commit, demo://glyphs, or a directory's name; or empty")
