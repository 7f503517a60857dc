"""promote with a real MLflow on SQLite: versions, aliases, the champion as rival, and every way it must not promote."""

import json
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
import requests
from evaluation_world import ProcessGroup, config

from gda.artifacts.decision import Decision
from gda.artifacts.document import dump_document, read_document
from gda.artifacts.evaluation import Metrics
from gda.artifacts.outcome import Outcome
from gda.config.sections import Arm
from gda.data.store.predictions import Predictions, read_predictions, write_predictions
from gda.data.test_split.ledger import read_ledger, record_test_opening
from gda.errors import DataError, TryAgainError
from gda.registry.model_registry import Registered, Registry
from gda.stages import evaluate, promote


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[ProcessGroup, Path]:
    """A world, and the evaluation of it in which real + synthetic gains 25 points."""
    root = tmp_path_factory.mktemp("promote")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GDA_WORK_DIR", str(root / "work"))
        world = ProcessGroup(root / "world")
        out = root / "evaluation"
        evaluate.run(
            config(), runs=[world.runs], snapshot=world.root / "real", synthetic=world.root / "synthetic", verdict=world.verdict, out=out
        )
    return world, out


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with tables and nothing in them: making one takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def evaluation(evaluated: tuple[ProcessGroup, Path], empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the evaluation, in a working directory with an MLflow of its own."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return Path(shutil.copytree(evaluated[1], tmp_path / "evaluation"))


def run(evaluated: tuple[ProcessGroup, Path], evaluation: Path, *, dry_run: bool = False, **settings: object) -> Outcome:
    return promote.run(config(**settings), evaluation=evaluation, verdict=evaluated[0].verdict, dry_run=dry_run)


def decision_of(outcome: Outcome) -> Decision:
    return read_document(outcome.output / "decision.json", Decision)


def rewrite(evaluation: Path, **changes: object) -> None:
    """Change fields of metrics.json."""
    path = evaluation / "metrics.json"
    path.write_bytes(dump_document(read_document(path, Metrics).model_copy(update=changes)))


def candidate(world: ProcessGroup, evaluation: Path, *, seed: int, wrong_test_images: int) -> None:
    """Another candidate, with a chosen number of test images wrong in every seed of its arm."""
    folder = world.add_classifier(Arm.MIXED, seed, folder=evaluation.parent / f"candidate-{seed}", digest=f"{seed:064d}")
    metrics = read_document(evaluation / "metrics.json", Metrics)
    assert metrics.candidate is not None
    rewrite(evaluation, candidate=metrics.candidate.model_copy(update={"path": folder.as_posix(), "digest": f"{seed:064d}", "seed": 0}))
    old = read_predictions(evaluation / "predictions.safetensors")
    top = dict(old.top)
    right = np.stack([(old.labels + shift) % 4 for shift in range(4)], axis=1).astype(np.int32)
    for number in range(6):
        own = right.copy()
        own[:wrong_test_images] = np.roll(own[:wrong_test_images], 1, axis=1)
        top[Arm.MIXED, number] = own
    write_predictions(evaluation / "predictions.safetensors", Predictions(labels=old.labels, top=top, test_digest=old.test_digest))
    card = json.loads((folder / "classifier.json").read_text())
    (folder / "classifier.json").write_text(json.dumps(card | {"seed": 0}))


def test_a_gain_makes_the_candidate_champion_once(evaluated: tuple[ProcessGroup, Path], evaluation: Path) -> None:
    """Protects the whole way into the registry, its tags, and that a second run adds no version and decides the same."""
    first = decision_of(run(evaluated, evaluation))
    assert first.promoted
    assert first.reasons == ()
    assert first.rival == "real"
    assert first.aliases == ("challenger", "champion")
    text = (evaluation.parent / "reports/promotion/MODEL_CARD.md").read_text()
    assert "Promoted: better than real by interval and by test" in text
    assert "models:/tiny/1" in text
    assert first.model_version == "1"
    again = decision_of(run(evaluated, evaluation))
    assert again == first
    versions = mlflow.MlflowClient().search_model_versions("name = 'tiny'")
    assert [v.version for v in versions] == ["1"] or [v.version for v in versions] == [1]
    metrics = read_document(evaluation / "metrics.json", Metrics)
    assert metrics.candidate is not None
    assert versions[0].tags["gda.digest"] == metrics.candidate.digest
    assert "It passed the promotion gate." in versions[0].description
    assert versions[0].tags["gda.test_digest"] == metrics.test_digest
    images = np.full((3, 24, 16, 3), (200, 40, 40), dtype=np.uint8)
    loaded = mlflow.pyfunc.load_model("models:/tiny@champion").predict(images)
    assert loaded.shape == (3, 4)
    assert (loaded.argmax(axis=1) == 3).all()


def test_promoting_says_how_often_the_test_split_was_opened(evaluated: tuple[ProcessGroup, Path], evaluation: Path) -> None:
    """Protects anyone who promotes: the closing line, the decision and the tags count the looks, and promoting is none of them."""
    message = run(evaluated, evaluation)
    assert message.summary.endswith("no class harmed; this test split was opened once")
    assert decision_of(message).test_openings == 1
    assert read_ledger() == []
    metrics = read_document(evaluation / "metrics.json", Metrics)
    for number in range(3):  # of other classifiers since
        record_test_opening(metrics.test_digest, "evaluate", work=f"w{number}")
    later = run(evaluated, evaluation)
    assert "; this test split was opened 3 times: each further look weakens it" in later.summary
    assert decision_of(later).test_openings == 3
    rewrite(evaluation, test_openings=None)
    assert "opened" not in run(evaluated, evaluation, dry_run=True).summary
    (version,) = mlflow.MlflowClient().search_model_versions("name = 'tiny'")
    assert version.tags["gda.test_openings"] == "1"


def test_candidates_of_other_machines_are_looks(evaluated: tuple[ProcessGroup, Path], evaluation: Path) -> None:
    """Protects the count where ledgers are not shared: each other candidate in the registry was tested on this split, this one once."""
    assert decision_of(run(evaluated, evaluation)).test_openings == 1
    candidate(evaluated[0], evaluation, seed=7, wrong_test_images=0)
    assert decision_of(run(evaluated, evaluation, dry_run=True)).test_openings == 2
    for _ in range(2):
        assert decision_of(run(evaluated, evaluation)).test_openings == 2
    assert Registry("tiny").tested_on("another") == frozenset()


def test_a_dry_run_changes_nothing(evaluated: tuple[ProcessGroup, Path], evaluation: Path) -> None:
    """Protects --dry-run: the decision is recorded, the registry stays empty."""
    outcome = run(evaluated, evaluation, dry_run=True)
    decision = decision_of(outcome)
    assert decision.promoted
    assert decision.dry_run
    assert decision.model_version is None
    assert "would be promoted" in outcome.summary
    assert mlflow.MlflowClient().search_registered_models() == []


def test_registering_alone_leaves_champion(evaluated: tuple[ProcessGroup, Path], evaluation: Path) -> None:
    """A gate that holds makes a challenger; `champion` waits for the account that may move it, whose decision is then the same."""
    verdict = evaluated[0].verdict
    registered = promote.run(config(), evaluation=evaluation, verdict=verdict, register_only=True)
    decision = decision_of(registered)
    assert decision.promoted
    assert decision.aliases == ("challenger",)
    assert "passed the gate against real; gda promote makes it champion" in registered.summary
    assert Registry(config().promote.model_name).champion() is None
    moved = decision_of(run(evaluated, evaluation))
    assert moved.aliases == ("challenger", "champion")
    assert moved.model_version == decision.model_version


def test_a_refused_candidate_is_challenger_only(evaluated: tuple[ProcessGroup, Path], evaluation: Path) -> None:
    """Protects the champion alias from a gate that does not hold, and that the refusal is a result with its reasons."""
    outcome = run(evaluated, evaluation, min_seeds=7)
    decision = decision_of(outcome)
    assert not decision.promoted
    assert outcome.refused
    assert decision.aliases == ("challenger",)
    assert decision.reasons == ("only 6 seeds; at least 7 are needed",)
    assert "only 6 seeds" in outcome.summary


def test_the_champion_is_the_rival(evaluated: tuple[ProcessGroup, Path], evaluation: Path) -> None:
    """Protects the champion: a later candidate must beat it on the same test images, and only then takes the alias."""
    candidate(evaluated[0], evaluation, seed=20, wrong_test_images=30)
    assert decision_of(run(evaluated, evaluation)).promoted
    candidate(evaluated[0], evaluation, seed=21, wrong_test_images=30)
    equal = decision_of(run(evaluated, evaluation))
    assert not equal.promoted
    assert equal.rival == "champion version 1"
    assert equal.aliases == ("challenger",)
    candidate(evaluated[0], evaluation, seed=22, wrong_test_images=0)
    better = decision_of(run(evaluated, evaluation))
    assert better.promoted
    assert better.rival == "champion version 1"
    assert better.aliases == ("challenger", "champion")
    assert decision_of(run(evaluated, evaluation)) == better


def test_a_champion_on_other_test_images_is_not_replaced(evaluated: tuple[ProcessGroup, Path], evaluation: Path) -> None:
    """Protects against comparing accuracies on different images: refused with the reason, and registered as challenger."""
    run(evaluated, evaluation)
    candidate(evaluated[0], evaluation, seed=23, wrong_test_images=0)
    old = read_predictions(evaluation / "predictions.safetensors")
    write_predictions(evaluation / "predictions.safetensors", Predictions(labels=old.labels, top=old.top, test_digest="6" * 64))
    rewrite(evaluation, test_digest="6" * 64)
    decision = decision_of(run(evaluated, evaluation))
    assert not decision.promoted
    assert decision.aliases == ("challenger",)
    assert "was evaluated on test split" in decision.reasons[0]


def test_a_champion_registered_elsewhere_is_not_replaced(evaluated: tuple[ProcessGroup, Path], evaluation: Path) -> None:
    """Protects a champion of which no test predictions are known: there is nothing to compare with, so it stays."""
    registry = Registry("tiny")
    client = mlflow.MlflowClient()
    client.create_registered_model("tiny")
    client.create_model_version("tiny", source=str(evaluation))
    client.set_registered_model_alias("tiny", "champion", "1")
    decision = decision_of(run(evaluated, evaluation))
    assert not decision.promoted
    assert "test split unknown" in decision.reasons[0]
    champion = registry.champion()
    assert champion is not None
    assert champion.version == "1"


def test_without_a_candidate_nothing_is_registered(evaluated: tuple[ProcessGroup, Path], evaluation: Path) -> None:
    """Protects the run after a refused set: a recorded refusal, an untouched registry, no error."""
    rewrite(evaluation, candidate=None)
    decision = decision_of(run(evaluated, evaluation))
    assert not decision.promoted
    assert "there is no candidate" in decision.reasons
    assert mlflow.MlflowClient().search_registered_models() == []


def test_a_candidate_that_changed_since_is_refused(evaluated: tuple[ProcessGroup, Path], evaluation: Path) -> None:
    """Protects against promoting other weights than those that were evaluated."""
    candidate(evaluated[0], evaluation, seed=24, wrong_test_images=0)
    metrics = read_document(evaluation / "metrics.json", Metrics)
    assert metrics.candidate is not None
    rewrite(evaluation, candidate=metrics.candidate.model_copy(update={"digest": "5" * 64}))
    with pytest.raises(DataError, match="run evaluate again"):
        run(evaluated, evaluation)


def test_a_candidate_whose_weights_were_replaced_is_refused(evaluated: tuple[ProcessGroup, Path], evaluation: Path) -> None:
    """Protects the registry: a card with the right digest next to other weights is not the classifier that was evaluated."""
    candidate(evaluated[0], evaluation, seed=25, wrong_test_images=0)
    metrics = read_document(evaluation / "metrics.json", Metrics)
    assert metrics.candidate is not None
    weights = Path(metrics.candidate.path) / "model.safetensors"
    weights.write_bytes((evaluated[0].runs / "real-0" / "model.safetensors").read_bytes())
    with pytest.raises(DataError, match=r"model\.safetensors: holds weights"):
        run(evaluated, evaluation)


def test_mlflow_away_promotes_nothing(evaluated: tuple[ProcessGroup, Path], evaluation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects results when the server is down: a retryable error, and no decision that says promoted."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TryAgainError, match=r"MLflow could not be reached.*nothing was promoted"):
        run(evaluated, evaluation)
    assert not Path("reports/promotion/decision.json").exists()


def test_a_promotion_in_between_wins(evaluated: tuple[ProcessGroup, Path], evaluation: Path) -> None:
    """Protects two promotions at once: anyone who was assessed against a champion that is gone must be assessed again."""
    run(evaluated, evaluation)
    registry = Registry("tiny")
    champion = registry.champion()
    assert champion is not None
    late = Registered(name="tiny", version="2", digest="", test_digest="", beat_version="")
    with pytest.raises(TryAgainError, match="champion changed"):
        registry.promote(late, over=None)
    assert registry.champion() == champion


def test_a_crash_between_registering_and_promoting_is_made_good(
    evaluated: tuple[ProcessGroup, Path], evaluation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects the step between version and alias: the next run finds the version and finishes, with one version and one champion."""
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "promote", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(evaluated, evaluation)
    assert Registry("tiny").champion() is None
    decision = decision_of(run(evaluated, evaluation))
    assert decision.promoted
    assert decision.model_version == "1"
    assert "champion" in decision.aliases


def test_a_dry_run_leaves_the_real_decision(evaluated: tuple[ProcessGroup, Path], evaluation: Path) -> None:
    """Protects the record of what was done: a dry run writes its decision and card into a folder of its own."""
    out = run(evaluated, evaluation).output
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    dry = run(evaluated, evaluation, dry_run=True, alpha=1e-9)
    assert not decision_of(dry).promoted
    assert dry.output == out / "dry-run"
    assert before == {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def test_the_same_decision_again_does_nothing(
    evaluated: tuple[ProcessGroup, Path], evaluation: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path
) -> None:
    """Protects a registry that is requested each time: no change where the decision stands, all of it in an empty registry."""
    run(evaluated, evaluation)
    changes = []
    with monkeypatch.context() as patch:
        for name in ("register", "promote", "describe", "settle"):
            patch.setattr(Registry, name, lambda *_, name=name, **__: changes.append(name))
        again = run(evaluated, evaluation)
    assert changes == []
    assert again.reused
    assert "already" in again.summary
    assert decision_of(again).aliases == ("challenger", "champion")
    mlflow.MlflowClient().delete_registered_model_alias("tiny", "champion")
    assert not run(evaluated, evaluation).reused
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(empty_database, evaluation.parent / 'other.db')}")
    fresh = run(evaluated, evaluation)
    assert not fresh.reused
    assert decision_of(fresh).aliases == ("challenger", "champion")


def test_a_crash_before_the_decision_is_written_is_made_good(
    evaluated: tuple[ProcessGroup, Path], evaluation: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects the run of a promotion that was carried out and then killed: the next one says it, so that it is logged."""
    with monkeypatch.context() as patch:
        patch.setattr(promote, "_write", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(evaluated, evaluation)
    again = run(evaluated, evaluation)
    assert not again.reused
    assert decision_of(again).aliases == ("challenger", "champion")
    assert run(evaluated, evaluation).reused


@pytest.mark.parametrize(
    ("method", "after", "message"),
    [
        ("_create_model_version", False, "nothing was promoted"),
        ("set_model_version_tag", False, "champion is as it was"),
        ("set_registered_model_alias", True, "not known"),
        ("update_model_version", False, "version 1 is champion"),
    ],
)
def test_a_failure_says_what_has_been_changed(
    evaluated: tuple[ProcessGroup, Path], evaluation: Path, monkeypatch: pytest.MonkeyPatch, method: str, after: bool, message: str
) -> None:
    """Protects the truth of messages: champion has moved, has not, or nobody knows; the same command completes it."""
    works = getattr(mlflow.MlflowClient, method)

    def failing(self: mlflow.MlflowClient, *args: object, **kwargs: object) -> object:
        if method == "set_registered_model_alias" and "champion" not in args:
            return works(self, *args, **kwargs)
        if after:
            works(self, *args, **kwargs)
        raise requests.ConnectionError("Connection reset by peer")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, method, failing)
        with pytest.raises(TryAgainError, match=message) as raised:
            run(evaluated, evaluation)
    champion = Registry("tiny").champion()
    assert "nothing was promoted" not in str(raised.value) or champion is None
    assert "is champion" not in str(raised.value) or champion is not None
    assert decision_of(run(evaluated, evaluation)).aliases == ("challenger", "champion")
    assert len(mlflow.MlflowClient().search_model_versions("name = 'tiny'")) == 1
