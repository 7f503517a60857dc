"""The promotion gate: open on a sound gain, shut on everything else, and shut above all when something is missing."""

from pathlib import Path
from typing import Any

import pytest

from gda.artifacts import Metrics, Verdict, read_document
from gda.registry.gate import GateResult, Rival, decide
from gda.sections import Arm, PromoteConfig

FIXTURES = Path(__file__).parents[2] / "contract/fixtures"
METRICS = read_document(FIXTURES / "metrics.passed.json", Metrics)
VERDICT = read_document(FIXTURES / "verdict.passed.json", Verdict)
NAN, INF = float("nan"), float("inf")


def judge(
    metrics: Any = METRICS, verdict: Any = VERDICT, *, licence: str = "apache-2.0", rival: Rival | None = None, **promote: Any
) -> GateResult:
    return decide(metrics, verdict, PromoteConfig(**promote), licence=licence, rival=rival)


def with_gain(**changes: Any) -> Metrics:
    """The passing metrics with fields of the declared arm's gain changed, unvalidated as a bug of ours would leave them."""
    gain = METRICS.gain[Arm.MIXED].model_copy(update=changes)
    return METRICS.model_copy(update={"gain": METRICS.gain | {Arm.MIXED: gain}})


def test_a_sound_gain_passes() -> None:
    """Protects against a gate that nothing can pass."""
    assert judge() == GateResult(promoted=True, reasons=(), rival="real")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seeds": 5, "differences": (0.01,) * 5}, "only 5 paired seeds"),
        ({"ci95": (-0.001, 0.03)}, "not clearly above zero"),
        ({"ci95": (0.0, 0.03)}, "not clearly above zero"),
        ({"mean": -0.02, "ci95": (-0.03, -0.01)}, "not clearly above zero"),
        ({"ci95": (0.02, 0.03)}, "not clearly above zero"),
        ({"p_value": 0.0625}, "p = 0.0625 over paired seeds"),
        ({"smallest_visible_harm": None}, "harm to single classes was not measured"),
        ({"smallest_visible_harm": NAN}, "harm to single classes was not measured"),
        ({"mean": NAN}, "not a valid measurement"),
        ({"ci95": (NAN, NAN)}, "not a valid measurement"),
        ({"ci95": (0.01, INF)}, "not a valid measurement"),
        ({"p_value": NAN}, "not a valid measurement"),
        ({"p_value": -0.1}, "not a valid measurement"),
        ({"differences": (0.01, 0.01, NAN, 0.01, 0.01, 0.01)}, "not a valid measurement"),
        ({"differences": ()}, "not a valid measurement"),
        ({"mean": None}, "could not be computed"),
        ({"ci95": None}, "could not be computed"),
        ({"p_value": None}, "could not be computed"),
        ({"seeds": None}, "not a valid measurement"),
    ],
)
def test_a_gain_that_is_not_proven_is_refused(change: dict[str, Any], reason: str) -> None:
    """Protects every number of the gain: too weak, absent or not finite, it keeps the gate shut."""
    result = judge(with_gain(**change))
    assert not result.promoted
    assert reason in " | ".join(result.reasons)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"candidate": None}, "there is no candidate"),
        ({"gain": {}}, "no gain of real+synthetic over real"),
        ({"arms": {}}, "was not evaluated"),
        ({"num_test": 0}, "no test images"),
        ({"test_digest": ""}, "no test images"),
        ({"synthetic_digest": None}, "another synthetic set"),
        ({"synthetic_digest": "7" * 64}, "another synthetic set"),
        ({"snapshot_digest": "7" * 64}, "another real snapshot"),
        ({"verdict_passed": None}, "without a passed verdict"),
        ({"verdict_passed": False}, "without a passed verdict"),
        ({"num_test": None}, "could not be computed"),
    ],
)
def test_incomplete_metrics_are_refused(change: dict[str, Any], reason: str) -> None:
    """Protects every other field that the decision rests on."""
    result = judge(METRICS.model_copy(update=change))
    assert not result.promoted
    assert reason in " | ".join(result.reasons)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"passed": False, "reasons": ("FID is 41",)}, "the synthetic set was refused: FID is 41"),
        ({"passed": None}, "the synthetic set was refused"),
        ({"reasons": ("something",)}, "the synthetic set was refused: something"),
        ({"metrics": {}}, "holds no measurements"),
        ({"synthetic_digest": ""}, "another synthetic set"),
        ({"real_digest": ""}, "another real snapshot"),
    ],
)
def test_a_verdict_that_does_not_clear_the_set_is_refused(change: dict[str, Any], reason: str) -> None:
    """Protects the verdict's part: refused, empty or about other data, it keeps the gate shut."""
    result = judge(verdict=VERDICT.model_copy(update=change))
    assert not result.promoted
    assert reason in " | ".join(result.reasons)


