"""The decisions of gda init, on summaries of data sets of every kind: valid, feasible, and with a reason each."""

from dataclasses import replace

import pytest

from gda.config.load import parse_config
from gda.errors import DataError
from gda.flow import dvc_document
from gda.project.decide import (
    GOALS,
    INTERESTING_GAIN,
    ExtractorChoice,
    ProjectSettings,
    derive_settings,
    images_to_show,
    smallest_visible_gain,
    suggested_base,
    two_digits,
)
from gda.project.summaries import BaseSummary, ImageSummary, MachineSummary
from gda.project.write import params_text
from gda.runtime.reading import parse_yaml

LAPTOP = MachineSummary(cpus=4, memory=16, disk=100)
GPU16 = MachineSummary(cpus=8, memory=64, disk=500, gpu="NVIDIA T4", gpu_memory=15.8)
GPU80 = MachineSummary(cpus=32, memory=256, disk=2000, gpu="NVIDIA A100", gpu_memory=80, bf16=True)
GLYPHS = BaseSummary(name="demo://glyphs", kind="glyphs", side=28, parameters=1.2)
SD15 = BaseSummary(name="stable-diffusion-v1-5/stable-diffusion-v1-5", kind="latent", side=512, parameters=860)
SDXL = BaseSummary(name="stabilityai/stable-diffusion-xl-base-1.0", kind="latent", side=1024, parameters=2567)
INCEPTION, GLYPH = ExtractorChoice(name="inception-v3-compat"), ExtractorChoice(name="glyph")


def images(num_classes: int, per_class: int, side: int, *, coloured: bool = True, tail: int = 1, **more: object) -> ImageSummary:
    """A set in which the first class has `tail` times the images of the others."""
    classes = {f"class {number:04d}": per_class * (tail if number == 0 else 1) for number in range(num_classes)}
    return ImageSummary(source="/photos", classes=classes, side=(side, side, side), coloured=coloured, **more)  # type: ignore[arg-type]


CASES = {
    "icons": (images(2, 30, 16), LAPTOP, SD15, INCEPTION),
    "digits": (images(10, 100, 28, coloured=False), LAPTOP, GLYPHS, GLYPH),
    "one shot": (images(10, 3, 28, coloured=False), LAPTOP, GLYPHS, GLYPH),
    "cifar": (images(10, 5000, 32), GPU16, SD15, INCEPTION),
    "photos of the issue": (images(8, 45, 64), LAPTOP, SD15, INCEPTION),
    "few-shot photos": (images(20, 5, 300), GPU16, SD15, INCEPTION),
    "long tail": (images(50, 40, 400, tail=25), GPU16, SD15, INCEPTION),
    "pets": (images(37, 200, 500), GPU80, SDXL, INCEPTION),
    "satellite": (images(10, 2700, 64), GPU80, SDXL, INCEPTION),
    "large pictures": (images(5, 300, 1024), GPU80, SDXL, INCEPTION),
    "imagenet": (images(1000, 1300, 500, splits={"train": 1_250_000, "val": 50_000}), GPU80, SDXL, INCEPTION),
    "many small classes": (images(1000, 10, 256), GPU16, SD15, INCEPTION),
}


def made(name: str, goal: str = "standard") -> ProjectSettings:
    """The decisions of one case."""
    one, machine, base, extractor = CASES[name]
    return derive_settings(one, machine, base, extractor, goal=goal)  # type: ignore[arg-type]


def values(decisions: ProjectSettings) -> dict[str, object]:
    """Value by field."""
    return {decision.field: decision.value for decision in decisions.settings}


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("name", CASES)
def test_every_decision_is_valid_and_reasoned(name: str, goal: str) -> None:
    """The file is read back by the same schema as any params.yaml, and each line of it says why."""
    decisions = made(name, goal)
    text = params_text(decisions.settings)
    config = parse_config(parse_yaml(text, None) or {}, where=name)  # type: ignore[arg-type]
    assert text.count("# here: ") == len(decisions.settings)
    fields = {decision.field for decision in decisions.settings}
    sections = {name.partition(".")[0] for name in fields}
    watched = {str(name) for stage in dvc_document()["stages"].values() for name in stage.get("params", ())}
    assert not {name for name in watched if name not in fields | sections}, "dvc refuses parameters that the file lacks"
    assert all(decision.why and decision.why[0] != " " for decision in decisions.settings)
    assert len(config.classify.seeds) >= 6, "fewer cannot show a gain"
    assert config.sample.shard_size % config.sample.batch_size == 0
    assert config.classify.num_train_steps == config.classify.mixed_num_train_steps, "arms of equal length"
    assert config.promote.arm in config.classify.arms
    assert config.classify.image_size <= max(28, CASES[name][0].side[1])
    assert config.reference.folds <= max(2, CASES[name][0].median_class)


def test_more_effort_costs_more() -> None:
    """Quick, standard and thorough answers differ in what they spend, and in nothing that decides."""
    quick, standard, thorough = (values(made("pets", goal)) for goal in GOALS)
    for field in ("finetune.num_train_steps", "sample.images_per_class", "classify.num_train_steps"):
        assert quick[field] < standard[field] < thorough[field], field  # type: ignore[operator]
    assert len(quick["classify.arms"]) < len(standard["classify.arms"]) < len(thorough["classify.arms"])  # type: ignore[arg-type]
    assert quick["promote.alpha"] == standard["promote.alpha"] == thorough["promote.alpha"]


