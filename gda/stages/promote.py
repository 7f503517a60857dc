"""promote: register the candidate and, if the gate passes, point `champion` at it; a refusal is a recorded result."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from gda.artifacts.cards import ClassifierCard
from gda.artifacts.decision import Decision
from gda.artifacts.document import dump_document, read_document
from gda.artifacts.evaluation import Candidate, Metrics
from gda.artifacts.fingerprint import digest_of
from gda.artifacts.outcome import Outcome
from gda.artifacts.verdict import Verdict
from gda.config.load import Config
from gda.data.store.predictions import Predictions, read_predictions
from gda.data.test_split.ledger import count_test_openings
from gda.errors import DataError
from gda.io.atomic import write_bytes
from gda.io.rewriting import rewriting
from gda.registry.gate import GateResult, decide
from gda.registry.model_registry import CHAMPION, PREDICTIONS_FILE, Registered, Registry
from gda.registry.rivals import Rival
from gda.report.model_card import MODEL_CARD_FILE, describe_candidate, model_card
from gda.report.wording import opened
from gda.runtime.disks import storage_errors
from gda.runtime.rng import numpy_stream
from gda.stats.gain import paired_gain
from gda.stats.two_way import sets_of
from gda.training.networks.export import open_classifier

DEFAULT_OUT = Path("reports/promotion")
DECISION_FILE = "decision.json"
DRY_RUN = "dry-run"


def run(
    config: Config,
    *,
    evaluation: Path,
    verdict: Path | None,
    out: Path | None = None,
    dry_run: bool = False,
    register_only: bool = False,
    progress: bool = False,
) -> Outcome:
    """Decide on the candidate of `evaluation`, register it as `challenger`, promote it if the gate passes, and write `decision.json`.

    The candidate's `MODEL_CARD.md` is written next to it.

    Not cached: each call queries the registry, and changes nothing if this decision has been carried out. The candidate has to beat
    real-only training and the model behind `champion`. `dry_run` changes nothing in the registry and writes into the folder `dry-run` of
    `out`; `register_only` leaves `champion` where it is, for accounts that may not move it. Raises `DataError` on damaged input or a
    candidate that changed since, `TryAgainError` when MLflow is unreachable, `MissingError` and `ConfigError` for its other errors.
    """
    metrics = read_document(evaluation / "metrics.json", Metrics)
    accepted_set = read_document(verdict, Verdict) if verdict is not None else None
    predictions = read_predictions(evaluation / PREDICTIONS_FILE)
    if predictions.test_digest != metrics.test_digest:
        raise DataError(f"{evaluation}: metrics.json and {PREDICTIONS_FILE} are about different test splits")
    card = _read_candidate(metrics.candidate)
    registry = Registry(config.promote.model_name)
    incumbent = registry.champion()
    opponent = _opponent(registry, incumbent, card)
    champion = _champion(config, metrics, predictions, opponent, card)
    gate = decide(metrics, accepted_set, config.promote, licence=card.base_licence if card else "unknown", champion=champion)
    openings = _openings(metrics, registry, card)
    version, decided, done = None, "", False
    if card is not None and metrics.candidate is not None and not dry_run:
        decided = digest_of({"evaluation": metrics.model_dump(mode="json"), "gate": asdict(gate), "register_only": register_only})
        version = registry.carried_out(card.digest, decided, champion=gate.promoted and not register_only)
        done = version is not None
        if version is None:
            kept = predictions.only(card.arm, card.seed)
            version = registry.register(Path(metrics.candidate.path), card, kept, _tags(metrics, card, gate))
            if gate.promoted and not register_only:
                registry.promote(version, over=incumbent)
    decision = _decision(config, metrics, gate, version, registry.aliases(version) if version else (), openings, dry_run=dry_run)
    if version is not None and card is not None and not done:
        registry.describe(version, describe_candidate(card, metrics, decision))
        registry.settle(version, decided)
    place = out or DEFAULT_OUT
    text = model_card(card, metrics, accepted_set, decision) if card is not None else None
    return _write(decision, place / DRY_RUN if dry_run else place, text, done=done)


def _read_candidate(candidate: Candidate | None) -> ClassifierCard | None:
    if candidate is None:
        return None
    path = Path(candidate.path) / "classifier.json"
    card = open_classifier(path.parent)
    if card.digest != candidate.digest:
        raise DataError(f"{path}: is {card.digest[:12]}, but {candidate.digest[:12]} was evaluated; run evaluate again")
    return card


def _opponent(registry: Registry, champion: Registered | None, card: ClassifierCard | None) -> Registered | None:
    """The model that the candidate must beat: the champion, or, if the candidate is the champion, the one that it replaced."""
    if champion is None or card is None or champion.digest != card.digest:
        return champion
    return registry.version(champion.beat_version) if champion.beat_version else None


def _champion(
    config: Config, metrics: Metrics, predictions: Predictions, opponent: Registered | None, card: ClassifierCard | None
) -> Rival | None:
    """The champion as a rival in addition to the real-only trainings; None if there is no champion to beat."""
    if opponent is None or card is None:
        return None
    name = f"champion version {opponent.version}"
    if opponent.test_digest != metrics.test_digest:
        # Accuracies on different images are not paired: refuse rather than guess (docs/adr/0002-champion-on-another-test-split.md).
        problem = f"it was evaluated on test split {opponent.test_digest[:12] or 'unknown'}, the candidate on {metrics.test_digest[:12]}"
        return Rival(name=name, gain=None, problem=problem)
    opponents = opponent.predictions()
    if opponents.test_digest != metrics.test_digest or not np.array_equal(opponents.labels, predictions.labels):
        return Rival(name=name, gain=None, problem="its recorded predictions are about other test images")
    arm = config.promote.arm
    seeds = predictions.seeds(arm)
    if not seeds:
        return Rival(name=name, gain=None, problem=f"there are no predictions of arm {arm}")
    correct = predictions.correct(arm, seeds)
    ((their_arm, their_seed),) = opponents.top
    gain = paired_gain(
        correct,
        np.broadcast_to(opponents.correct(their_arm, [their_seed]), correct.shape),
        predictions.labels.astype(np.int64),
        metrics.classes,
        numpy_stream("stats", config.seed, "promote", opponent.digest),
        sets=sets_of(card.synthetic_parts, seeds),
        groups=predictions.groups,
        alpha=config.promote.alpha,
        confidence=config.evaluate.confidence,
    )
    return Rival(name=name, gain=gain)


def _tags(metrics: Metrics, card: ClassifierCard, gate: GateResult) -> dict[str, str]:
    result = metrics.arms[card.arm]
    tags = {
        "gda.arm": str(card.arm),
        "gda.seed": str(card.seed),
        "gda.snapshot_digest": metrics.snapshot_digest,
        "gda.synthetic_digest": metrics.synthetic_digest or "",
        "gda.base_licence": card.base_licence,
        "gda.test_openings": str(metrics.test_openings or ""),
        "gda.test_top1": f"{result.top1[result.seeds.index(card.seed)]:.6f}",
        "gda.gate": "passed" if gate.promoted else "; ".join(gate.reasons),
    }
    return {name: value[:5000] for name, value in tags.items()}


def _decision(
    config: Config,
    metrics: Metrics,
    gate: GateResult,
    version: Registered | None,
    aliases: tuple[str, ...],
    openings: int | None,
    *,
    dry_run: bool,
) -> Decision:
    return Decision(
        promoted=gate.promoted,
        reasons=gate.reasons,
        candidate=metrics.candidate,
        rival=gate.rival,
        model_name=config.promote.model_name,
        model_version=version.version if version else None,
        aliases=aliases,
        dry_run=dry_run,
        test_openings=openings,
    )


def _openings(metrics: Metrics, registry: Registry, card: ClassifierCard | None) -> int | None:
    """The largest count: the evaluation's, that of this machine's ledger, or the registry's candidates on this test split."""
    if metrics.test_openings is None:
        return None
    candidates = registry.tested_on(metrics.test_digest) | ({card.digest} if card else set())
    on_ledger = count_test_openings(metrics.test_digest, "evaluate", former=metrics.snapshot_digest)
    return max(metrics.test_openings, on_ledger, len(candidates))


