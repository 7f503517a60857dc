"""Fault 30: synthetic images without any effect, put through the comparison and the gate a thousand times (half of them each way)."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from gda.artifacts.document import read_document
from gda.artifacts.evaluation import Gain, Metrics
from gda.artifacts.verdict import Verdict
from gda.config.sections import Arm, PromoteConfig
from gda.registry.gate import decide
from gda.stats.gain import paired_gain

FIXTURES = Path(__file__).parents[1] / "contract/fixtures"
METRICS = read_document(FIXTURES / "metrics.passed.json", Metrics)
VERDICT = read_document(FIXTURES / "verdict.passed.json", Verdict)
LABELS = np.arange(200) % 2


def experiment(rng: np.random.Generator, *, effect: float, seed_effect: float, image_effect: float, seeds: int = 6) -> Gain:
    """Two arms that differ by `effect`, by chance of the seed and by chance of the test images."""
    ease, twist = rng.normal(1.0, 1.5, LABELS.size), rng.normal(0, image_effect, LABELS.size)
    arms = [
        ease + shift + rng.normal(0, seed_effect, (seeds, 1)) + rng.normal(0, 0.6, (seeds, LABELS.size)) > 0
        for shift in (effect + twist, -twist)
    ]
    return paired_gain(arms[0], arms[1], LABELS, METRICS.classes, rng)


def opens(gain: Gain) -> bool:
    """Whether the gate promotes for this gain, all else being sound."""
    metrics = METRICS.model_copy(update={"gain": {Arm.MIXED: gain}, "gain_over_rivals": {Arm.REAL_LONG: gain, Arm.REAL_STRONG: gain}})
    return decide(metrics, VERDICT, PromoteConfig(), licence="apache-2.0").promoted


def promoted(rng: np.random.Generator, *, effect: float, seed_effect: float, image_effect: float) -> bool:
    """Whether one experiment ends in promotion."""
    return opens(experiment(rng, effect=effect, seed_effect=seed_effect, image_effect=image_effect))


@pytest.mark.parametrize(("seed_effect", "image_effect"), [(0.3, 0.0), (0.05, 0.8)])
def test_a_set_without_effect_is_promoted_at_most_alpha_of_the_time(seed_effect: float, image_effect: float) -> None:
    """Protects the promise of the gate, where seeds vary and where it is the choice of test images that misleads every seed alike."""
    rng = np.random.default_rng(30)
    count = sum(promoted(rng, effect=0.0, seed_effect=seed_effect, image_effect=image_effect) for _ in range(500))
    assert count <= stats.binom.ppf(0.999, 500, 0.05)


def test_a_real_effect_is_promoted_most_of_the_time() -> None:
    """Protects against a gate that keeps its promise by never opening."""
    rng = np.random.default_rng(31)
    assert sum(promoted(rng, effect=0.8, seed_effect=0.1, image_effect=0.1) for _ in range(100)) >= 80


@pytest.mark.parametrize(
    ("seeds", "seed_effect", "image_effect", "effect"), [(6, 0.3, 0.0, 0.75), (6, 0.05, 0.8, 0.53), (10, 0.1, 0.1, 0.205)]
)
def test_the_effect_declared_detectable_is_promoted_as_often_as_declared(
    seeds: int, seed_effect: float, image_effect: float, effect: float
) -> None:
    """Protects the printed power: a gain no larger than the declared minimum opens the gate itself, both of its tests, 80% of the time."""
    rng = np.random.default_rng(32)
    gains = [experiment(rng, effect=effect, seed_effect=seed_effect, image_effect=image_effect, seeds=seeds) for _ in range(200)]
    stated = [gain.minimal_detectable_effect for gain in gains if gain.minimal_detectable_effect is not None]
    assert len(stated) == len(gains)
    # `effect` is latent; the gain that it makes is the one declared.
    assert np.mean([gain.mean for gain in gains]) == pytest.approx(np.mean(stated), rel=0.07)
    assert sum(opens(gain) for gain in gains) >= stats.binom.ppf(0.001, 200, 0.8)
