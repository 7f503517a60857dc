"""metrics.json from predictions alone: arms, gains, CAS and the candidate."""

import importlib.metadata
from collections.abc import Mapping

import numpy as np

from gda.artifacts import ArmResult, Candidate, ClassifierCard, Gain, Metrics, Verdict
from gda.config import Arm, Config
from gda.data.predictions import TOP_K, Predictions
from gda.data.snapshot import Snapshot
from gda.errors import DataError
from gda.stats.arms import arm_result, skipped_arm
from gda.stats.gain import compare
from gda.stats.streams import named_generator

RIVALS = (Arm.REAL_LONG, Arm.REAL_STRONG)  # real-only, with as many updates as the mixed arm

Cards = Mapping[tuple[Arm, int], ClassifierCard]


def measure(
    config: Config,
    cards: Cards,
    predictions: Predictions,
    real: Snapshot,
    *,
    candidate: Candidate | None,
    synthetic_digest: str | None,
    verdict: Verdict | None,
) -> Metrics:
    """Everything that metrics.json says. Raises `DataError` when two arms to be compared share no seed."""
    classes = tuple(info.name for info in real.classes)
    arms = {arm: _arm(config, arm, cards, predictions, len(classes)) for arm in Arm}
    ran = {arm for arm in Arm if arms[arm].skipped is None}
    declared = config.promote.arm
    rivals = [rival for rival in RIVALS if rival is not declared and {rival, declared} <= ran]
    return Metrics(
        arms=arms,
        cas=arms[Arm.SYNTHETIC].mean,
        cas_ci95=arms[Arm.SYNTHETIC].ci95,
        cas_zero_shot=arms[Arm.ZERO_SHOT].mean,
        gain={arm: _gain(config, predictions, arm, Arm.REAL, classes) for arm in Arm if arm in ran - {Arm.REAL}},
        gain_over_rivals={rival: _gain(config, predictions, declared, rival, classes) for rival in rivals},
        candidate=candidate,
        num_test=len(predictions.labels),
        classes=classes,
        snapshot_digest=real.digest,
        test_digest=predictions.test_digest,
        synthetic_digest=synthetic_digest,
        verdict_passed=verdict.passed if verdict is not None else None,
        measured_with=_measured_with(config, cards),
    )


def _arm(config: Config, arm: Arm, cards: Cards, predictions: Predictions, num_classes: int) -> ArmResult:
    mine = {seed: card for (name, seed), card in cards.items() if name is arm}
    seeds = tuple(sorted(mine))
    first = mine[seeds[0]]
    if first.skipped is not None:
        return skipped_arm(first.skipped)
    return arm_result(
        predictions.correct(arm, seeds),
        predictions.correct(arm, seeds, within=TOP_K),
        predictions.labels.astype(np.int64),
        num_classes,
        named_generator(config.seed, "evaluate", arm),
        seeds=seeds,
        val_top1=[accuracy for seed in seeds if (accuracy := mine[seed].val_top1) is not None],
        num_updates=first.num_updates,
        confidence=config.evaluate.confidence,
        num_resamples=config.evaluate.num_resamples,
    )


def _gain(config: Config, predictions: Predictions, arm: Arm, rival: Arm, classes: tuple[str, ...]) -> Gain:
    seeds = sorted(set(predictions.seeds(arm)) & set(predictions.seeds(rival)))
    if not seeds:
        raise DataError(f"arms {arm} and {rival} share no seed; classify.seeds and classify.control_seeds need some in common")
    return compare(
        predictions.correct(arm, seeds),
        predictions.correct(rival, seeds),
        predictions.labels.astype(np.int64),
        classes,
        named_generator(config.seed, "evaluate", arm, rival),
        alpha=config.promote.alpha,
        confidence=config.evaluate.confidence,
        num_resamples=config.evaluate.num_resamples,
    )


def _measured_with(config: Config, cards: Cards) -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in ("gda", "numpy", "scipy", "timm", "torch")}
    models = sorted({f"{card.model} at {card.image_size} pixels" for card in cards.values() if card.skipped is None})
    return {
        "classifier": "; ".join(models),
        "confidence": f"{config.evaluate.confidence:g}",
        "device": "cpu, one thread a process",
        "intervals": f"crossed bootstrap over seeds and images, {config.evaluate.num_resamples} resamples",
        "p-value": "two-sided sign-flip test over paired seeds",
        "harm to classes": f"two-way t test and exact McNemar test, the larger p-value, Holm-corrected at {config.promote.alpha:g}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
