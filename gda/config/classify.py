"""The section `classify` of the configuration: how classifiers are trained, by single settings or by a named recipe."""

import json
import math
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from gda.config.arm import TRAINING_NAME, TRAININGS, Arm
from gda.config.base import Fraction, Section
from gda.config.classifier_recipes import RECIPES, fill_in

DEMO_CLASSIFIER = "resnetv2_18"
TrainingName = Annotated[str, Field(pattern=f"^{TRAINING_NAME}$")]


def _default_model_args(given: dict[str, Any]) -> str:
    """Arguments that make the demo's model small (0.3 M parameters). Another model that a user names keeps timm's own size."""
    small = {"layers": [1, 1, 1], "channels": [32, 64, 128], "stem_chs": 32}
    return json.dumps(small if given.get("model") == DEMO_CLASSIFIER else {})


# Fields about the comparison, not about the training of one classifier. Arms that depend on one record it in their own recipes.
_COMPARISON = (
    "seeds",
    "control_seeds",
    "arms",
    "num_epochs",
    "target_fraction",
    "target_classes",
    "last_layer_num_train_steps",
    "last_layer_learning_rate",
    "synthetic_parts",
    "trainings",
)
# Fields that a training with a recipe of its own takes from the section all the same: images, batches and lengths.
_SHARED = (
    "image_size",
    "test_image_size",
    "num_train_steps",
    "mixed_num_train_steps",
    "batch_size",
    "ratio",
    "horizontal_flip",
    *_COMPARISON,
)
# Arms that need no pool of more real images, no reference and no image-to-image set.
_USUAL_ARMS = (Arm.REAL, Arm.REAL_LONG, Arm.REAL_STRONG, Arm.ZERO_SHOT, Arm.SYNTHETIC, Arm.MIXED)

TWO_ORIGINS = frozenset({"synthetic_weight", "auxiliary_batch_norm"})  # no effect where all images are real, or all synthetic


