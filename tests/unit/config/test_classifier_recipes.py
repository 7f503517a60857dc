"""Named training recipes: what they set, what overrides them, and that reading them needs no torch."""

import subprocess
import sys

import pytest

from gda.config.classifier_recipes import RECIPES, recipe_table, scaled_rate
from gda.config.load import dump_config, load_config, parse_config
from gda.config.sections import ClassifyConfig
from gda.errors import ConfigError


def test_the_demo_recipe_is_the_defaults() -> None:
    """If a default changed without the recipe `demo`, the recipe would no longer be the demo's training."""
    assert ClassifyConfig(recipe="demo") == ClassifyConfig().model_copy(update={"recipe": "demo"})


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_valid_section(name: str) -> None:
    """A figure out of a field's range would go unnoticed until a user selects that recipe."""
    config, recipe = ClassifyConfig(recipe=name), RECIPES[name]
    assert (config.model, config.batch_size, config.learning_rate) == (recipe.model, recipe.batch_size, recipe.learning_rate)
    assert (config.optimizer, config.mixup, config.rand_augment) == (recipe.optimizer, recipe.mixup, recipe.rand_augment)
    assert 0 < config.warmup_steps < config.num_train_steps
    assert recipe.source


def test_given_settings_win_over_the_recipe() -> None:
    """A recipe must not silently replace what a user writes, also where it equals the default."""
    config = ClassifyConfig(recipe="a2", drop_path=0.2, label_smoothing=0.1, num_train_steps=600, horizontal_flip=True)
    assert (config.drop_path, config.label_smoothing) == (0.2, 0.1)
    assert (config.model, config.optimizer, config.loss, config.bce_threshold) == ("resnet50", "lamb", "bce", 0.2)
    assert (config.num_train_steps, config.warmup_steps, config.horizontal_flip) == (600, 10, True)
    assert load_config(None, ("classify.recipe=a3", "classify.optimizer=adamw")).classify.optimizer == "adamw"
    assert ClassifyConfig(recipe="a3", image_size=28, batch_size=64).image_size == 28


def test_a3_is_tested_larger_than_it_is_trained() -> None:
    """160 and 224 pixels are the recipe's; with another training size its test size would be meaningless."""
    assert (ClassifyConfig(recipe="a3").image_size, ClassifyConfig(recipe="a3").tested_at) == (160, 224)
    assert ClassifyConfig(recipe="a3", image_size=64).tested_at == 64
    assert ClassifyConfig(recipe="a3", image_size=64, test_image_size=80).tested_at == 80
    assert ClassifyConfig(recipe="a2").test_image_size is None


@pytest.mark.parametrize(("name", "batch_size", "rate"), [("resnet50", 256, 0.1), ("a2", 512, 2.5e-3), ("vit-s-16", 256, 1e-3)])
def test_the_rate_follows_the_batch_by_the_recipes_rule(name: str, batch_size: int, rate: float) -> None:
    """Linear, by the square root, or unscaled: a rate for 4096 images diverges at 256."""
    assert ClassifyConfig(recipe=name, batch_size=batch_size).learning_rate == pytest.approx(rate, rel=1e-12)
    assert scaled_rate(RECIPES[name], RECIPES[name].batch_size) == RECIPES[name].learning_rate


def test_a_filled_section_survives_being_written_and_read() -> None:
    """`gda config show` prints settings that read back as the same training; arrays in the file are still accepted."""
    config = load_config(None, ("classify.recipe=a3", "classify.batch_size=128", "classify.seeds=[4,5]"))
    assert config.classify.seeds == (4, 5)
    assert parse_config(dump_config(config), where="test") == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("recipe=a4",), "classify.recipe: .*gda recipes lists them: demo, .*a3"),
        (("tune=linear",), "give pretrained"),
        (("mixup=0.2", "batch_size=33"), "even batch_size"),
        (("bce_threshold=0.2",), "requires loss: bce"),
        (("rand_augment=auto",), "classify.rand_augment"),
        (("optimizer=adam",), "classify.optimizer: .*lamb"),
        (("recipe=a1", "batch_size=many"), "classify.batch_size: input should be a valid integer"),
    ],
)
def test_settings_that_do_not_agree_are_refused(settings: tuple[str, ...], message: str) -> None:
    """Each contradiction is one line that names the field, before anything is trained."""
    with pytest.raises(ConfigError, match=message):
        load_config(None, tuple(f"classify.{setting}" for setting in settings))


def test_a_fingerprint_has_how_a_classifier_is_trained_and_no_more() -> None:
    """A recipe's name, a path or what is compared would make equal trainings two; any setting makes another training."""
    plain = ClassifyConfig().decided()
    assert ClassifyConfig(recipe="demo", pretrained="w.safetensors").decided() == plain
    assert not {"recipe", "pretrained", "seeds", "arms", "trainings"} & plain.keys()
    changed = ClassifyConfig(pretrained="w.safetensors", tune="linear", ema_decay=0.9, seeds=(1,)).decided()
    assert changed == plain | {"tune": "linear", "ema_decay": 0.9}
    assert ClassifyConfig().decided(exclude={"ratio"}).keys() == plain.keys() - {"ratio"}


def test_recipes_are_printed_without_torch() -> None:
    """Printing the table imports nothing slow; every recipe is listed with its source."""
    code = "import sys; from gda.cli.main import main; main(['recipes']); assert not {'torch', 'timm'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == recipe_table().strip()
    for name, recipe in RECIPES.items():
        assert f"\n{name}: {recipe.source}\n" in done.stdout