def _write(decision: Decision, out: Path, card: str | None, *, done: bool) -> Outcome:
    path, card_path = out / DECISION_FILE, out / MODEL_CARD_FILE
    content = dump_document(decision)
    with rewriting(out):
        with storage_errors(path):
            unchanged = path.is_file() and path.read_bytes() == content
            card_path.unlink(missing_ok=True)  # an earlier candidate's
        if card is not None:
            write_bytes(card_path, card.encode())
        write_bytes(path, content)
    return Outcome(
        output=out,
        digest=digest_of(decision.model_dump(mode="json")),
        summary=_summary(decision) + _looks(decision) + ("; the registry says so already" if done else ""),
        metrics={"promoted": float(decision.promoted)},
        files=(path,) if card is None else (path, card_path),
        refused=not decision.promoted,
        reused=done and unchanged,  # else a process was killed before it wrote what it had carried out
    )


def _looks(decision: Decision) -> str:
    return "" if decision.test_openings is None else f"; this test split was opened {opened(decision.test_openings)}"


def _summary(decision: Decision) -> str:
    name = f"{decision.model_name} version {decision.model_version}" if decision.model_version else "the candidate"
    if not decision.promoted:
        return f"not promoted ({name}, against {decision.rival}): " + "; ".join(decision.reasons)
    if decision.dry_run:
        return f"{name} would be promoted over {decision.rival}; a dry run changes nothing"
    if CHAMPION not in decision.aliases:
        return f"{name} is challenger and passed the gate against {decision.rival}; gda promote makes it champion"
    return f"{name} is champion now: better than {decision.rival} with p <= alpha, an interval above zero and no class harmed"
