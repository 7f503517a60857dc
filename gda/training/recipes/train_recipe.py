"""All settings of a classifier's training in one value."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from gda.config.sections import ClassifyConfig
from gda.training.networks.models import parse_model_args
from gda.training.networks.pretrained import Channels, Weights, find_weights
from gda.training.recipes.augment import Strength


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """How a classifier is trained, independent of its data; the arms of a comparison differ only in steps and augmentation.

    Fields are those of section `classify`; `weights` are the pretrained weights that it names.
    """

    model: str
    model_args: Mapping[str, Any]
    image_size: int  # pixels
    num_train_steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    label_smoothing: float
    augment: Strength = "standard"
    horizontal_flip: bool = False
    optimizer: str = "adamw"
    momentum: float = 0.9
    max_grad_norm: float = 0.0
    loss: str = "ce"
    bce_threshold: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    crop_area: float = 0.0
    rand_augment: str = ""
    random_erasing: float = 0.0
    ema_decay: float = 0.0
    weights: Weights | None = None
    tune: str = "full"
    test_image_size: int | None = None  # pixels; None is image_size
    synthetic_weight: float = 1.0
    auxiliary_batch_norm: bool = False
    mixed_precision: str = "no"
    compile: bool = False

    @classmethod
    def from_config(cls, config: ClassifyConfig, *, num_train_steps: int, augment: Strength | None = None) -> "TrainRecipe":
        """The recipe of `config` for `num_train_steps`; `augment` overrides the section's augmentation.

        Raises `ConfigError` when the model arguments are not a JSON object, and as `find_weights` does.
        """
        named = {field.name: getattr(config, field.name) for field in fields(cls) if field.name in ClassifyConfig.model_fields}
        dropped = {"drop_path_rate": config.drop_path, "drop_rate": config.dropout}
        model_args = {name: rate for name, rate in dropped.items() if rate} | parse_model_args(config.model_args_json)
        decided = {"model_args": model_args, "num_train_steps": num_train_steps, "weights": find_weights(config)}
        decided |= {} if augment is None else {"augment": augment}
        return cls(**named | decided)

    def for_head(self, learning_rate: float) -> "TrainRecipe":
        """The recipe for the head alone of a trained network: another learning rate, and no averaged weights."""
        warmup = min(self.warmup_steps, self.num_train_steps // 4)
        return replace(self, tune="linear", learning_rate=learning_rate, warmup_steps=warmup, ema_decay=0.0)

    @property
    def mean(self) -> Channels:
        """The mean that each channel is reduced by, where white is 1: that of the pretrained weights, or a half."""
        return (0.5, 0.5, 0.5) if self.weights is None else self.weights.mean

    @property
    def std(self) -> Channels:
        """The deviation that each channel is divided by: that of the pretrained weights, or a half."""
        return (0.5, 0.5, 0.5) if self.weights is None else self.weights.std

    def of_one_origin(self) -> "TrainRecipe":
        """The recipe for real or synthetic images alone: settings that distinguish the two are off, so they change no digest."""
        return replace(self, synthetic_weight=1.0, auxiliary_batch_norm=False)

    def identity(self) -> dict[str, Any]:
        """The content of its digest, as plain types, without paths."""
        return asdict(self) | {"weights": None if self.weights is None else self.weights.identity()}
