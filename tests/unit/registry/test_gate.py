"""The promotion gate: open on a sound gain, shut on everything else, and shut above all when something is missing."""

from pathlib import Path
from typing import Any

import pytest

from gda.artifacts.document import read_document
from gda.artifacts.evaluation import Gain, Metrics, Spread
from gda.artifacts.verdict import Verdict
from gda.config.sections import Arm, PromoteConfig
from gda.registry.gate import GateResult, decide
from gda.registry.rivals import Rival, real_rivals

FIXTURES = Path(__file__).parents[2] / "contract/fixtures"
METRICS = read_document(FIXTURES / "metrics.passed.json", Metrics)
VERDICT = read_document(FIXTURES / "verdict.passed.json", Verdict)
STRONGEST = METRICS.gain_over_rivals[Arm.REAL_STRONG]
NAN, INF = float("nan"), float("inf")


def spread(error: float, *, seed_share: float = 0.3, seed_freedom: float = 5.0) -> Spread:
    return Spread.model_construct(error=error, seed_share=seed_share, seed_freedom=seed_freedom, image_freedom=4299.0)


def gate(
    metrics: Any = METRICS, verdict: Any = VERDICT, *, licence: str = "apache-2.0", champion: Rival | None = None, **promote: Any
) -> GateResult:
    return decide(metrics, verdict, PromoteConfig(**promote), licence=licence, champion=champion)


def with_gain(**changes: Any) -> Metrics:
    """The passing metrics with fields of the gain over the strongest rival changed, unvalidated as a bug of ours would leave them."""
    return over(**{Arm.REAL_STRONG: STRONGEST.model_copy(update=changes)})


def over(**gains: Gain | None) -> Metrics:
    """The passing metrics with other gains over rivals; None takes one out."""
    kept = {arm: gain for arm, gain in (METRICS.gain_over_rivals | {Arm(arm): gain for arm, gain in gains.items()}).items() if gain}
    return METRICS.model_copy(update={"gain_over_rivals": kept})


def shifted(gain: Gain, by: float) -> Gain:
    """The same with every difference larger by `by`."""
    ends = (gain.ci95[0] + by, gain.ci95[1] + by)
    differences = tuple(difference + by for difference in gain.differences)
    return gain.model_copy(update={"mean": gain.mean + by, "ci95": ends, "differences": differences})


def test_a_sound_gain_passes() -> None:
    """Protects against a gate that nothing can pass."""
    assert gate() == GateResult(promoted=True, reasons=(), rival="real_strong")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seeds": 5, "mean": 0.01, "differences": (0.01,) * 5}, "compared with real_strong over 5 of its 6 seeds alone"),
        ({"spread": spread(0.005)}, "not clearly above zero"),
        ({"mean": 0.0, "differences": (0.0,) * 6}, "not clearly above zero"),
        ({"mean": -0.02, "differences": (-0.02,) * 6}, "not clearly above zero"),
        ({"mean": 0.5}, "not a valid measurement"),
        ({"spread": None}, "without its standard error"),
        ({"spread": spread(NAN)}, "not a valid measurement"),
        ({"spread": spread(-0.001)}, "not a valid measurement"),
        ({"spread": spread(0.001, seed_freedom=0.0)}, "not a valid measurement"),
        ({"spread": spread(0.001, seed_share=1.5)}, "not a valid measurement"),
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
    result = gate(with_gain(**change))
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
    result = gate(METRICS.model_copy(update=change))
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
    result = gate(verdict=VERDICT.model_copy(update=change))
    assert not result.promoted
    assert reason in " | ".join(result.reasons)


@pytest.mark.parametrize("broken", [None, {}, "metrics", Metrics.model_construct()])
def test_no_metrics_at_all_is_refused(broken: object) -> None:
    """Protects against an exception in the gate being anything but a refusal."""
    result = gate(broken)
    assert not result.promoted
    assert "could not be computed" in result.reasons[0]


def test_no_verdict_is_refused() -> None:
    """Protects against promoting a classifier whose synthetic images were not validated."""
    assert gate(verdict=None).reasons == ("there is no verdict on the synthetic set",)


