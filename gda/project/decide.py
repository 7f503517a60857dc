"""The decisions of `gda init`: settings derived from summaries of images, machine and base, by pure functions."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gda.data.images.looks import Looks
from gda.errors import DataError
from gda.project.summaries import BaseSummary, ImageSummary, MachineSummary

Goal = Literal["quick", "standard", "thorough"]
GOALS: tuple[Goal, ...] = ("quick", "standard", "thorough")
_EFFORT = {"quick": 0.4, "standard": 1.0, "thorough": 2.5}
# A gain as small as this is worth having; of two classifiers, this share of test images is classified by one alone correctly.
INTERESTING_GAIN, _DISAGREEMENT = 0.02, 0.1
_NORMAL_QUANTILES = 1.96 + 0.84  # 95% confidence, 80% power
_SIZES = (28, 32, 48, 64, 96, 128, 160, 224)
_NOT_MIRRORED = re.compile(r"(^|[^a-z])(left|right|digits?|letters?|numbers?)($|[^a-z])|^[a-z0-9]$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting: `field` as in `params.yaml`, its value, and why it has this value here."""

    field: str
    value: Any
    why: str


@dataclass(frozen=True, kw_only=True)
class ExtractorChoice:
    """A feature network for FID: its name, the file of its weights unless they are at their usual place, and how to get them."""

    name: str
    weights: str | None = None
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class ProjectSettings:
    """All settings, what the user should know (`warnings`), and what has to be fetched or chosen before the job can run (`missing`)."""

    settings: tuple[Setting, ...]
    warnings: tuple[str, ...]
    missing: tuple[str, ...]


def derive_settings(
    images: ImageSummary, machine: MachineSummary, base: BaseSummary, extractor: ExtractorChoice, *, goal: Goal = "standard"
) -> ProjectSettings:
    """The settings of a project. Raises `DataError` for a set that no setting makes usable, with the number that is needed."""
    require_usable(images)
    model = _Model(images, machine, base, goal)
    settings = (
        Setting(field="seed", value=0, why="any number; another one gives other random numbers"),
        *_snapshot(images),
        *_reference(model),
        *_finetune(model),
        *_tune(model),
        *_sample(model),
        *_validate(model, extractor),
        *_classify(model),
        *_promote(),
    )
    return ProjectSettings(settings=settings, warnings=tuple(_warnings(model)), missing=tuple(_missing(model, extractor)))


def require_usable(images: ImageSummary) -> None:
    """Raise `DataError` for one class alone, or a class too small for a training, a validation and a test image."""
    if len(images.classes) < 2:
        named = f" ({next(iter(images.classes))})" if images.classes else ""
        raise DataError(f"{images.source}: has {len(images.classes)} class{named}; a classifier needs two, a folder or label for each")
    small = {name: count for name, count in images.classes.items() if count < 3}
    if small and not images.splits:
        name, count = min(small.items(), key=lambda item: (item[1], item[0]))
        more = f" and {len(small) - 1} more classes" if len(small) > 1 else ""
        raise DataError(
            f"{images.source}: class {name!r} has {count} images{more}; each class needs 3: one to train on, one for validation and one "
            "for the test"
        )


def smallest_visible_gain(num_test: int) -> float:
    """The gain in accuracy, in [0, 1], that `num_test` images show with probability 80% (McNemar's test, 10% of them in dispute)."""
    return _NORMAL_QUANTILES * math.sqrt(_DISAGREEMENT / max(1, num_test))


def images_to_show(gain: float) -> int:
    """The number of test images that show `gain` with probability 80%."""
    return math.ceil((_NORMAL_QUANTILES / gain) ** 2 * _DISAGREEMENT)


class _Model:
    """What several sections are derived from."""

    def __init__(self, images: ImageSummary, machine: MachineSummary, base: BaseSummary, goal: Goal) -> None:
        self.images, self.machine, self.base, self.goal = images, machine, base, goal
        self.effort = _EFFORT[goal]
        stated = images.splits
        shares = {"test": 0.25, "val": 0.15}
        self.sizes = {split: stated.get(split, 0) or round(share * images.total) for split, share in shares.items()}
        self.sizes["train"] = stated.get("train", 0) or images.total - sum(self.sizes.values())
        self.per_class = max(1, round(images.median_class * self.sizes["train"] / max(1, images.total)))
        self.has_gpu = bool(machine.gpu)
        self.side = self._classifier_side()
        self.few = self.per_class <= 20
        self.large = self.sizes["train"] >= 100_000

    def _classifier_side(self) -> int:
        most = 224 if self.has_gpu else 64
        fitting = [size for size in _SIZES if size <= min(most, self.images.side[1])]
        return fitting[-1] if fitting else max(8, self.images.side[1])

    @property
    def is_latent(self) -> bool:
        return self.base.kind == "latent"

    @property
    def memory(self) -> float:
        """Memory for networks in GiB: the GPU's, or a part of the machine's."""
        return self.machine.gpu_memory if self.has_gpu else self.machine.memory / 2