def test_large_bases_get_adapters_and_fit_into_memory() -> None:
    """A T4 cannot hold the gradients of a whole Stable Diffusion, nor a batch of an A100."""
    small, large = values(made("few-shot photos")), values(made("pets"))
    assert small["finetune.method"] == large["finetune.method"] == "lora"
    assert small["finetune.gradient_checkpointing"] is True
    assert "finetune.gradient_checkpointing" not in large
    assert (small["finetune.mixed_precision"], large["finetune.mixed_precision"]) == ("fp16", "bf16")
    assert small["finetune.batch_size"] <= 16  # type: ignore[operator]
    tiny = values(derive_settings(CASES["pets"][0], replace(GPU80, gpu_memory=16), SDXL, INCEPTION))
    assert tiny["finetune.batch_size"] < large["finetune.batch_size"]  # type: ignore[operator]
    assert tiny["sample.batch_size"] < large["sample.batch_size"]  # type: ignore[operator]
    assert values(made("digits"))["finetune.method"] == "full"


def test_characters_are_not_mirrored_and_photographs_are() -> None:
    """A mirrored b is a d; a mirrored cat is a cat; left and right are what they say."""
    assert values(made("pets"))["classify.horizontal_flip"] is values(made("pets"))["finetune.horizontal_flip"] is True
    assert values(made("digits"))["classify.horizontal_flip"] is False
    hands = replace(CASES["pets"][0], classes={"left hand": 100, "right hand": 100})
    assert values(derive_settings(hands, GPU80, SDXL, INCEPTION))["finetune.horizontal_flip"] is False


def test_a_long_tail_is_balanced_in_fine_tuning() -> None:
    """The generator would otherwise see the rare classes, which need it most, hardly ever."""
    assert values(made("long tail"))["finetune.class_balanced"] is True
    assert "finetune.class_balanced" not in values(made("pets"))


def test_recognised_columns_are_used() -> None:
    """Groups that are recognised and not used would leak a patient into the test."""
    grouped = replace(CASES["pets"][0], columns={"group": "patient_id", "label": "diagnosis"})
    found = values(derive_settings(grouped, GPU80, SDXL, INCEPTION))
    assert (found["snapshot.group_column"], found["snapshot.label_column"]) == ("patient_id", "diagnosis")


def test_splits_of_the_source_are_kept() -> None:
    """A stated test split must not be cut again by a hash."""
    assert not {"snapshot.val_fraction", "snapshot.test_fraction"} & values(made("imagenet")).keys()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"only": 50}, "has 1 class .*a classifier needs two"),
        ({}, "has 0 class"),
        ({"a": 40, "b": 2}, "class 'b' has 2 images; each class needs 3"),
        ({"a": 40, "b": 2, "c": 1}, "class 'c' has 1 images and 1 more classes"),
    ],
)
def test_sets_that_cannot_work_are_refused_with_what_is_needed(classes: dict[str, int], message: str) -> None:
    """Said at once, and not after an hour by the stage that fails."""
    with pytest.raises(DataError, match=message):
        derive_settings(replace(CASES["pets"][0], classes=classes), GPU80, SDXL, INCEPTION)


def test_what_a_small_test_set_can_show_is_said() -> None:
    """90 test images cannot show 2 points: the number that can is named, and the two formulas agree."""
    (said,) = [text for text in made("photos of the issue").warnings if "test images show" in text]
    assert said.startswith("90 test images show a gain of 9.3 points or more; for 2 points 1,960 are needed")
    assert smallest_visible_gain(images_to_show(INTERESTING_GAIN)) <= INTERESTING_GAIN < smallest_visible_gain(images_to_show(0.03))
    assert not any("test images show" in text for text in made("imagenet").warnings)


def test_warnings_name_what_a_person_should_know() -> None:
    """Unreadable files, repeated images, tiny classes, no GPU, little disk: each has its sentence, and a clean set has none."""
    poor = replace(CASES["few-shot photos"][0], num_unreadable=3, num_near_duplicates=4)
    text = "\n".join(derive_settings(poor, replace(LAPTOP, disk=1), SD15, INCEPTION).warnings)
    for words in ("3 files are no readable images", "4 images nearly repeat", "has 5 images", "there is no GPU", "1 GiB of free disk"):
        assert words in text
    clean = images(10, 100, 300, splits={"train": 1000, "val": 500, "test": 5000})
    assert derive_settings(clean, GPU80, SDXL, INCEPTION).warnings == ()


def test_what_is_missing_is_said_with_how_to_get_it() -> None:
    """The demo's base for photographs, weights that are not here."""
    wrong = derive_settings(CASES["pets"][0], GPU16, GLYPHS, ExtractorChoice(name="inception-v3-compat", missing="download it to there"))
    assert "knows characters of 28 px, and these images are 500 px in colour" in wrong.missing[0]
    assert "download it to there" in wrong.missing[1]
    away = derive_settings(CASES["pets"][0], GPU80, replace(SDXL, state="to download"), INCEPTION)
    assert "hf download stabilityai/stable-diffusion-xl-base-1.0" in away.missing[0]
    assert made("pets").missing == made("digits").missing == ()


@pytest.mark.parametrize(("memory", "name"), [(0, "v1-5"), (8, "v1-5"), (16, "xl-base"), (80, "xl-base")])
def test_the_suggested_base_fits_the_gpu(memory: float, name: str) -> None:
    """Nobody should be told to get a model that their GPU cannot hold."""
    assert name in suggested_base(replace(LAPTOP, gpu_memory=memory))


@pytest.mark.parametrize(("value", "rounded"), [(0.2, 0), (7, 7), (42, 42), (1234, 1200), (98765, 99000)])
def test_numbers_of_steps_are_round(value: float, rounded: int) -> None:
    """A step count of 1,243 would look as if it had been tuned."""
    assert two_digits(value) == rounded