def test_a_harmed_class_is_named() -> None:
    """Protects single classes: a significant loss in one refuses a gain of the mean."""
    harm = {"class_name": "pear", "change": -0.08, "p_value": 0.01}
    harmed = Gain.model_validate(STRONGEST.model_dump() | {"harmed_classes": [harm]})
    assert gate(over(real_strong=harmed)).reasons == (
        "class pear is significantly worse than with real_strong: -8.00 points (adjusted p = 0.01)",
    )


@pytest.mark.parametrize("licence", ["unknown", "", "deepfloyd-if-license", "none"])
def test_an_unknown_licence_is_refused(licence: str) -> None:
    """Protects against promoting what may not be used: only listed licences of the base pass."""
    assert "licence" in gate(licence=licence).reasons[0]
    assert gate(licence=licence, allowed_licences=(licence.upper(),)).promoted


@pytest.mark.parametrize("arm", [Arm.ZERO_SHOT, Arm.REAL])
def test_control_arms_are_never_promoted(arm: Arm) -> None:
    """Protects the gate of the images: the zero-shot arm never passed it, however good it is."""
    assert f"{arm} is a control arm and is never promoted" in gate(arm=arm).reasons


def test_the_candidate_must_be_of_the_declared_arm() -> None:
    """Protects pre-declaration: a candidate of whichever arm came out best is refused."""
    assert "but synthetic was declared" in " | ".join(gate(arm=Arm.SYNTHETIC).reasons)


def test_a_rival_without_a_comparison_is_refused() -> None:
    """Protects the champion that cannot be compared with, even where the gain over real is large."""
    result = gate(champion=Rival(name="champion version 3", gain=None, problem="other test images"))
    assert result == GateResult(
        promoted=False, reasons=("not compared with champion version 3: other test images",), rival="champion version 3"
    )


def test_the_champion_counts_in_addition_to_real_only_training() -> None:
    """Protects the champion, which has to be beaten as well - and real-only training still, for a champion may be old and weak."""
    weak = shifted(STRONGEST, 0.001 - STRONGEST.mean)
    assert not gate(champion=Rival(name="champion version 3", gain=weak)).promoted
    assert gate(champion=Rival(name="champion version 3", gain=STRONGEST)) == GateResult(
        promoted=True, reasons=(), rival="champion version 3"
    )
    assert not gate(over(real_strong=weak), champion=Rival(name="champion version 3", gain=STRONGEST)).promoted


@pytest.mark.parametrize("rival", ["real_long", "real_strong"])
def test_an_arm_below_a_rival_is_refused_however_far_it_is_above_real(rival: str) -> None:
    """Protects fairness: more updates or stronger augmentation of the real images may be all that the gain is."""
    worse = shifted(METRICS.gain_over_rivals[Arm(rival)], -0.03)
    assert f"the gain over {rival}, -1." in " | ".join(gate(over(**{rival: worse})).reasons)


@pytest.mark.parametrize("rival", ["real_long", "real_strong"])
def test_a_rival_that_was_not_compared_is_refused(rival: str) -> None:
    """Protects against a gate that opens because the harder comparison is missing."""
    assert f"not compared with {rival}" in " | ".join(gate(over(**{rival: None})).reasons)


def test_a_rival_with_fewer_seeds_than_the_candidate_is_refused() -> None:
    """Protects fairness: three seeds of the rival against six of the candidate are half a comparison."""
    few = STRONGEST.model_copy(update={"seeds": 3, "mean": 0.0105, "differences": (0.0105,) * 3})
    assert "compared with real_strong over 3 of its 6 seeds alone" in gate(over(real_strong=few), min_seeds=2).reasons


def with_arms(**changes: dict[str, Any]) -> Metrics:
    """The passing metrics with fields of arms changed; the arms left out are taken away."""
    arms = {arm: result.model_copy(update=changes.get(arm, {})) for arm, result in METRICS.arms.items()}
    return METRICS.model_copy(update={"arms": arms})


def test_the_strongest_rival_is_chosen_on_validation() -> None:
    """Protects the choice: by validation accuracy, never by the test images, which would make a soft rival of a lucky one."""
    weak_on_test = with_arms(real_strong={"top1": (0.5,) * 6, "mean": 0.5})
    assert [rival.name for rival in real_rivals(weak_on_test, PromoteConfig())] == ["real_strong", "real_long"]
    weak_on_val = with_arms(real_strong={"val_top1": (0.5,) * 6}, real_long={"val_top1": (0.6,) * 6})
    assert [rival.name for rival in real_rivals(weak_on_val, PromoteConfig())] == ["real", "real_long"]


