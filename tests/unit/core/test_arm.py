"""Names of arms: which images, and how they are trained on."""

import copy
import json
import pickle
import re

import pytest
from pydantic import TypeAdapter, ValidationError

from gda.arm import ARMS, DATA, TRAININGS, Arm, in_order
from gda.config import Config, parse_config
from gda.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "data", "training", "long", "augment"),
    [
        ("real", "real", "", False, "standard"),
        ("real_long", "real", "long", True, "standard"),
        ("real_strong", "real", "strong", True, "strong"),
        ("zero_shot", "zero_shot", "", False, "standard"),
        ("zero_shot_long", "zero_shot", "long", True, "standard"),
        ("synthetic_strong", "synthetic", "strong", True, "strong"),
        ("real+synthetic", "real+synthetic", "", True, "standard"),
        ("real+synthetic_strong", "real+synthetic", "strong", True, "strong"),
        ("real+zero_shot_strong", "real+zero_shot", "strong", True, "strong"),
        ("last_layer", "last_layer", "", True, "standard"),
    ],
)
def test_a_name_is_data_and_training(name: str, data: str, training: str, long: bool, augment: str) -> None:
    """Protects equal updates: whatever mixes, and whatever is long or strong, is trained for as long."""
    arm = Arm(name)
    assert (arm.data.name, arm.training, arm.long, arm.augment) == (data, training, long, augment)
    assert arm in ARMS


@pytest.mark.parametrize("name", ["rael", "", "real_", "real_weak", "real+synthetic_long", "real_strong_long", "_strong", "Real", "real-0"])
def test_any_other_name_is_refused(name: str) -> None:
    """Protects against a typing error that would name an arm, and against two names of one arm."""
    with pytest.raises(ValueError, match=re.escape(f"no such arm {name!r}; accepted: real, retrieved, zero_shot")):
        Arm(name)


def test_the_names_of_earlier_versions_are_still_names() -> None:
    """Protects recorded results and configurations."""
    earlier = ["real", "real_long", "real_strong", "retrieved", "zero_shot", "img2img", "synthetic", "real+synthetic", "targeted"]
    earlier.append("last_layer")
    assert [str(arm) for arm in in_order([Arm(name) for name in reversed(earlier)])] == earlier


def test_every_pair_is_an_arm_once() -> None:
    """Data that mix have no long training of their own: they are as long already."""
    mixing = sum(data.mixes for data in DATA.values())
    assert len(set(ARMS)) == len(ARMS) == len(DATA) * (1 + len(TRAININGS)) - mixing
    assert in_order(ARMS) == list(ARMS)


def test_equal_names_are_one_object_that_is_text() -> None:
    """Protects keys of dictionaries, JSON, and what is sent to other processes."""
    arm = Arm("real+synthetic_strong")
    assert arm is Arm(str(arm)) is pickle.loads(pickle.dumps(arm)) is copy.deepcopy(arm) is Arm.MIXED_STRONG
    assert json.dumps({arm: arm}) == '{"real+synthetic_strong": "real+synthetic_strong"}'
    assert {arm: 1}["real+synthetic_strong"] == 1
    both = TypeAdapter(dict[Arm, tuple[Arm, ...]])
    assert both.validate_json('{"real": ["zero_shot"]}') == {Arm.REAL: (Arm.ZERO_SHOT,)}
    assert both.dump_json({arm: (arm,)}) == b'{"real+synthetic_strong":["real+synthetic_strong"]}'
    with pytest.raises(ValidationError, match="no such arm"):
        both.validate_python({"rael": ()})


def test_data_and_training_are_exchanged_apart() -> None:
    """The rival of an arm is trained alike, on real images; what cannot be is said."""
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
