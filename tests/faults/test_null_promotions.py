"""Fault 30: synthetic images without any effect, put through the comparison and the gate a thousand times (half of them each way)."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from gda.artifacts import Metrics, Verdict, read_document
from gda.config import Arm, PromoteConfig
from gda.registry.gate import decide
from gda.stats.gain import compare

FIXTURES = Path(__file__).parents[1] / "contract/fixtures"
METRICS = read_document(FIXTURES / "metrics.passed.json", Metrics)
VERDICT = read_document(FIXTURES / "verdict.passed.json", Verdict)
LABELS = np.arange(200) % 2


def promoted(rng: np.random.Generator, *, effect: float, seed_effect: float, image_effect: float) -> bool:
    """One experiment: two arms that differ by `effect`, by chance of the seed and by chance of the test images."""
    ease, twist = rng.normal(1.0, 1.5, LABELS.size), rng.normal(0, image_effect, LABELS.size)
    arms = [
        ease + shift + rng.normal(0, seed_effect, (6, 1)) + rng.normal(0, 0.6, (6, LABELS.size)) > 0 for shift in (effect + twist, -twist)
    ]
    gain = compare(arms[0], arms[1], LABELS, METRICS.classes, rng, num_resamples=200)
    metrics = METRICS.model_copy(update={"gain": {Arm.MIXED: gain}})
    return decide(metrics, VERDICT, PromoteConfig(), licence="apache-2.0").promoted


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