def test_without_validation_accuracies_every_real_only_arm_has_to_be_beaten() -> None:
    """Protects against a missing number that makes the choice: what cannot be ranked is required."""
    unknown = with_arms(real_strong={"val_top1": ()})
    assert {rival.name for rival in real_rivals(unknown, PromoteConfig())} == {"real", "real_long", "real_strong"}


def test_training_as_long_has_to_be_beaten_whatever_was_declared() -> None:
    """Protects against a candidate whose gain is its length: 600 steps on real images are no rival for 700."""
    longer = with_arms(**{Arm.MIXED: {"num_train_steps": 700}})
    assert "not compared with real images alone for as long: no plain training on real images took 700 steps" in " | ".join(
        gate(longer).reasons
    )
    declared = PromoteConfig(rivals=(Arm.REAL_STRONG,))
    assert [rival.name for rival in real_rivals(METRICS, declared)] == ["real_strong", "real_long"]


def test_a_real_only_arm_is_no_rival_of_itself() -> None:
    """Protects the promotion of a real-only training: its rivals are the others."""
    assert [rival.name for rival in real_rivals(METRICS, PromoteConfig(arm=Arm.REAL_STRONG))] == ["real_long"]


def test_fewer_seeds_than_required_are_reported_once() -> None:
    """Protects the reader: a fault of the candidate alone is not repeated for every rival."""
    assert gate(min_seeds=7).reasons == ("only 6 seeds; at least 7 are needed",)


@pytest.mark.parametrize("rivals", [(Arm.SYNTHETIC,), (Arm.MIXED,), (Arm.TARGETED, Arm.REAL)])
def test_an_arm_of_generated_images_is_no_rival(rivals: tuple[Arm, ...]) -> None:
    """Protects the declaration: a candidate that beats other synthetic images has shown nothing about real ones."""
    with pytest.raises(ValueError, match="accepted: real, real_long"):
        PromoteConfig(rivals=rivals)


def test_another_level_of_the_shown_interval_changes_nothing() -> None:
    """Protects the gate's own level: evaluate.confidence 0.51 shows shorter intervals and opens nothing that 0.95 keeps shut."""
    doubtful = STRONGEST.model_copy(update={"spread": spread(0.0055)})
    for shown in ((-0.001, 0.022), (0.007, 0.014)):
        assert not gate(over(real_strong=doubtful.model_copy(update={"ci95": shown}))).promoted


@pytest.mark.parametrize(
    ("look", "error", "p_value", "opens"), [(1, 0.004, 0.03125, True), (2, 0.004, 0.03125, False), (2, 0.002, 0.004, True)]
)
def test_each_further_look_at_the_test_split_has_a_stricter_level(look: int, error: float, p_value: float, opens: bool) -> None:
    """Protects the level over all looks: stopping when it suits, or trying one arm after the other, is paid for."""
    gain = STRONGEST.model_copy(update={"spread": spread(error), "p_value": p_value})
    rivals = {Arm.REAL_LONG: gain, Arm.REAL_STRONG: gain}
    result = gate(METRICS.model_copy(update={"look": look, "gain": {Arm.MIXED: gain}, "gain_over_rivals": rivals}))
    assert result.promoted is opens
    assert opens or "0.005, which is the level left for look 2 at this test split" in " | ".join(result.reasons)


def test_too_few_seeds_to_pass_at_all_are_reported() -> None:
    """Protects a user from a gain that looks clear and cannot pass: the reason states how many seeds this look needs."""
    clear = {"spread": spread(0.001)}
    rivals = {Arm.REAL_STRONG: STRONGEST.model_copy(update=clear | {"p_value": 0.03125})}
    second = gate(METRICS.model_copy(update={"look": 2, "gain_over_rivals": METRICS.gain_over_rivals | rivals}))
    assert any(reason.endswith("; with 6 seeds no gain can reach it, 9 are needed") for reason in second.reasons)
    assert not any("are needed" in reason for reason in gate(with_gain(**clear, p_value=0.2)).reasons)


