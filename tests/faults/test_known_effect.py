"""Synthetic images whose effect is known in closed form, put through classify, evaluate and the gate: the report must say that effect."""

from collections.abc import Iterator
from pathlib import Path

import known_effect
import pytest
from known_effect import CLASSES, HARMFUL, HELPFUL, IDLE, SHOWN, TRUE, Mixture, best, best_per_class, config, mixed

from gda.artifacts.document import read_document
from gda.artifacts.evaluation import Metrics
from gda.artifacts.verdict import Verdict
from gda.config.sections import Arm
from gda.registry.gate import GateResult, decide
from gda.stages import classify, evaluate

pytestmark = pytest.mark.learning
TEST_PER_CLASS = 120
NEAR = 0.03  # by which the test images sampled may differ from their mixture, and networks from the best that they could be
REAL_ARMS = (Arm.REAL, Arm.REAL_LONG, Arm.REAL_STRONG)


class Laboratory:
    """One real set, its classifiers trained once, and as many synthetic sets as are to be assessed next to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.real = known_effect.write_snapshot(
            root / "real", {"train": (SHOWN, 40), "val": (SHOWN, 20), "test": (TRUE, TEST_PER_CLASS)}, seed=1
        )
        self.zero_shot = known_effect.write_snapshot(root / "zero_shot", {"train": (SHOWN, 20)}, seed=2, synthetic=True)
        for arm in REAL_ARMS:
            self._train(arm, root / "shared")
        self._train(Arm.ZERO_SHOT, root / "shared", synthetic=root / "zero_shot")

    def decide(self, name: str, mixture: Mixture, *, seed: int) -> tuple[Metrics, GateResult]:
        """Train the gated arms on a set of this mixture, evaluate all arms, and request the gate."""
        folder = self.root / name
        synthetic = known_effect.write_snapshot(folder / "synthetic", {"train": (mixture, 80)}, seed=seed, synthetic=True)
        verdict = known_effect.write_verdict(folder / "verdict.json", self.real, synthetic)
        for arm in (Arm.SYNTHETIC, Arm.MIXED):
            self._train(arm, folder / "runs", synthetic=folder / "synthetic", verdict=verdict)
        out = evaluate.run(
            config(),
            runs=[self.root / "shared", folder / "runs"],
            snapshot=self.root / "real",
            synthetic=folder / "synthetic",
            verdict=verdict,
            out=folder / "evaluation",
        ).output
        metrics = read_document(out / "metrics.json", Metrics)
        return metrics, decide(metrics, read_document(verdict, Verdict), config().promote, licence="apache-2.0")

    def _train(self, arm: Arm, runs: Path, *, synthetic: Path | None = None, verdict: Path | None = None) -> None:
        given = config()
        seeds = given.classify.seeds_of(arm)
        for seed in seeds:
            out = runs / f"{arm}-{seed}"
            classify.run(
                given, snapshot=self.root / "real", arm=arm, seed=seed, out=out, synthetic=synthetic, verdict=verdict, with_seeds=seeds
            )


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """Its work folder stays with it, so that no stage finds another test's work."""
    root = tmp_path_factory.mktemp("known_effect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GDA_WORK_DIR", str(root / "work"))
        yield Laboratory(root)


def require_effect(metrics: Metrics, synthetic: Mixture) -> None:
    """The report holds the accuracies and the gain that were computed beforehand, over all classes and for every one of them."""
    both = mixed(SHOWN, synthetic)
    truth = best(both) - best(SHOWN)
    gain = metrics.gain[Arm.MIXED]
    assert gain.seeds == 6
    assert gain.ci95[0] <= truth <= gain.ci95[1]
    assert gain.mean == pytest.approx(truth, abs=NEAR)
    for arm, trained_on in ((Arm.REAL, SHOWN), (Arm.REAL_LONG, SHOWN), (Arm.MIXED, both), (Arm.SYNTHETIC, synthetic)):
        result = metrics.arms[arm]
        assert result.ci95 is not None
        assert result.ci95[0] <= best(trained_on) <= result.ci95[1]
    rival = metrics.gain_over_rivals[Arm.REAL_LONG]
    assert rival.ci95[0] <= truth <= rival.ci95[1]
    for name, change in changes(metrics).items():
        assert change == pytest.approx(best_per_class(both)[name] - best_per_class(SHOWN)[name], abs=0.1), name


def changes(metrics: Metrics) -> dict[str, float]:
    """Change of each class's accuracy, real+synthetic less real."""
    with_, without = metrics.arms[Arm.MIXED].per_class, metrics.arms[Arm.REAL].per_class
    return {name: a - b for name, a, b in zip(CLASSES, with_, without, strict=True)}


def test_the_effects_are_what_the_mode_weights_say() -> None:
    """Protects the answers themselves: sums done by hand, so that a slip in the construction is not taken for a fault of the stages."""
    assert best(SHOWN) == pytest.approx(1 - 0.1 / 4 - 0.6 / 4)
    assert best(mixed(SHOWN, HELPFUL)) - best(SHOWN) == pytest.approx(0.6 / 4)
    assert best(mixed(SHOWN, IDLE)) == best(SHOWN)
    assert best(mixed(SHOWN, HARMFUL)) - best(SHOWN) == pytest.approx(0.6 / 4 - 0.3 / 4)
    assert all(sum(modes.values()) == pytest.approx(1) for mixture in (TRUE, SHOWN, HELPFUL, HARMFUL) for modes in mixture.values())


def test_images_that_help_are_promoted_for_what_they_are_worth(laboratory: Laboratory) -> None:
    """Protects a true gain of 15 points from being missed, misstated, credited to another class, or refused."""
    metrics, gate = laboratory.decide("helpful", HELPFUL, seed=11)
    require_effect(metrics, HELPFUL)
    assert metrics.gain[Arm.MIXED].harmed_classes == ()
    assert gate.reasons == ()
    assert gate.promoted
    assert max(changes(metrics), key=lambda name: changes(metrics)[name]) == "red"


def test_images_without_news_are_refused(laboratory: Laboratory) -> None:
    """Protects against promoting three times as many images, and more updates, that show nothing which the real ones do not."""
    metrics, gate = laboratory.decide("idle", IDLE, seed=12)
    require_effect(metrics, IDLE)
    assert not gate.promoted
    assert any("is not clearly above zero" in reason for reason in gate.reasons)


def test_a_gain_that_one_class_pays_for_is_refused_by_its_name(laboratory: Laboratory) -> None:
    """Protects a class that loses 30 points behind a mean that rises: it is named, and nothing else stands against the candidate."""
    metrics, gate = laboratory.decide("harmful", HARMFUL, seed=13)
    require_effect(metrics, HARMFUL)
    gain = metrics.gain[Arm.MIXED]
    assert gain.ci95[0] > 0
    (harm,) = gain.harmed_classes
    assert (harm.class_name, harm.p_value <= config().promote.alpha) == ("green", True)
    assert harm.change == pytest.approx(-0.3, abs=0.1)
    assert not gate.promoted
    assert {reason.split(" than with ")[0] for reason in gate.reasons} == {"class green is significantly worse"}