class ClassifyConfig(Section):
    recipe: str = Field(
        "",
        description="name of a training recipe, as listed by gda recipes; it sets every field that it names, except those given in "
        "params.yaml or by --set; empty uses the fields as they are",
    )
    model: str = Field(DEMO_CLASSIFIER, description="name of a timm architecture")
    model_args_json: str = Field(
        default_factory=_default_model_args,
        description="keyword arguments of timm.create_model, as JSON; the default makes the demo's model small and leaves any other as timm"
        " has it",
    )
    image_size: int = Field(28, ge=8, le=2048, description="side of the input images, in pixels")
    test_image_size: int | None = Field(
        None, ge=8, le=2048, description="side of the images in validation and evaluation, in pixels; null uses image_size"
    )
    num_train_steps: int = Field(300, ge=1, description="optimizer steps of the arms real, synthetic and zero_shot in standard training")
    mixed_num_train_steps: int = Field(
        600,
        ge=1,
        description="optimizer steps of arms that mix real and other images, such as real+synthetic, and of arms with a training suffix "
        "such as _long or _strong, so that rivals train equally long",
    )
    batch_size: int = Field(64, ge=1, le=65536, description="images per batch")
    ratio: float = Field(1.0, gt=0.0, le=100.0, description="synthetic images per real image in a mixed batch")
    synthetic_weight: float = Field(
        1.0,
        gt=0.0,
        le=100.0,
        description="loss weight of a synthetic image relative to a real one in a mixed batch; the batch loss is the weighted mean",
    )
    auxiliary_batch_norm: bool = Field(
        False,
        description="train separate batch norms on the synthetic images of mixed batches; they are discarded after training (AdvProp)",
    )
    optimizer: Literal["adamw", "sgd", "momentum", "lamb", "rmsproptf"] = Field(
        "adamw", description="timm's name of the optimizer; sgd uses Nesterov momentum, momentum the classical one"
    )
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="momentum of sgd, momentum and rmsproptf")
    learning_rate: float = Field(2e-3, gt=0.0, le=10.0, description="peak learning rate (linear warm-up, cosine decay to zero)")
    weight_decay: float = Field(0.05, ge=0.0, le=10.0, description="weight decay of matrices and kernels; norms and biases have none")
    warmup_steps: int = Field(20, ge=0, description="steps of linear warm-up")
    label_smoothing: float = Field(0.1, ge=0.0, lt=1.0, description="share of the target spread over all classes")
    max_grad_norm: float = Field(0.0, ge=0.0, description="gradients are clipped to this norm; 0 does not clip")
    loss: Literal["ce", "bce"] = Field("ce", description="cross-entropy, or binary cross-entropy for each class separately")
    bce_threshold: Fraction = Field(0.0, description="with loss bce, a target above this becomes 1, any other 0; 0 keeps soft targets")
    mixup: float = Field(
        0.0, ge=0.0, le=100.0, description="alpha of mixup's Beta distribution, 0 is off; with cutmix too, each batch gets one of the two"
    )
    cutmix: float = Field(0.0, ge=0.0, le=100.0, description="alpha of cutmix's Beta distribution, 0 is off")
    drop_path: float = Field(
        0.0, ge=0.0, lt=1.0, description="stochastic depth rate, passed as drop_path_rate to an architecture that takes it"
    )
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout rate before the classifier's head, passed as drop_rate")
    crop_area: Fraction = Field(0.0, description="smallest share of the area that a random resized crop keeps; 0 pads and crops instead")
    rand_augment: str = Field(
        "",
        pattern=r"^(rand(-[a-z]+[0-9]+(\.[0-9]+)?)*)?$",
        description="RandAugment in timm's notation, such as rand-m9-mstd0.5-inc1, applied image by image on the CPU; empty is off",
    )
    random_erasing: Fraction = Field(
        0.0, description="share of images in which noise covers a rectangle, in addition to the erasing of strong augmentation"
    )
    ema_decay: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="decay per step of the moving average of the weights, reached gradually; the averaged weights are kept; 0 is off",
    )
    pretrained: str = Field(
        "",
        description="initial weights: empty for none, timm for those that timm names for the architecture (in the hub cache), or a "
        "safetensors file or directory that timm loads; the head is always new",
    )
    tune: Literal["full", "linear"] = Field(
        "full", description="full trains all weights, linear only the head on frozen pretrained weights"
    )
    mixed_precision: Literal["no", "bf16"] = Field(
        "no",
        description="precision of the training passes; weights, optimizer and averages stay fp32, and so does inference; bf16 is slower on "
        "a CPU without instructions for it",
    )
    compile: bool = Field(
        False, description="compile the training passes with torch.compile, which takes a minute or more before the first step"
    )
    augment: Literal["standard", "strong"] = Field(
        "standard",
        description="augmentation of the training images of every arm, in addition to the other fields: standard pads and crops, strong "
        "also rotates, shears, scales and erases parts; the training strong is always augmented strongly",
    )
    horizontal_flip: bool = Field(
        False, description="mirror training images at random; leave it off where a mirrored image means something else"
    )
    seeds: tuple[int, ...] = Field(
        tuple(range(10)),
        min_length=1,
        description="seeds of real+synthetic and of its rival, real, in every training; fewer than six cannot show a gain",
    )
    control_seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="seeds of the other arms")
    arms: tuple[Arm, ...] = Field(
        _USUAL_ARMS,
        description="arms to compare, as DATA or DATA_TRAINING: the images, and how classifiers are trained on them (standard, long, "
        "strong)",
    )
    num_epochs: float = Field(
        0.0,
        ge=0.0,
        le=1e6,
        description="passes over an arm's real images (synthetic ones where it has no others) in place of num_train_steps and "
        "mixed_num_train_steps, so that mixed arms see every real image as often as real does; 0 uses the numbers of steps",
    )
    synthetic_parts: int = Field(
        1,
        ge=1,
        le=1000,
        description="number of disjoint parts of the synthetic set; each seed is trained on the part of number seed modulo this, so that "
        "intervals over seeds also cover the sampling of images; each generator of a merged set is a part",
    )
    trainings: dict[TrainingName, dict[str, JsonValue]] = Field(
        default_factory=dict,
        description="trainings of your own: name -> fields of this section that differ in arms DATA_NAME, such as model or recipe",
    )
    target_fraction: float = Field(
        0.3,
        gt=0.0,
        le=1.0,
        description="for the arm targeted: share of the classes that get synthetic images, those with the lowest cross-fitted accuracy",
    )
    target_classes: tuple[str, ...] = Field(
        (), description="for the arm targeted: the classes that get synthetic images, in place of target_fraction"
    )
    last_layer_num_train_steps: int = Field(
        100, ge=1, description="for the arm last_layer: optimizer steps of the head alone, on real images, after those of real+synthetic"
    )
    last_layer_learning_rate: float = Field(
        2e-4, gt=0.0, le=10.0, description="for the arm last_layer: peak learning rate of the steps of the head alone"
    )

    @model_validator(mode="before")
    @classmethod
    def _follow_recipe(cls, given: Any) -> Any:
        """Set the fields that the recipe names and that are not given; a given value wins, also one equal to the default."""
        if not isinstance(given, dict):
            return given
        # A JSON array arrives here as a list, which a strict tuple does not accept.
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        recipe = RECIPES.get(str(given.get("recipe")))
        if recipe is None:
            return given
        num_train_steps = given.get("num_train_steps", cls.model_fields["num_train_steps"].default)
        try:
            filled = fill_in(
                recipe, image_size=given.get("image_size"), batch_size=given.get("batch_size"), num_train_steps=num_train_steps
            )
        except (TypeError, ZeroDivisionError, ValueError):
            return given  # a field of the wrong type, which validation refuses next by its name
        return filled | given

    @field_validator("recipe")
    @classmethod
    def _known(cls, name: str) -> str:
        if name and name not in RECIPES:
            raise ValueError(f"no such recipe; gda recipes lists them: {', '.join(RECIPES)}")
        return name

    @model_validator(mode="after")
    def _agree(self) -> "ClassifyConfig":
        if self.tune == "linear" and not self.pretrained:
            raise ValueError("tune: linear trains a head on frozen weights, so give pretrained")
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError("mixup and cutmix pair the images of a batch, so give an even batch_size")
        if self.bce_threshold and self.loss != "bce":
            raise ValueError("bce_threshold requires loss: bce")
        if Arm.REAL not in self.arms or len(set(self.arms)) < len(self.arms):
            raise ValueError(f"arms must be different ones and have {Arm.REAL} among them, got {', '.join(self.arms)}")
        if self.auxiliary_batch_norm and (self.mixup or self.cutmix):
            raise ValueError(
                "auxiliary_batch_norm keeps real and synthetic images apart, which mixup and cutmix blend; use one or the other"
            )
        if self.auxiliary_batch_norm and self.tune == "linear":
            raise ValueError("auxiliary_batch_norm trains batch norms, which tune: linear freezes; use one or the other")
        if self.auxiliary_batch_norm and self.compile:
            raise ValueError("auxiliary_batch_norm exchanges the batch norms of a network, which compile fixes; use one or the other")
        return self

    @model_validator(mode="after")
    def _trainings_are_known(self) -> "ClassifyConfig":
        for name, own in self.trainings.items():
            if name in TRAININGS:
                raise ValueError(f"trainings.{name}: is the name of a built-in training; use another name")
            if shared := sorted(own.keys() & set(_COMPARISON)):
                raise ValueError(f"trainings.{name}.{shared[0]}: is the same for every arm")
            self._with(name)
        if unknown := [arm for arm in self.arms if not self.has_training(arm)]:
            accepted = ", ".join((*TRAININGS, *self.trainings))
            raise ValueError(f"arms: {unknown[0]}: no such training {unknown[0].training!r}; accepted: {accepted}")
        return self

    def has_training(self, arm: Arm) -> bool:
        """Whether the training of `arm` is built in or configured."""
        return arm.training in ("", *TRAININGS, *self.trainings)

    def trained_as(self, arm: Arm) -> "ClassifyConfig":
        """This section with the fields that the training of `arm` overrides. Raises `KeyError` for an unknown training."""
        return self if arm.training in ("", *TRAININGS) else self._with(arm.training)

    def augment_of(self, arm: Arm) -> Literal["standard", "strong"]:
        """The augmentation of the training images of `arm`."""
        return "strong" if arm.training == "strong" else self.trained_as(arm).augment

    def _with(self, training: str) -> "ClassifyConfig":
        own = self.trainings[training]
        kept = self.model_dump(mode="json", include=set(_SHARED) if "recipe" in own else None)
        if "model" in own:
            kept.pop("model_args_json", None)  # they belong to the section's model
        try:
            return type(self).model_validate_json(json.dumps({**kept, **own, "arms": [Arm.REAL], "trainings": {}}))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, (training, *first["loc"])))
            raise ValueError(f"trainings.{field}: {first['msg'].removeprefix('Value error, ')}") from None

    @property
    def tested_at(self) -> int:
        """Side of the images that a finished classifier takes, in pixels."""
        return self.test_image_size or self.image_size

    def seeds_of(self, arm: Arm) -> tuple[int, ...]:
        """The seeds of `arm`: one classifier per seed."""
        return self.seeds if arm.data.compared_by_seed else self.control_seeds

    def train_steps_of(self, num_images: int, *, long: bool) -> int:
        """Optimizer steps of an arm with `num_images` images, real ones unless it has none; `long` arms mix images or are their rivals."""
        if not self.num_epochs:
            return self.mixed_num_train_steps if long else self.num_train_steps
        images = self.num_epochs * num_images * (1 + self.ratio if long else 1.0)
        return max(1, math.ceil(images / self.batch_size - 1e-9))

    def decided(self, *, exclude: frozenset[str] | set[str] = frozenset()) -> dict[str, Any]:
        """What a stage's recipe records of this section, as plain JSON types: how a classifier is trained, not what it is compared with.

        It leaves out the recipe's name and paths.
        """
        return self.recorded({"recipe", "pretrained", *_COMPARISON, *exclude})