def _snapshot(images: ImageSummary) -> Iterator[Setting]:
    yield Setting(field="snapshot.source", value=images.source, why=f"your images: {images.total:,} in {len(images.classes):,} classes")
    for use, column in images.columns.items():
        yield Setting(field=f"snapshot.{use}_column", value=column, why=f"the column of the table that holds the {use} of each image")
    if not images.splits:
        why = "the source has no splits, so a hash of each image decides"
        yield Setting(field="snapshot.val_fraction", value=0.15, why=f"{why}: {round(0.15 * images.total):,} images")
        yield Setting(field="snapshot.test_fraction", value=0.25, why=f"{why}: {round(0.25 * images.total):,} images, looked at once")


def _reference(model: _Model) -> Iterator[Setting]:
    folds = min(4, max(2, model.per_class))
    yield Setting(field="reference.folds", value=folds, why=f"the median class has {model.per_class:,} training images")
    steps = _steps(model.sizes["train"], epochs=15 * model.effort, batch=64, low=100, high=5000)
    yield Setting(field="reference.num_train_steps", value=steps, why=f"about {15 * model.effort:g} passes over the training images")


def _finetune(model: _Model) -> Iterator[Setting]:
    base, machine, train = model.base, model.machine, model.sizes["train"]
    why = f"{base.kind} model of {base.side} px, {base.parameters:,.0f} million parameters"
    yield Setting(field="finetune.base", value=base.name, why=why)
    adapt = base.parameters > 100
    why = "a network of this size keeps what it knows, and fits into memory" if adapt else "a network this small is trained as a whole"
    yield Setting(field="finetune.method", value="lora" if adapt else "full", why=why)
    batch = _train_batch(model)
    yield Setting(field="finetune.batch_size", value=batch, why=f"for {model.memory:.0f} GiB of memory on {machine.gpu or 'the CPU'}")
    epochs = (60 if model.few else 20) * model.effort
    steps = _steps(train, epochs=epochs, batch=batch, low=round(300 * model.effort), high=round(20_000 * model.effort))
    why = f"about {steps * batch / max(1, train):.0f} passes over {train:,} training images"
    yield Setting(field="finetune.num_train_steps", value=steps, why=why)
    why = "usual for adapters" if adapt else "usual for a small network"
    yield Setting(field="finetune.learning_rate", value=1e-4 if adapt else 5e-4, why=why)
    if model.has_gpu:
        yield Setting(field="finetune.mixed_precision", value="bf16" if machine.bf16 else "fp16", why=f"what {machine.gpu} computes fast")
    if adapt and model.memory < 40:
        yield Setting(field="finetune.gradient_checkpointing", value=True, why=f"less memory, as there are {model.memory:.0f} GiB")
    if model.images.imbalance > 3:
        why = f"the largest class has {model.images.imbalance:.0f} times the images of the smallest"
        yield Setting(field="finetune.class_balanced", value=True, why=why)
    mirrored = model.images.photographs and not any(_NOT_MIRRORED.search(name) for name in model.images.classes)
    why = "photographs stay what they are when mirrored" if mirrored else "characters and sides mean something else when mirrored"
    yield Setting(field="finetune.horizontal_flip", value=mirrored, why=why)
    if model.few and not adapt:
        why = "few images: the weights go part of the way back to the base, which keeps its variety"
        yield Setting(field="finetune.weight_interpolation", value=0.3, why=why)
    if model.images.photographs:
        yield Setting(field="finetune.prompt_template", value="a photo of {class_name}", why="the words that such models were trained with")


def _train_batch(model: _Model) -> int:
    base = model.base
    if base.parameters <= 100:
        return 32 if model.sizes["train"] < 1000 else 64
    # GiB per image of an adapter's step with checkpointed activations, roughly: 1 at 512 px and 860 million parameters.
    per_image = (base.side / 512) ** 2 * (base.parameters / 860) ** 0.5
    weights = base.parameters * 1e6 * 2 * 1.6 / 2**30
    fitting = (model.memory * 0.8 - weights) / per_image
    return int(min(32, max(1, 2 ** math.floor(math.log2(max(1.0, fitting))))))


