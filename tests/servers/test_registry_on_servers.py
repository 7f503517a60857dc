"""The registry of a real server: one version of one content, whatever replies are lost, and one champion."""

import shutil

import mlflow
import pytest
from evaluation_world import ProcessGroup, config
from gateway import Gateway
from generator_runs import NAME, generator_run

from gda.artifacts.decision import Decision
from gda.artifacts.document import read_document
from gda.errors import MissingError, TryAgainError
from gda.stages import evaluate, promote
from gda.tracking import connect, flush, keep
from gda.tracking.generator_versions import only_version

pytestmark = pytest.mark.servers
SECRET = "a-passw0rd-of-loopback"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A world, and the evaluation of it in which real + synthetic gains 25 points."""
    root = tmp_path_factory.mktemp("promote")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GDA_WORK_DIR", str(root / "work"))
        world, out = ProcessGroup(root / "world"), root / "evaluation"
        runs = {"runs": [world.runs], "snapshot": world.root / "real", "synthetic": world.root / "synthetic"}
        evaluate.run(config(), verdict=world.verdict, out=out, **runs)
    return world, out


@pytest.fixture
def promoted(project, evaluated):
    """Promote the candidate under the model name of this test; returns the decision."""
    evaluation = shutil.copytree(evaluated[1], project.folder / "evaluation")

    def run(**options):
        outcome = promote.run(config(model_name=project.experiment), evaluation=evaluation, verdict=evaluated[0].verdict, **options)
        return read_document(outcome.output / "decision.json", Decision)

    yield run
    mlflow.set_tracking_uri(None)


def _versions(name):
    return connect().search_model_versions(f"name = '{name}'")


def test_a_candidate_is_registered_and_promoted_once(project, promoted, s3):
    """Twice the same: one version, whose files lie in the object store, one champion, no run that is left open."""
    first = promoted()
    assert promoted() == first
    assert first.aliases == ("challenger", "champion")
    (version,) = _versions(project.experiment)
    assert connect().get_model_version_by_alias(project.experiment, "champion").version == version.version
    assert [run.info.status for run in project.runs()] == ["FINISHED"]
    assert any(path.name == "model.safetensors" for path in (s3.data / "mlflow").rglob("*"))


@pytest.mark.parametrize(
    "call",
    [
        "POST runs/create",
        "POST logged-models",
        "POST model-versions/create",
        "POST registered-models/alias champion",
        "POST model-versions/set-tag",
    ],
)
def test_a_lost_reply_leaves_one_version(project, promoted, call):
    """The server has done it and MLflow's client retries: a second version of the same content goes, a second run ends."""
    with Gateway.before(project.server.uri) as gateway:
        project.patch.setenv("MLFLOW_TRACKING_URI", gateway.uri)
        project.retried(2)
        gateway.lose.add(call)
        decision = promoted()
        assert gateway.lose == set()
    assert decision.aliases == ("challenger", "champion")
    (version,) = _versions(project.experiment)
    assert str(version.version) == decision.model_version
    assert "RUNNING" not in {run.info.status for run in project.runs()}


def test_a_second_version_of_a_generator_goes(project, generator):
    """As for a classifier: the oldest stays, the run points at it, and its files are there."""
    name = f"{NAME}-of-a-lost-reply"
    keep(generator_run(generator, model=name), project.kept_in)
    with Gateway.before(project.server.uri) as gateway:
        project.patch.setenv("MLFLOW_TRACKING_URI", gateway.uri)
        project.retried(2)
        gateway.lose.add("POST model-versions/create")
        assert flush(project.kept_in) is None
        assert [times for path, times in gateway.requests.items() if path.endswith("model-versions/create")] == [2]
    (version,), (run,) = _versions(name), project.runs()
    assert str(version.version) == "1"
    assert run.data.tags["gda.model"] == f"models:/{name}/1"


def test_a_second_version_with_an_alias_stays(project, generator):
    """A user moved the alias to the younger of two equal versions: that version is not removed."""
    name = f"{NAME}-with-an-alias"
    keep(generator_run(generator, model=name), project.kept_in)
    assert flush(project.kept_in) is None
    (first,) = _versions(name)
    client = connect()
    for _ in range(2):
        client.create_model_version(name, first.source, run_id=first.run_id, tags=first.tags)
    client.set_registered_model_alias(name, "champion", "2")
    kept = only_version(client, name, first.tags["gda.digest"])
    assert str(kept.version) == "1"
    assert sorted(str(version.version) for version in _versions(name)) == ["1", "2"]


@pytest.mark.parametrize("away", ["database", "object store"])
def test_what_is_away_promotes_nothing(project, promoted, postgres, s3, away):
    """A database or an object store that is down: try again, no champion; after it the same command completes one version."""
    project.retried(1)
    with (postgres if away == "database" else s3.server).down(), pytest.raises(TryAgainError, match="nothing was promoted"):
        promoted()
    assert not (project.folder / "reports/promotion/decision.json").exists()
    decision = promoted()
    assert decision.aliases == ("challenger", "champion")
    assert len(_versions(project.experiment)) == 1
    assert "RUNNING" not in {run.info.status for run in project.runs()}


def test_a_missing_bucket_is_no_reason_to_try_again(project, promoted, s3):
    """A failure that lasts until somebody acts is exit code 5: retrying the step would not help."""
    project.retried(1)
    with s3.without("mlflow"), pytest.raises(MissingError, match=r"no such bucket.*nothing was promoted"):
        promoted()
    assert promoted().aliases == ("challenger", "champion")
    assert len(_versions(project.experiment)) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("POST model-versions/create", "nothing was promoted"),
        ("POST registered-models/alias challenger", "champion is as it was"),
        ("POST registered-models/alias champion", "not known"),
    ],
)
def test_a_server_that_falls_silent_while_promoting(project, promoted, call, message):
    """It hangs in the middle: exit code 75 and what has been changed until then; the same command completes it."""
    with Gateway.before(project.server.uri) as gateway:
        project.patch.setenv("MLFLOW_TRACKING_URI", gateway.uri)
        project.patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
        gateway.hold.add(call)
        with pytest.raises(TryAgainError, match=message):
            promoted()
        project.patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        assert promoted().aliases == ("challenger", "champion")
    assert len(_versions(project.experiment)) == 1


def test_an_account_that_may_not_promote(project, promoted):
    """Another account's model is refused with 403: exit code 5, without the password, and nothing is changed."""
    connect().create_registered_model(project.experiment)
    project.server.add_account("promoter", SECRET)
    project.server.as_account(project.patch, "promoter", SECRET)
    project.patch.setenv("MLFLOW_EXPERIMENT_NAME", f"{project.experiment}-own")
    with pytest.raises(MissingError, match=r"does not permit this.*nothing was promoted") as refused:
        promoted()
    assert SECRET not in str(refused.value)
    assert refused.value.exit_code == 5
    project.server.as_admin(project.patch)
    assert _versions(project.experiment) == []
