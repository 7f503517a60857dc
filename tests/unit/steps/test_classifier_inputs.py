"""Which of the synthetic sets of a run a classifier's arm is given."""

import pytest

from gda.sections import Arm
from gda.steps.classifiers import classifier_inputs

SETS = {name: f"the {name}" for name in ("snapshot", "judged", "verdict", "zero_shot", "img2img", "pool", "reference")}


@pytest.mark.parametrize("arm", list(Arm))
def test_an_arm_is_given_its_own_set(arm: Arm) -> None:
    """Of the set that was not fine-tuned for, or drawn from images, only the arm of that name reads; all others get the judged one."""
    given = classifier_inputs(arm.value, **SETS)
    own = {Arm.ZERO_SHOT: "the zero_shot", Arm.IMG2IMG: "the img2img"}
    assert given["synthetic"] == own.get(arm, "the judged")
    assert given == {role: f"the {role}" for role in ("snapshot", "verdict", "pool", "reference")} | {"synthetic": given["synthetic"]}