def _tune(model: _Model) -> Iterator[Setting]:
    num_classes = len(model.images.classes)
    scales: tuple[float, ...] = (1.5, 3.0, 5.0, 7.5) if model.is_latent else (1.0, 1.5, 2.5)
    if model.goal == "quick":
        scales = scales[1:3]
    yield Setting(field="tune.guidance_scales", value=list(scales), why="the range in which models of this kind are at their best")
    steps = 20 if model.is_latent else 12
    why = f"enough for dpmsolver++ on {'latents' if model.is_latent else 'pixels'}"
    yield Setting(field="tune.num_inference_steps", value=[steps], why=why)
    yield Setting(field="tune.scheduler", value="dpmsolver++", why="needs the fewest steps")
    budget = round((400 if model.is_latent else 1500) * model.effort)
    each = int(min(50, max(2, budget // num_classes)))
    yield Setting(field="tune.images_per_class", value=each, why=f"{each * num_classes:,} images at each point of the grid")
    cas = int(min(100, max(2, 2 * each)))
    yield Setting(field="tune.cas_images_per_class", value=cas, why="twice as many for the classifiers that decide between the best points")
    yield Setting(field="tune.batch_size", value=_sample_batch(model), why="as in sampling")


def _sample(model: _Model) -> Iterator[Setting]:
    multiple = 1.0 if model.goal == "quick" else 2.0 if model.goal == "standard" else 4.0
    wanted = max(multiple * model.per_class, 20 if model.goal == "quick" else 50)
    batch = _sample_batch(model)
    count = int(math.ceil(wanted / 10) * 10)
    why = f"{count / model.per_class:.0f} times the {model.per_class:,} real training images of the median class"
    yield Setting(field="sample.images_per_class", value=count, why=why)
    yield Setting(field="sample.guidance_scale", value=None, why="the one that tune finds")
    yield Setting(field="sample.batch_size", value=batch, why=f"images at once in {model.memory:.0f} GiB")
    shard = batch * max(1, round(500 / batch))
    yield Setting(field="sample.shard_size", value=shard, why="a worker's unit of work, a whole number of batches")
    if model.machine.bf16 and model.is_latent:
        yield Setting(field="sample.precision", value="bf16", why=f"what {model.machine.gpu} computes fast")


def _sample_batch(model: _Model) -> int:
    if model.base.parameters <= 100:
        return 50
    per_image = 0.6 * (model.base.side / 512) ** 2
    weights = model.base.parameters * 1e6 * 2 * 1.6 / 2**30
    fitting = (model.memory * 0.8 - weights) / per_image
    return int(min(64, max(1, 2 ** math.floor(math.log2(max(1.0, fitting))))))


def _validate(model: _Model, extractor: ExtractorChoice) -> Iterator[Setting]:
    why = "knows photographs" if model.images.photographs else "knows small characters, and needs no weights"
    yield Setting(field="validate.extractor", value=extractor.name, why=why if ":" not in extractor.name else "your own")
    why = "its weights on this machine" if extractor.weights is not None else "they come with it, or lie where they are usually kept"
    yield Setting(field="validate.extractor_weights", value=extractor.weights, why=why)
    yield Setting(field="validate.image_size", value=None, why="the size that the extractor takes")
    yield Setting(field="validate.on_fail", value="reject", why="a set that is not sound is not used; replace_rejected mends single images")


def _classify(model: _Model) -> Iterator[Setting]:
    images, train = model.images, model.sizes["train"]
    name, why = _network(model)
    yield Setting(field="classify.model", value=name, why=why)
    short = f"images are {images.side[1]} px" + ("" if model.has_gpu or images.side[1] <= 64 else ", and there is no GPU for larger ones")
    yield Setting(field="classify.image_size", value=model.side, why=short)
    if model.large:
        yield Setting(field="classify.recipe", value="a3", why=f"{train:,} training images are enough for the recipe of 100 epochs")
    else:
        why = "the strongest rival of synthetic images is augmentation, so all arms have it"
        yield Setting(field="classify.augment", value="strong", why=why)
    mirrored = images.photographs and not any(_NOT_MIRRORED.search(label) for label in images.classes)
    yield Setting(field="classify.horizontal_flip", value=mirrored, why="as in fine-tuning")
    batch = 256 if model.large else 64
    steps = _steps(train, epochs=(200 if model.few else 40) * model.effort, batch=batch, low=round(400 * model.effort), high=200_000)
    why = f"about {steps * batch / max(1, train):.0f} passes over {train:,} images"
    yield Setting(field="classify.batch_size", value=batch, why="usual at this size")
    yield Setting(field="classify.num_train_steps", value=steps, why=why)
    yield Setting(field="classify.mixed_num_train_steps", value=steps, why="as many: arms differ in their images alone")
    if model.has_gpu and model.machine.bf16:
        yield Setting(field="classify.mixed_precision", value="bf16", why=f"what {model.machine.gpu} computes fast")
    seeds = list(range(10 if model.goal == "thorough" else 6))
    yield Setting(field="classify.seeds", value=seeds, why="six is the least with which a gain can be shown")
    controls = seeds if model.goal == "thorough" else seeds[:3] if model.goal == "standard" else seeds[:2]
    yield Setting(field="classify.control_seeds", value=controls, why="arms that explain the result, without a part in the decision")
    arms = ["real", "zero_shot", "real+zero_shot", "synthetic", "real+synthetic"]
    if model.goal == "quick":
        arms = ["real", "synthetic", "real+synthetic"]
    if model.goal == "thorough":
        arms = [*arms[:1], "real_light", *arms[1:]]
        why = "shows what strong augmentation brings by itself"
        yield Setting(field="classify.trainings", value={"light": {"augment": "standard"}}, why=why)
    yield Setting(field="classify.arms", value=arms, why=f"what a {model.goal} answer needs")


def _network(model: _Model) -> tuple[str, str]:
    if model.side <= 40:
        return "resnetv2_18", "a small network for small images"
    if not model.has_gpu:
        return "resnetv2_18", "a network so small that a CPU trains it in minutes"
    if model.side < 128:
        return "resnet18", "a network for images of this size"
    return (
        ("resnet50", "the usual network at this size")
        if model.sizes["train"] >= 5000
        else ("resnet34", "fewer parameters for fewer images")
    )


def _promote() -> Iterator[Setting]:
    yield Setting(field="evaluate.confidence", value=0.95, why="the usual level of intervals")
    yield Setting(field="promote.arm", value="real+synthetic", why="the arm that may become champion, declared beforehand")
    yield Setting(field="promote.min_seeds", value=6, why="fewer cannot reach alpha")
    yield Setting(field="promote.alpha", value=0.05, why="the usual level: a useless set is promoted once in twenty times at most")


def _warnings(model: _Model) -> Iterator[str]:
    images, sizes = model.images, model.sizes
    visible = smallest_visible_gain(sizes["test"])
    if visible > INTERESTING_GAIN:
        yield (
            f"{sizes['test']:,} test images show a gain of {100 * visible:.1f} points or more; for {100 * INTERESTING_GAIN:.0f} points "
            f"{images_to_show(INTERESTING_GAIN):,} are needed"
        )
    if model.per_class > 100:
        yield f"{model.per_class:,} training images per class are many: synthetic images help most where there are up to 20"
    smallest, count = min(images.classes.items(), key=lambda item: (item[1], item[0]))
    if count < 10:
        yield f"class {smallest!r} has {count} images: its own figures will be uncertain"
    if images.num_unreadable:
        yield f"{images.num_unreadable:,} files are no readable images and are left out"
    if images.num_near_duplicates:
        yield f"{images.num_near_duplicates:,} images nearly repeat another one; across splits they would leak"
    if model.is_latent and not model.has_gpu:
        yield f"there is no GPU: {model.base.name} takes minutes per image on a CPU; it needs a GPU with 8 GiB or more"
    need = sizes["train"] * 2 * 0.0002 + model.base.parameters * 0.012
    if model.machine.disk < need + 2:
        yield f"{model.machine.disk:.0f} GiB of free disk are little: about {need + 2:.0f} are needed"


def _missing(model: _Model, extractor: ExtractorChoice) -> Iterator[str]:
    base = model.base
    if misfit := unfit_base(base, model.images):
        yield f"another base model: {misfit}. Set finetune.base to a text-to-image model, such as {suggested_base(model.machine)}"
    elif base.state == "to download":
        yield f"the weights of {base.name}: gda downloads them when they are first used, or run `hf download {base.name}`"
    if extractor.missing:
        yield f"the weights of {extractor.name}: {extractor.missing}"


def unfit_base(base: BaseSummary, images: ImageSummary) -> str:
    """Why the base cannot generate such images; empty if it can."""
    if base.kind == "glyphs" and images.photographs:
        looks = Looks(side=images.side[1], coloured=images.coloured)
        return f"{base.name} knows characters of 28 px, and these images are {looks.text}: they would come out as noise"
    return ""


def suggested_base(machine: MachineSummary) -> str:
    """The hub id of a base model that suits the machine."""
    return "stabilityai/stable-diffusion-xl-base-1.0" if machine.gpu_memory >= 16 else "stable-diffusion-v1-5/stable-diffusion-v1-5"


def _steps(count: int, *, epochs: float, batch: int, low: int, high: int) -> int:
    """Steps for so many passes over `count` images, within limits, to two digits."""
    return two_digits(min(high, max(low, epochs * count / batch)))


def two_digits(value: float) -> int:
    """A number rounded to two significant digits."""
    size = 10 ** max(0, math.floor(math.log10(max(1.0, value))) - 1)
    return int(round(value / size) * size)


def setting(decisions: Sequence[Setting], name: str) -> Any:
    """The value of one field. Raises `KeyError`."""
    return {decision.field: decision.value for decision in decisions}[name]
