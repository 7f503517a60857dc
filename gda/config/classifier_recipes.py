"""Training recipes of classifiers under their usual names, each with its source; plain data, printed by `gda recipes`.

A recipe sets how weights are trained. The user sets what depends on the data: mirroring, the number of steps, seeds and arms.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal

Scaling = Literal["none", "linear", "sqrt"]


@dataclass(frozen=True, kw_only=True)
class ClassifierRecipe:
    """Settings of section `classify` under their own names, for batches of `batch_size` images and `epochs` passes over the data.

    `scaling` is the rule that adapts the learning rate to another batch size. `test_crop` is the share of the resized image that the source
    keeps for testing; it is printed but not applied, because gda uses the whole square.
    """

    model: str
    image_size: int
    test_image_size: int
    test_crop: float = 0.875
    optimizer: str
    momentum: float = 0.9
    learning_rate: float
    scaling: Scaling = "linear"
    batch_size: int
    weight_decay: float
    epochs: float
    warmup_epochs: float
    max_grad_norm: float = 0.0
    loss: str = "ce"
    bce_threshold: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    drop_path: float = 0.0
    dropout: float = 0.0
    crop_area: float = 0.08
    rand_augment: str = ""
    random_erasing: float = 0.0
    ema_decay: float = 0.0
    source: str


# Fields that a recipe sets unchanged; learning rate and warm-up also depend on batch size and length.
_COPIED = tuple(
    field.name
    for field in fields(ClassifierRecipe)
    if field.name not in ("test_image_size", "test_crop", "scaling", "learning_rate", "epochs", "warmup_epochs", "source")
)

_DEMO = ClassifierRecipe(
    model="resnetv2_18",
    image_size=28,
    test_image_size=28,
    test_crop=1.0,
    optimizer="adamw",
    learning_rate=2e-3,
    scaling="none",
    batch_size=64,
    weight_decay=0.05,
    epochs=96,
    warmup_epochs=6.4,
    label_smoothing=0.1,
    crop_area=0.0,
    source="the defaults of this project: 300 steps of 64 of the demo's 200 images, 20 of them warm-up",
)

_RESNET = ClassifierRecipe(
    model="resnet50",
    image_size=224,
    test_image_size=224,
    optimizer="momentum",
    learning_rate=1.6,
    batch_size=4096,
    weight_decay=1e-4,
    epochs=90,
    warmup_epochs=5,
    label_smoothing=0.1,
    source="TensorFlow Model Garden, imagenet_resnet50_tpu.yaml; rate and warm-up as Goyal et al. 2017, 2.1-2.2; its step decay is a "
    "cosine here. Which recipe Azizi et al. 2023 trained with could not be verified",
)
_RESNET_DEEP = replace(
    _RESNET,
    epochs=200,
    source="TensorFlow Model Garden, imagenet_resnet101_tpu.yaml and imagenet_resnet152_tpu.yaml, whose swish is ReLU in timm. Which "
    "recipe Azizi et al. 2023 trained with could not be verified",
)

_RESNET_RS = ClassifierRecipe(
    model="resnetrs50",
    image_size=160,
    test_image_size=160,
    optimizer="momentum",
    learning_rate=1.6,
    batch_size=4096,
    weight_decay=4e-5,
    epochs=350,
    warmup_epochs=5,
    label_smoothing=0.1,
    dropout=0.25,
    rand_augment="rand-m10-n2-p1.0",
    ema_decay=0.9999,
    source="Bello et al. 2021 (ResNet-RS) as in tensorflow/tpu, resnet_rs/configs; warm-up as in TensorFlow Model Garden, "
    "imagenet_resnetrs50_i160.yaml; timm's operations stand for TensorFlow's RandAugment(2, magnitude)",
)

_VIT = ClassifierRecipe(
    model="vit_small_patch16_224",
    image_size=224,
    test_image_size=224,
    optimizer="adamw",
    learning_rate=1e-3,
    scaling="none",
    batch_size=1024,
    weight_decay=0.1,
    epochs=300,
    warmup_epochs=8.07,
    max_grad_norm=1.0,
    mixup=0.2,
    crop_area=0.05,
    rand_augment="rand-m10-n2-p1.0",
    source="Beyer et al. 2022 (plain ViT), big_vision vit_s16_i1k.py: 10,000 steps of warm-up; its weight decay 1e-4 is not multiplied by "
    "the rate, so 0.1 here; its pooling and fixed 2-D positions differ from timm's. Which recipe Azizi et al. 2023 trained with could not "
    "be verified",
)

_DEIT = ClassifierRecipe(
    model="deit_small_patch16_224",
    image_size=224,
    test_image_size=224,
    optimizer="adamw",
    learning_rate=1e-3,
    batch_size=1024,
    weight_decay=0.05,
    epochs=300,
    warmup_epochs=5,
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
    drop_path=0.1,
    rand_augment="rand-m9-mstd0.5-inc1",
    random_erasing=0.25,
    source="Touvron et al. 2021 (DeiT), table 9, from copies of its arguments, not checked against the paper: 5e-4 x batch / 512; without "
    "its repeated augmentation",
)

_A2 = ClassifierRecipe(
    model="resnet50",
    image_size=224,
    test_image_size=224,
    test_crop=0.95,
    optimizer="lamb",
    learning_rate=5e-3,
    scaling="sqrt",
    batch_size=2048,
    weight_decay=0.02,
    epochs=300,
    warmup_epochs=5,
    loss="bce",
    bce_threshold=0.2,
    mixup=0.1,
    cutmix=1.0,
    drop_path=0.05,
    rand_augment="rand-m7-mstd0.5-inc1",
    source="Wightman et al. 2021 (ResNet strikes back), table 2, A2, figures and threshold from copies of timm's published arguments, not "
    "checked against the paper; the "
    "source names no scaling rule: sqrt is LAMB's (You et al. 2020); without its repeated augmentation",
)


def _of_a2(letter: str, **changes: Any) -> ClassifierRecipe:
    return replace(_A2, source=_A2.source.replace("A2", letter), **changes)


RECIPES: Mapping[str, ClassifierRecipe] = MappingProxyType(
    {
        "demo": _DEMO,
        "resnet50": _RESNET,
        "resnet101": replace(_RESNET_DEEP, model="resnet101"),
        "resnet152": replace(_RESNET_DEEP, model="resnet152"),
        "resnet-rs-50": _RESNET_RS,
        "resnet-rs-101": replace(_RESNET_RS, model="resnetrs101"),
        "resnet-rs-101-192": replace(
            _RESNET_RS, model="resnetrs101", image_size=192, test_image_size=192, rand_augment="rand-m15-mmax15-n2-p1.0"
        ),
        "resnet-rs-152": replace(
            _RESNET_RS, model="resnetrs152", image_size=224, test_image_size=224, rand_augment="rand-m15-mmax15-n2-p1.0"
        ),
        "vit-s-16": _VIT,
        "deit-s": _DEIT,
        "deit-b": replace(_DEIT, model="deit_base_patch16_224"),
        "deit-l": replace(
            _DEIT,
            model="vit_large_patch16_224",
            source="DeiT-B's settings (Touvron et al. 2021, table 9) on ViT-L/16, the architecture without distillation token; the DeiT "
            "paper has no L, and what Azizi et al. 2023 changed for it could not be verified",
        ),
        "deit-b-384": replace(
            _DEIT,
            model="deit_base_patch16_384",
            image_size=384,
            test_image_size=384,
            test_crop=1.0,
            learning_rate=5e-6,
            batch_size=512,
            weight_decay=1e-8,
            epochs=30,
            source="DeiT's README_deit.md: fine-tunes DeiT-B of 224 pixels, so give it as classify.pretrained; its constant rate is a "
            "cosine here",
        ),
        "a1": _of_a2("A1", weight_decay=0.01, epochs=600, mixup=0.2, label_smoothing=0.1),
        "a2": _A2,
        "a3": _of_a2("A3", image_size=160, learning_rate=8e-3, epochs=100, drop_path=0.0, rand_augment="rand-m6-mstd0.5-inc1"),
    }
)


def scaled_rate(recipe: ClassifierRecipe, batch_size: int) -> float:
    """The peak learning rate for batches of `batch_size` images, by the recipe's rule."""
    if recipe.scaling == "none":
        return recipe.learning_rate
    ratio = batch_size / recipe.batch_size
    return recipe.learning_rate * (ratio if recipe.scaling == "linear" else math.sqrt(ratio))


