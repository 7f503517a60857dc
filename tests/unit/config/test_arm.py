"""Names of arms: which images, and how a classifier is trained on them."""

import copy
import json
import pickle
import re

import pytest
from pydantic import TypeAdapter, ValidationError

from gda.config.arm import ARMS, DATA, TRAININGS, Arm, in_order
from gda.config.load import Config, parse_config
from gda.config.sections import ClassifyConfig
from gda.errors import ConfigError
from gda.training.recipes.train_recipe import TrainRecipe


@pytest.mark.parametrize(
    ("name", "data", "training", "long"),
    [
        ("real", "real", "", False),
        ("real_long", "real", "long", True),
        ("real_strong", "real", "strong", True),
        ("zero_shot", "zero_shot", "", False),
        ("zero_shot_long", "zero_shot", "long", True),
        ("synthetic_strong", "synthetic", "strong", True),
        ("real+synthetic", "real+synthetic", "", True),
        ("real+synthetic_strong", "real+synthetic", "strong", True),
        ("real+zero_shot_strong", "real+zero_shot", "strong", True),
        ("last_layer", "last_layer", "", True),
        ("real_vit", "real", "vit", True),
        ("last_layer_vit", "last_layer", "vit", True),
        ("real+zero_shot_a2", "real+zero_shot", "a2", True),
    ],
)
def test_a_name_is_data_and_training(name: str, data: str, training: str, long: bool) -> None:
    """Protects equal lengths: arms that mix images and arms that are long or strong train for the same number of steps."""
    arm = Arm(name)
    assert (arm.data.name, arm.training, arm.long) == (data, training, long)
    assert (arm in ARMS) == (training in ("", *TRAININGS))


@pytest.mark.parametrize(
    "name",
    [
        "rael",
        "",
        "real_",
        "real_Vit",
        "real_2",
        "real_a-b",
        "real+synthetic_long",
        "real_strong_long",
        "_strong",
        "Real",
        "real-0",
        "real_vit\n",
    ],
)
def test_any_other_name_is_refused(name: str) -> None:
    """A typing error must not name an arm, and one arm must not have two names."""
    with pytest.raises(ValueError, match=re.escape(f"no such arm {name!r}; accepted: real, retrieved, zero_shot")):
        Arm(name)


def test_the_names_of_earlier_versions_are_still_names() -> None:
    """Protects recorded results and configurations."""
    earlier = ["real", "real_long", "real_strong", "retrieved", "zero_shot", "img2img", "synthetic", "real+synthetic", "targeted"]
    earlier.append("last_layer")
    assert [str(arm) for arm in in_order([Arm(name) for name in reversed(earlier)])] == earlier


def test_every_pair_is_an_arm_once() -> None:
    """Data that mix images have no long training of their own: their standard training is as long already."""
    mixing = sum(data.mixes for data in DATA.values())
    assert len(set(ARMS)) == len(ARMS) == len(DATA) * (1 + len(TRAININGS)) - mixing
    assert in_order(ARMS) == list(ARMS)
    mixed = [Arm("real_vit"), Arm.MIXED, Arm("real_a2"), Arm.REAL_STRONG]
    assert in_order(mixed) == ["real_strong", "real_a2", "real_vit", "real+synthetic"]


def test_equal_names_are_one_object_that_is_text() -> None:
    """Protects keys of dictionaries, JSON, and arms that are sent to other processes."""
    arm = Arm("real+synthetic_strong")
    assert arm is Arm(str(arm)) is pickle.loads(pickle.dumps(arm)) is copy.deepcopy(arm) is Arm.MIXED_STRONG
    assert json.dumps({arm: arm}) == '{"real+synthetic_strong": "real+synthetic_strong"}'
    assert {arm: 1}["real+synthetic_strong"] == 1
    both = TypeAdapter(dict[Arm, tuple[Arm, ...]])
    assert both.validate_json('{"real": ["zero_shot"]}') == {Arm.REAL: (Arm.ZERO_SHOT,)}
    assert both.dump_json({arm: (arm,)}) == b'{"real+synthetic_strong":["real+synthetic_strong"]}'
    with pytest.raises(ValidationError, match="no such arm"):
        both.validate_python({"rael": ()})


def test_data_and_training_are_exchanged_separately() -> None:
    """The rival of an arm has the same training on real images; a combination that does not exist is refused."""
    assert Arm.MIXED_STRONG.with_data("real") is Arm.REAL_STRONG
    assert Arm.REAL.with_training("strong") is Arm.REAL_STRONG
    with pytest.raises(ValueError, match="no such arm 'real\\+synthetic_long'"):
        Arm.REAL_LONG.with_data("real+synthetic")


