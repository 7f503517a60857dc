"""metrics.json from predictions alone: arms, gains, CAS and the candidate."""

import importlib.metadata
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np

from gda.artifacts.cards import ClassifierCard
from gda.artifacts.evaluation import ArmResult, Candidate, Gain, GainWithinTraining, Metrics, SetResult
from gda.artifacts.verdict import Verdict
from gda.config.arm import Arm, in_order
from gda.config.load import Config
from gda.data.store.predictions import TOP_K, Predictions
from gda.data.store.snapshot import Snapshot
from gda.errors import DataError
from gda.evaluation.group_metrics import group_results, top5_gains
from gda.runtime.rng import numpy_stream
from gda.stats.arms import arm_result, real_alone_as_long, skipped_arm, with_confusions, with_probabilities
from gda.stats.gain import paired_gain
from gda.stats.multiplicity.holm import holm
from gda.stats.two_way import sets_of

Cards = Mapping[tuple[Arm, int], ClassifierCard]


def measure_arms(
    config: Config,
    cards: Cards,
    predictions: Predictions,
    real: Snapshot,
    *,
    candidate: Candidate | None,
    synthetic: Snapshot | None,
    verdict: Verdict | None,
    sets: Mapping[str, SetResult] | None = None,
) -> Metrics:
    """All content of metrics.json. Raises `DataError` when two arms to be compared share no seed."""
    classes = tuple(info.name for info in real.classes)
    arms = {arm: _arm(config, arm, cards, predictions, classes) for arm in dict.fromkeys(arm for arm, _ in cards)}
    ran = {arm for arm in arms if arms[arm].skipped is None}
    parts = {arm: parts_of_arm(cards, arm) for arm in arms if arm in ran}
    declared = config.promote.arm
    rivals = [arm for arm in in_order(ran) if arm.data.rival and arm not in (Arm.REAL, declared) and declared in ran]
    cas = next((arm for arm in in_order(ran) if arm.data.name == Arm.SYNTHETIC), None)
    untuned = arms.get(cas.with_data(Arm.ZERO_SHOT)) if cas else arms.get(Arm.ZERO_SHOT)

    @cache
    def gain(arm: Arm, rival: Arm) -> Gain:
        return _gain(config, cards, predictions, arm, rival, classes)

    return Metrics(
        arms=arms,
        cas=arms[cas].mean if cas else None,
        cas_ci95=arms[cas].ci95 if cas else None,
        cas_zero_shot=untuned.mean if untuned else None,
        gain={arm: gain(arm, Arm.REAL) for arm in arms if arm in ran - {Arm.REAL}},
        gain_over_rivals={rival: gain(declared, rival) for rival in rivals},
        gain_within_training=_within_training(arms, cards, gain),
        sets=dict(sets or {}),
        gain_top5=top5_gains(config, predictions, parts),
        groups=group_results(config, predictions, real, parts),
        candidate=candidate,
        num_test=len(predictions.labels),
        num_train=_images(real),
        num_synthetic=_images(synthetic) if synthetic is not None else None,
        classes=classes,
        snapshot_digest=real.digest,
        test_digest=predictions.test_digest,
        synthetic_digest=synthetic.digest if synthetic is not None else None,
        verdict_passed=verdict.passed if verdict is not None else None,
        measured_with=_measured_with(config, cards),
    )


def parts_of_arm(cards: Cards, arm: Arm) -> int:
    """The number of parts of the synthetic set of `arm`, of which each seed trains on one; 1 for a whole set and for real images alone."""
    return max(card.synthetic_parts for (name, _), card in cards.items() if name is arm)


def _images(snapshot: Snapshot) -> int:
    return sum(snapshot.index.counts["train"].values())


