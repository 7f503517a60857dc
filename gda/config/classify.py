"""The section `classify` of the configuration: how classifiers are trained, by single settings or by a named recipe."""

import json
import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from gda.config.arm import TRAINING_NAME, TRAININGS, Arm
from gda.config.base import Fraction, Section
from gda.config.classifier_recipes import RECIPES, fill_in

DEMO_CLASSIFIER = "resnetv2_18"
TrainingName = Annotated[str, Field(pattern=f"^{TRAINING_NAME}$")]


def _default_model_args(given: dict[str, Any]) -> str:
    """Arguments that make the demo's model small (0.3 M parameters); they must not narrow, unasked, another one that a user names."""
    small = {"layers": [1, 1, 1], "channels": [32, 64, 128], "stem_chs": 32}
    return json.dumps(small if given.get("model") == DEMO_CLASSIFIER else {})


# What is compared, rather than how one classifier is trained; the arms that it concerns say it in their own recipes.
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
# What a training that follows a recipe of its own keeps of the section: images, batches and lengths.
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
# Those that every set-up has the images for: no pool of more real ones, no reference, no image-to-image set.
_USUAL_ARMS = (Arm.REAL, Arm.REAL_LONG, Arm.REAL_STRONG, Arm.ZERO_SHOT, Arm.SYNTHETIC, Arm.MIXED)

TWO_ORIGINS = frozenset({"synthetic_weight", "auxiliary_batch_norm"})  # say nothing where all images are real, or all synthetic