def test_a_configuration_names_them_and_says_what_is_accepted() -> None:
    """Any pair may be compared and declared; a wrong one is refused in one line with its field."""
    config = parse_config({"classify": {"arms": ["real", "real+synthetic_strong"]}, "promote": {"arm": "real+synthetic_strong"}}, where="t")
    assert config.classify.arms == (Arm.REAL, Arm.MIXED_STRONG)
    assert config.classify.seeds_of(Arm.MIXED_STRONG) == Config().classify.seeds
    assert config.classify.seeds_of(Arm("real+zero_shot_strong")) == Config().classify.control_seeds
    with pytest.raises(ConfigError, match=r"^t: classify\.arms\.1: no such arm 'rael'; accepted: real, .*each also with _strong"):
        parse_config({"classify": {"arms": ["real", "rael"]}}, where="t")
    with pytest.raises(ConfigError, match=r"^t: promote\.rivals\.0: no such arm"):
        parse_config({"promote": {"rivals": ["strong"]}}, where="t")
    with pytest.raises(ConfigError, match=r"promote: rivals names real\+synthetic; accepted: real, real_long"):
        parse_config({"promote": {"rivals": ["real+synthetic"], "arm": "real+synthetic_strong"}}, where="t")


VIT = {"model": "vit_tiny_patch16_224", "learning_rate": 0.001, "augment": "strong"}


def with_trainings(*arms: str, **trainings: dict) -> Config:
    return parse_config({"classify": {"recipe": "a3", "arms": ["real", "real+synthetic", *arms], "trainings": trainings}}, where="t")


def test_a_training_of_your_own_changes_what_it_names() -> None:
    """Protects a comparison of architectures: other fields stay, and arguments of one model are not passed to another."""
    config = with_trainings("real_vit", "real+synthetic_vit", vit=VIT).classify
    own = config.trained_as(Arm("real_vit"))
    assert (own.model, own.model_args_json, own.learning_rate) == ("vit_tiny_patch16_224", "{}", 0.001)
    assert own.decided(exclude=VIT.keys() | {"model_args_json"}) == config.decided(exclude=VIT.keys() | {"model_args_json"})
    assert config.trained_as(Arm.REAL_STRONG) is config
    assert [config.augment_of(Arm(name)) for name in ("real", "real_long", "real_strong", "real_vit")] == [
        "standard",
        "standard",
        "strong",
        "strong",
    ]
    assert config.seeds_of(Arm("real_vit")) == config.seeds_of(Arm("real+synthetic_vit")) == config.seeds


def test_strong_augmentation_of_every_arm() -> None:
    """Protects fairness: strong augmentation applies to every arm and to the classifiers that check labels, except for a training that
    sets another one."""
    given = {
        "augment": "strong",
        "arms": ["real", "real_light", "real_strong", "synthetic"],
        "trainings": {"light": {"augment": "standard"}},
    }
    config = parse_config({"classify": given, "promote": {"arm": "synthetic"}}, where="test").classify
    assert {arm: config.augment_of(arm) for arm in config.arms} == dict.fromkeys(config.arms, "strong") | {"real_light": "standard"}
    assert TrainRecipe.from_config(config, num_train_steps=1).augment == "strong"
    assert config.decided()["augment"] == "strong"
    assert ClassifyConfig().decided()["augment"] == "standard"


def test_a_training_that_follows_a_recipe_has_nothing_of_the_other() -> None:
    """Protects recipes from each other's settings; all arms share images, batches and lengths."""
    config = with_trainings("real_deit", deit={"recipe": "deit-s"}).classify
    own = config.trained_as(Arm("real_deit"))
    alone = parse_config({"classify": {"recipe": "deit-s", **{name: getattr(config, name) for name in SHARED}}}, where="t").classify
    assert own.decided() == alone.decided()
    assert (own.num_train_steps, own.batch_size) == (config.num_train_steps, config.batch_size)
    assert own.decided() != config.decided()


SHARED = ("image_size", "test_image_size", "num_train_steps", "mixed_num_train_steps", "batch_size")


@pytest.mark.parametrize(
    ("trainings", "message"),
    [
        ({"vit": {"modell": 1}}, "trainings.vit.modell: Extra inputs are not permitted"),
        ({"vit": {"model": 3}}, "trainings.vit.model: Input should be a valid string"),
        ({"vit": {"recipe": "none"}}, "trainings.vit.recipe: no such recipe"),
        ({"vit": {"tune": "linear"}}, "trainings.vit: tune: linear trains a head on frozen weights"),
        ({"vit": {"seeds": [1]}}, "trainings.vit.seeds: is the same for every arm"),
        ({"vit": {"trainings": {}}}, "trainings.vit.trainings: is the same for every arm"),
        ({"vit": {"augment": "weak"}}, "trainings.vit.augment: Input should be 'standard' or 'strong'"),
        ({"vit": {}, "long": {}}, "trainings.long: is the name of a built-in training"),
        ({"vit": {}, "ViT": {}}, "string should match pattern"),
        ({"deit": {}}, "arms: real_vit: no such training 'vit'; accepted: long, strong, deit"),
    ],
)
def test_an_invalid_training_is_refused_in_one_line(trainings: dict, message: str) -> None:
    """Protects from a training that would fail hours later, or that would make arms incomparable."""
    with pytest.raises(ConfigError) as caught:
        with_trainings("real_vit", **trainings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