def _arm(config: Config, arm: Arm, cards: Cards, predictions: Predictions, classes: tuple[str, ...]) -> ArmResult:
    own = {seed: card for (name, seed), card in cards.items() if name is arm}
    seeds = tuple(sorted(own))
    first = own[seeds[0]]
    if first.skipped is not None:
        return skipped_arm(first.skipped)
    correct = predictions.correct(arm, seeds)
    result = arm_result(
        correct,
        predictions.correct(arm, seeds, within=TOP_K),
        predictions.labels.astype(np.int64),
        len(classes),
        seeds=seeds,
        val_top1=[accuracy for seed in seeds if (accuracy := own[seed].val_top1) is not None],
        num_train_steps=first.num_train_steps,
        confidence=config.evaluate.confidence,
        sets=sets_of(first.synthetic_parts, seeds),
        groups=predictions.groups,
    )
    result = with_confusions(result, np.stack([predictions.top[arm, seed][:, 0] for seed in seeds]), predictions.labels, classes)
    if not {(arm, seed) for seed in seeds} <= predictions.probabilities.keys():
        return result
    return with_probabilities(result, np.stack([predictions.probabilities[arm, seed] for seed in seeds]), correct)


def _gain(config: Config, cards: Cards, predictions: Predictions, arm: Arm, rival: Arm, classes: tuple[str, ...]) -> Gain:
    parts = max(parts_of_arm(cards, arm), parts_of_arm(cards, rival))
    seeds = sorted(set(predictions.seeds(arm)) & set(predictions.seeds(rival)))
    if not seeds:
        raise DataError(f"arms {arm} and {rival} share no seed; classify.seeds and classify.control_seeds need some in common")
    return paired_gain(
        predictions.correct(arm, seeds),
        predictions.correct(rival, seeds),
        predictions.labels.astype(np.int64),
        classes,
        numpy_stream("stats", config.seed, "evaluate", arm, rival),
        sets=sets_of(parts, seeds),
        groups=predictions.groups,
        alpha=config.promote.alpha,
        confidence=config.evaluate.confidence,
    )


def _within_training(arms: Mapping[Arm, ArmResult], cards: Cards, gain: Callable[[Arm, Arm], Gain]) -> dict[Arm, GainWithinTraining]:
    """The gain of each arm of real and synthetic images over real ones alone with the same training, for at least as many steps."""
    mixed = [arm for arm in in_order(arms) if arm.data.real and arm.data.gated]
    pairs = {arm: rival for arm in mixed if (rival := real_alone_as_long(arm, arms)) is not None}
    models = {arm: card.model for (arm, _), card in cards.items()}
    gains = {arm: gain(arm, rival) for arm, rival in pairs.items()}
    adjusted = holm([each.p_value for each in gains.values()])
    return {
        arm: GainWithinTraining(rival=pairs[arm], model=models[arm], gain=each, p_holm=p)
        for (arm, each), p in zip(gains.items(), adjusted, strict=True)
    }


def _seeds_text(parts: int) -> str:
    if parts == 1:
        return "all of an arm train on the same synthetic images: intervals are of this very set"
    return f"the synthetic images are cut into {parts} disjoint parts; seed s trains on part s modulo {parts}"


def _measured_with(config: Config, cards: Cards) -> dict[str, str]:
    parts = max(card.synthetic_parts for card in cards.values())
    versions = {name: importlib.metadata.version(name) for name in ("gda", "numpy", "scipy", "timm", "torch")}
    models = sorted({f"{card.model} at {card.image_size} pixels" for card in cards.values() if card.skipped is None})
    return {
        "classifier": "; ".join(models),
        "confidence": f"{config.evaluate.confidence:g}",
        "device": "cpu, one thread per process",
        "intervals": "two-way standard error over seeds and images, and t distributions of both",
        "seeds": _seeds_text(parts),
        "p-value": "two-sided sign-flip test over paired seeds",
        "harm to classes": "the larger one-sided p-value of a two-way t test and exact sign flips over images; "
        f"false discovery rate {config.promote.alpha:g}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