class ClassifyConfig(Section):
    LATER: ClassVar[tuple[str, ...]] = (
        "test_image_size",
        "optimizer",
        "momentum",
        "max_grad_norm",
        "loss",
        "bce_threshold",
        "mixup",
        "cutmix",
        "drop_path",
        "dropout",
        "crop_area",
        "rand_augment",
        "random_erasing",
        "ema_decay",
        "tune",
        "synthetic_weight",
        "auxiliary_batch_norm",
        "mixed_precision",
        "compile",
        "augment",
    )

    recipe: str = Field(
        "",
        description="a training recipe that gda recipes lists; it fills every setting of this section that it names, those excepted that "
        "are given another value than their default; empty trains as the settings say",
    )
    model: str = Field(DEMO_CLASSIFIER, description="a timm architecture by name")
    model_args_json: str = Field(
        default_factory=_default_model_args,
        description="keyword arguments of timm.create_model, as JSON; by default the demo's model is small, any other as timm has it",
    )
    image_size: int = Field(28, ge=8, le=2048, description="input side, pixels")
    test_image_size: int | None = Field(
        None, ge=8, le=2048, description="side of images to be classified, in validation and evaluation, pixels; null is image_size"
    )
    num_train_steps: int = Field(
        300, ge=1, description="optimizer updates of the arms real, synthetic and zero_shot in their standard training"
    )
    mixed_num_train_steps: int = Field(
        600,
        ge=1,
        description="optimizer updates of arms that mix, such as real+synthetic, and of trainings _long and _strong, as of its rivals",
    )
    batch_size: int = Field(64, ge=1, le=65536, description="images an update")
    ratio: float = Field(1.0, gt=0.0, le=100.0, description="synthetic to real images in a mixed batch")
    synthetic_weight: float = Field(
        1.0,
        gt=0.0,
        le=100.0,
        description="weight of a synthetic image's loss beside a real one's in a mixed batch; the mean is a weighted one",
    )
    auxiliary_batch_norm: bool = Field(
        False, description="in mixed batches, synthetic images train batch norms of their own, which are not kept (AdvProp)"
    )
    optimizer: Literal["adamw", "sgd", "momentum", "lamb", "rmsproptf"] = Field(
        "adamw", description="timm's name of the optimizer; sgd has Nesterov's momentum, momentum the classical one"
    )
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="of sgd, momentum and rmsproptf")
    learning_rate: float = Field(2e-3, gt=0.0, le=10.0, description="peak learning rate (linear warm-up, cosine decay to zero)")
    weight_decay: float = Field(0.05, ge=0.0, le=10.0, description="of matrices and kernels; norms and biases have none")
    warmup_steps: int = Field(20, ge=0, description="updates of linear warm-up")
    label_smoothing: float = Field(0.1, ge=0.0, lt=1.0, description="share of the target spread over all classes")
    max_grad_norm: float = Field(0.0, ge=0.0, description="largest norm of the gradients of an update; 0 does not clip")
    loss: Literal["ce", "bce"] = Field("ce", description="cross-entropy, or binary cross-entropy of each class for itself")
    bce_threshold: Fraction = Field(0.0, description="binary targets: 1 where the mixed target is above this; 0 leaves them soft")
    mixup: float = Field(
        0.0, ge=0.0, le=100.0, description="alpha of mixup's Beta distribution; with cutmix, each batch gets one of the two"
    )
    cutmix: float = Field(0.0, ge=0.0, le=100.0, description="alpha of cutmix's Beta distribution")
    drop_path: float = Field(0.0, ge=0.0, lt=1.0, description="stochastic depth, as drop_path_rate of an architecture that takes it")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="before the classifier's head, as drop_rate")
    crop_area: Fraction = Field(0.0, description="smallest share of the area that a random resized crop keeps; 0 pads and crops instead")
    rand_augment: str = Field(
        "",
        pattern=r"^(rand(-[a-z]+[0-9]+(\.[0-9]+)?)*)?$",
        description="RandAugment as timm writes it, such as rand-m9-mstd0.5-inc1; image by image on the CPU",
    )
    random_erasing: Fraction = Field(0.0, description="share of images with a rectangle of noise, beside those of strong augmentation")
    ema_decay: float = Field(
        0.0, ge=0.0, lt=1.0, description="decay of the weights' average an update, reached gradually; its weights are kept; 0 is off"
    )
    pretrained: str = Field(
        "",
        description="weights to start from: empty for none, timm for those that it names for the architecture (in the hub cache), or a "
        "safetensors file or a directory that timm loads; the head is always new",
    )
    tune: Literal["full", "linear"] = Field("full", description="what is trained: everything, or the head on frozen pretrained weights")
    mixed_precision: Literal["no", "bf16"] = Field(
        "no",
        description="of the passes of training; weights, optimizer and averages stay fp32, and so does whatever is classified afterwards; "
        "bf16 is for GPUs and for processors with instructions for it, others get slower",
    )
    compile: bool = Field(False, description="compile the training passes (torch.compile): a minute or more before the first update")
    augment: Literal["standard", "strong"] = Field(
        "standard",
        description="how training images are changed in every arm, beside what the fields here add: padded and cropped, or also turned, "
        "sheared, scaled and partly erased; arms of the training strong are changed strongly whatever this says",
    )
    horizontal_flip: bool = Field(False, description="mirror training images at random; off where a mirrored image means something else")
    seeds: tuple[int, ...] = Field(
        tuple(range(10)),
        min_length=1,
        description="seeds of real+synthetic and of what it has to beat, real, in every training; fewer than six can show no gain",
    )
    control_seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="seeds of the other arms")
    arms: tuple[Arm, ...] = Field(
        _USUAL_ARMS,
        description="what is compared, as DATA or DATA_TRAINING: the images, and how they are trained on (standard, long, strong)",
    )
    num_epochs: float = Field(
        0.0,
        ge=0.0,
        le=1e6,
        description="passes over an arm's real images (synthetic ones where it has no others) in place of num_train_steps and "
        "mixed_num_train_steps, so that mixed arms see every real image as often as real does; 0 counts updates",
    )
    synthetic_parts: int = Field(
        1,
        ge=1,
        le=1000,
        description="disjoint parts of a synthetic set, of which a seed is trained on one, its number modulo theirs, so that the intervals "
        "over seeds know other draws too; of a set merged from several generators a part is a generator",
    )
    trainings: dict[TrainingName, dict[str, JsonValue]] = Field(
        default_factory=dict,
        description="trainings of your own: name -> fields of this section that arms DATA_NAME have otherwise, a model or a recipe among "
        "them",
    )
    target_fraction: float = Field(
        0.3,
        gt=0.0,
        le=1.0,
        description="of the arm targeted: share of the classes that get synthetic images, those with the lowest cross-fitted accuracy",
    )
    target_classes: tuple[str, ...] = Field((), description="of the arm targeted: the classes themselves, in place of target_fraction")
    last_layer_num_train_steps: int = Field(
        100, ge=1, description="of the arm last_layer: updates of the head alone, on real images, after those of real+synthetic"
    )
    last_layer_learning_rate: float = Field(2e-4, gt=0.0, le=10.0, description="peak learning rate of these updates")

    @model_validator(mode="before")
    @classmethod
    def _follow_recipe(cls, given: Any) -> Any:
        """Fill in what the recipe names, unless it is given another value than its default."""
        if not isinstance(given, dict):
            return given
        # Behind this validator JSON's arrays are lists, which a strict tuple does not take.
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        recipe = RECIPES.get(str(given.get("recipe")))
        if recipe is None:
            return given
        own = {key: value for key, value in given.items() if key not in cls.model_fields or value != cls.model_fields[key].default}
        num_train_steps = given.get("num_train_steps", cls.model_fields["num_train_steps"].default)
        try:
            filled = fill_in(recipe, image_size=own.get("image_size"), batch_size=own.get("batch_size"), num_train_steps=num_train_steps)
        except (TypeError, ZeroDivisionError, ValueError):
            return given  # a field of the wrong type, which is about to be refused by its name
        return filled | own

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
            raise ValueError("bce_threshold goes with loss: bce")
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
                raise ValueError(f"trainings.{name}: has a meaning already; accepted: another name")
            if shared := sorted(own.keys() & set(_COMPARISON)):
                raise ValueError(f"trainings.{name}.{shared[0]}: is the same for every arm")
            self._with(name)
        if unknown := [arm for arm in self.arms if not self.has_training(arm)]:
            accepted = ", ".join((*TRAININGS, *self.trainings))
            raise ValueError(f"arms: {unknown[0]}: no such training {unknown[0].training!r}; accepted: {accepted}")
        return self

    def has_training(self, arm: Arm) -> bool:
        """Whether `arm` is trained in a way that there is."""
        return arm.training in ("", *TRAININGS, *self.trainings)

    def trained_as(self, arm: Arm) -> "ClassifyConfig":
        """This section with the fields that the training of `arm` has otherwise. Raises `KeyError` for a training that there is not."""
        return self if arm.training in ("", *TRAININGS) else self._with(arm.training)

    def augment_of(self, arm: Arm) -> Literal["standard", "strong"]:
        """How the training images of `arm` are changed."""
        return "strong" if arm.training == "strong" else self.trained_as(arm).augment

    def _with(self, training: str) -> "ClassifyConfig":
        own = self.trainings[training]
        kept = self.model_dump(mode="json", include=set(_SHARED) if "recipe" in own else None)
        if "model" in own:
            kept.pop("model_args_json", None)  # they are the other model's
        try:
            return type(self).model_validate_json(json.dumps({**kept, **own, "arms": [Arm.REAL], "trainings": {}}))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, (training, *first["loc"])))
            raise ValueError(f"trainings.{field}: {first['msg'].removeprefix('Value error, ')}") from None

    @property
    def tested_at(self) -> int:
        """Side of the images that a finished classifier takes, pixels."""
        return self.test_image_size or self.image_size

    def seeds_of(self, arm: Arm) -> tuple[int, ...]:
        """The seeds that `arm` is trained with."""
        return self.seeds if arm.data.compared_by_seed else self.control_seeds

    def train_steps_of(self, num_images: int, *, long: bool) -> int:
        """Optimizer updates of an arm with `num_images` images of its own kind; `long` arms are those that mix, and their rivals."""
        if not self.num_epochs:
            return self.mixed_num_train_steps if long else self.num_train_steps
        images = self.num_epochs * num_images * (1 + self.ratio if long else 1.0)
        return max(1, math.ceil(images / self.batch_size - 1e-9))

    def decided(self, *, exclude: frozenset[str] | set[str] = frozenset()) -> dict[str, Any]:
        """What a stage's recipe keeps of this section, as plain JSON types: how a classifier is trained, and not what it is compared with.

        There is no recipe's name in it, no path, and nothing that is switched off.
        """
        return self.recorded({"recipe", "pretrained", *_COMPARISON, *exclude})
