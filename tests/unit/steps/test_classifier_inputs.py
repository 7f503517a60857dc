"""Which of the sets of a run a classifier's arm is given."""

import pytest

from gda.config.arm import ARMS, Arm
from gda.steps.classifiers import classifier_inputs

SETS = {name: f"the {name}" for name in ("snapshot", "accepted", "verdict", "zero_shot", "img2img", "pool", "reference")}


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_is_given_its_own_set(arm: Arm) -> None:
    """An arm gets the set that its data name, with the verdict on it where that is assessed, and nothing that it does not read."""
    given = classifier_inputs(str(arm), **SETS)
    expected = {
        "real": set(),
        "retrieved": {"pool"},
        "zero_shot": {"zero_shot"},
        "real+zero_shot": {"zero_shot"},
        "img2img": {"img2img"},
        "targeted": {"accepted", "verdict", "reference"},
    }.get(arm.data.name, {"accepted", "verdict"})
    assert set(given.values()) == {f"the {name}" for name in expected | {"snapshot"}}