@pytest.mark.parametrize("broken", [None, {}, "metrics", Metrics.model_construct()])
def test_no_metrics_at_all_is_refused(broken: object) -> None:
    """Protects against an exception in the gate being anything but a refusal."""
    result = judge(broken)
    assert not result.promoted
    assert "could not be computed" in result.reasons[0]


def test_no_verdict_is_refused() -> None:
    """Protects against promoting a classifier whose synthetic images nobody judged."""
    assert judge(verdict=None).reasons == ("there is no verdict on the synthetic set",)


def test_a_harmed_class_is_named() -> None:
    """Protects single classes: a significant loss in one refuses a gain of the mean."""
    harm = {"class_name": "pear", "change": -0.08, "p_value": 0.01}
    metrics = Metrics.model_validate(
        METRICS.model_dump() | {"gain": {Arm.MIXED: METRICS.gain[Arm.MIXED].model_dump() | {"harmed_classes": [harm]}}}
    )
    assert judge(metrics).reasons == ("class pear is significantly worse: -8.00 points (adjusted p = 0.01)",)


@pytest.mark.parametrize("licence", ["unknown", "", "deepfloyd-if-license", "none"])
def test_an_unknown_licence_is_refused(licence: str) -> None:
    """Protects against promoting what may not be used: only listed licences of the base pass."""
    assert "licence" in judge(licence=licence).reasons[0]
    assert judge(licence=licence, allowed_licences=(licence.upper(),)).promoted


@pytest.mark.parametrize("arm", [Arm.ZERO_SHOT, Arm.REAL])
def test_control_arms_are_never_promoted(arm: Arm) -> None:
    """Protects the gate of the images: the zero-shot arm never passed it, however good it is."""
    assert f"{arm} is a control arm and is never promoted" in judge(arm=arm).reasons


def test_the_candidate_must_be_of_the_declared_arm() -> None:
    """Protects pre-declaration: a candidate of whichever arm came out best is refused."""
    assert "but synthetic was declared" in " | ".join(judge(arm=Arm.SYNTHETIC).reasons)


def test_a_rival_without_a_comparison_is_refused() -> None:
    """Protects the champion that cannot be compared with, even where the gain over real is large."""
    result = judge(rival=Rival(name="champion version 3", gain=None, problem="other test images"))
    assert result == GateResult(
        promoted=False, reasons=("not compared with champion version 3: other test images",), rival="champion version 3"
    )


def test_the_rivals_gain_counts_rather_than_that_over_real() -> None:
    """Protects the champion: beating real-only is not enough once there is one."""
    weak = METRICS.gain[Arm.MIXED].model_copy(update={"ci95": (-0.001, 0.02)})
    assert not judge(rival=Rival(name="champion version 3", gain=weak)).promoted
    assert judge(with_gain(ci95=(-0.001, 0.02)), rival=Rival(name="champion version 3", gain=METRICS.gain[Arm.MIXED])).promoted