def fill_in(recipe: ClassifierRecipe, *, image_size: int | None, batch_size: int | None, num_train_steps: int) -> dict[str, Any]:
    """Every setting of section `classify` that the recipe names; an image or batch size of None is the recipe's.

    With another image size than the recipe's, images are tested at that size too. Warm-up is the recipe's share of `num_train_steps`.
    """
    batch_size = batch_size or recipe.batch_size
    return {name: getattr(recipe, name) for name in _COPIED} | {
        "batch_size": batch_size,
        "test_image_size": None if image_size or recipe.test_image_size == recipe.image_size else recipe.test_image_size,
        "learning_rate": scaled_rate(recipe, batch_size),
        "warmup_steps": round(num_train_steps * recipe.warmup_epochs / recipe.epochs),
    }


def recipe_table() -> str:
    """All recipes as text: a table of their figures, then one line per source."""
    columns = {
        "recipe": lambda name, _: name,
        "architecture": lambda _, r: r.model,
        "px (test)": lambda _, r: f"{r.image_size} ({r.test_image_size})",
        "crop": lambda _, r: f"{r.test_crop:g}",
        "optimizer": lambda _, r: r.optimizer,
        "rate at batch": lambda _, r: f"{r.learning_rate:g} at {r.batch_size}",
        "scaling": lambda _, r: r.scaling,
        "decay": lambda _, r: f"{r.weight_decay:g}",
        "epochs (warm-up)": lambda _, r: f"{r.epochs:g} ({r.warmup_epochs:g})",
        "loss": lambda _, r: f"{r.loss} > {r.bce_threshold:g}" if r.bce_threshold else r.loss,
        "smoothing": lambda _, r: f"{r.label_smoothing:g}",
        "mixup/cutmix": lambda _, r: f"{r.mixup:g}/{r.cutmix:g}",
        "path/dropout": lambda _, r: f"{r.drop_path:g}/{r.dropout:g}",
        "RandAugment": lambda _, r: r.rand_augment or "-",
        "erasing": lambda _, r: f"{r.random_erasing:g}",
        "EMA": lambda _, r: f"{r.ema_decay:g}" if r.ema_decay else "-",
    }
    rows = [list(columns), *([show(name, recipe) for show in columns.values()] for name, recipe in RECIPES.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    sources = [f"{name}: {recipe.source}" for name, recipe in RECIPES.items()]
    return "\n".join([*lines, "", *sources])