def declared_strong() -> Metrics:
    """The passing metrics with the declared arm trained with strong augmentation."""
    arms = METRICS.arms | {Arm.MIXED_STRONG: METRICS.arms[Arm.MIXED]}
    candidate = METRICS.candidate.model_copy(update={"arm": Arm.MIXED_STRONG}) if METRICS.candidate else None
    gain = METRICS.gain | {Arm.MIXED_STRONG: METRICS.gain[Arm.MIXED]}
    return METRICS.model_copy(update={"arms": arms, "candidate": candidate, "gain": gain})


def with_arm(metrics: Metrics, arm: Arm, **changes: Any) -> Metrics:
    return metrics.model_copy(update={"arms": metrics.arms | {arm: metrics.arms[arm].model_copy(update=changes)}})


def test_an_arm_has_to_beat_real_images_that_are_augmented_alike() -> None:
    """Protects a strongly augmented candidate from owing its gain to the augmentation, whichever real-only training is strongest."""
    promote = PromoteConfig(arm=Arm.MIXED_STRONG)
    plain_wins = declared_strong()
    for arm, accuracy in ((Arm.REAL, 0.5), (Arm.REAL_LONG, 0.9), (Arm.REAL_STRONG, 0.6)):
        plain_wins = with_arm(plain_wins, arm, val_top1=(accuracy,) * 6)
    assert [rival.name for rival in real_rivals(plain_wins, promote)] == ["real_long", "real_strong"]
    assert [rival.name for rival in real_rivals(with_arm(plain_wins, Arm.REAL_STRONG, val_top1=(1.0,) * 6), promote)] == ["real_strong"]
    assert gate(plain_wins, arm=Arm.MIXED_STRONG).promoted
    alike = plain_wins.model_copy(
        update={"gain_over_rivals": plain_wins.gain_over_rivals | {Arm.REAL_STRONG: shifted(STRONGEST, -STRONGEST.mean)}}
    )
    result = gate(alike, arm=Arm.MIXED_STRONG)
    assert not result.promoted
    assert any("the gain over real_strong" in reason for reason in result.reasons)


@pytest.mark.parametrize(
    ("arm", "kind", "needed"),
    [(Arm.MIXED_STRONG, "strong", "real_strong"), (Arm.MIXED, "plain", "real_long"), (Arm.TARGETED, "plain", "real_long")],
)
def test_without_a_rival_that_is_trained_alike_nothing_is_promoted(arm: Arm, kind: str, needed: str) -> None:
    """Protects against a comparison with shorter or otherwise augmented training alone, and says which arm is missing."""
    metrics = declared_strong()
    metrics = metrics.model_copy(update={"arms": {Arm.REAL: metrics.arms[Arm.REAL], arm: metrics.arms[Arm.MIXED]}})
    updates = metrics.arms[arm].num_train_steps
    reasons = gate(metrics, arm=arm).reasons
    expected = f"no {kind} training on real images took {updates} steps; add {needed} to classify.arms"
    assert any(expected in reason for reason in reasons), reasons


def test_an_architecture_has_to_beat_itself_on_real_images() -> None:
    """Protects a candidate of one architecture from owing its gain to that, where another is strongest on real images or none is."""
    mixed, real = Arm("real+synthetic_vit"), Arm("real_vit")
    candidate = METRICS.candidate.model_copy(update={"arm": mixed}) if METRICS.candidate else None
    metrics = METRICS.model_copy(
        update={
            "arms": METRICS.arms | {mixed: METRICS.arms[Arm.MIXED], real: METRICS.arms[Arm.REAL_LONG]},
            "candidate": candidate,
            "gain": METRICS.gain | {mixed: METRICS.gain[Arm.MIXED]},
        }
    )
    assert [rival.name for rival in real_rivals(metrics, PromoteConfig(arm=mixed))] == ["real_strong", "real_vit"]
    assert any("not compared with real_vit" in reason for reason in gate(metrics, arm=mixed).reasons)
    compared = metrics.model_copy(update={"gain_over_rivals": metrics.gain_over_rivals | {real: STRONGEST}})
    assert gate(compared, arm=mixed).promoted


@pytest.mark.parametrize("name", ["real+zero_shot", "real+zero_shot_strong", "zero_shot_strong", "img2img_strong"])
def test_images_without_a_verdict_are_never_promoted(name: str) -> None:
    """Protects the gate from generated images that were not validated, however they are trained on."""
    assert f"{name} is a control arm and is never promoted" in gate(arm=Arm(name)).reasons
