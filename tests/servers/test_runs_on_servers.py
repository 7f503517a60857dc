"""MLflow over PostgreSQL and S3, killed, stopped, refusing access: no result is lost, no run is logged twice, errors name their cause."""

import json
import os
import socket
import time
from contextlib import ExitStack

import pytest
from gateway import Gateway
from generator_runs import DIGEST, NAME, generator_run
from killing import start, wait
from mlflow import MlflowClient

from gda.cli.main import main
from gda.errors import MissingError, TryAgainError
from gda.tracking import connect, ensure_experiment, flush, keep, mlflow_errors

pytestmark = pytest.mark.servers
SECRET = "a-passw0rd-of-loopback"


@pytest.fixture
def snapshot(small_images):
    """Run the cheapest stage, quietly; returns its exit code."""
    return lambda out="real": main(["snapshot", str(small_images), "--out", out, "--quiet"])


def _on_first(patch, method, action, *, after=False):
    """Let `action` happen at the first call of an MLflow client's method, before or after it has worked."""
    works = getattr(MlflowClient, method)

    def changed(self, *args, **kwargs):
        patch.setattr(MlflowClient, method, works)
        if not after:
            action()
        result = works(self, *args, **kwargs)
        if after:
            action()
        return result

    patch.setattr(MlflowClient, method, changed)


def _whole(run, artifacts):
    """Assert that everything of a generator's run is there once, its files in the artifact store."""
    client = connect()
    assert run.info.status == "FINISHED"
    assert run.data.params == {"steps": "2"}
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "base_loss")] == [(1, 2.0), (2, 1.0)]
    assert len(run.inputs.dataset_inputs) == 1
    folder = artifacts / run.info.experiment_id / run.info.run_id / "artifacts"
    assert json.loads((folder / "generator.json").read_bytes())["digest"] == DIGEST
    assert len(list((folder / "images").glob("*+step+*.png"))) == 2
    (version,) = client.search_model_versions(f"name = '{NAME}'")
    assert (version.run_id, run.data.tags["gda.model"]) == (run.info.run_id, f"models:/{NAME}/{version.version}")
    assert (folder / "generator" / "unet" / "weights").read_bytes().endswith(DIGEST.encode())


@pytest.fixture
def no_generators(project):
    """The registered model is of this test alone."""
    yield
    client = connect()
    if any(model.name == NAME for model in client.search_registered_models()):
        client.delete_registered_model(NAME)


def test_a_stage_is_logged_once(project, snapshot, capsys):
    """The command, the same command again, and any other command: one run and no error."""
    for _ in range(2):
        assert snapshot() == 0
    assert main(["doctor"]) == 0
    assert project.logged() == [("snapshot real", "FINISHED")]
    assert project.kept() == []
    assert capsys.readouterr().err == ""


def test_files_and_weights_lie_in_the_object_store(project, no_generators, generator, s3):
    """What MLflow passes on arrives whole, and logging the same result again adds nothing."""
    for _ in range(2):
        keep(generator_run(generator), project.kept_in)
        assert flush(project.kept_in) is None
    (run,) = project.runs()
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    _whole(run, s3.data / "mlflow" / "artifacts")


def test_a_wrong_password_costs_a_note_and_then_nothing(project, snapshot, capsys):
    """401: the command ends well and names the variables; with the right password the next one logs the run, once."""
    project.server.as_account(project.patch, "admin", SECRET)
    assert snapshot() == 0
    printed = capsys.readouterr()
    assert "does not know this account (401)" in printed.err
    assert "MLFLOW_TRACKING_PASSWORD" in printed.err
    assert SECRET not in printed.err + printed.out
    assert len(project.kept()) == 1
    with pytest.raises(MissingError) as refused, mlflow_errors():
        connect().search_experiments()
    assert refused.value.exit_code == 5
    project.server.as_admin(project.patch)
    for _ in range(2):
        assert main(["doctor"]) == 0
    assert project.logged() == [("snapshot real", "FINISHED")]


@pytest.mark.parametrize("permission", ["READ", "DENY"])
def test_an_account_without_the_permission_is_named(project, snapshot, capsys, permission):
    """403: named as a permission and not as a password or a server that is away, without the secret; the permission mends it."""
    user = f"account-{permission.lower()}"
    number = ensure_experiment(connect())
    project.server.add_account(user, SECRET)
    project.server.grant(user, number, permission)
    project.server.as_account(project.patch, user, SECRET)
    assert snapshot() == 0
    printed = capsys.readouterr()
    assert "does not permit this to the account (403" in printed.err
    assert SECRET not in printed.err + printed.out
    assert project.logged() == []
    with pytest.raises(MissingError) as refused, mlflow_errors():
        connect().create_run(number)
    assert refused.value.exit_code == 5
    project.server.grant(user, number, "EDIT")
    assert main(["doctor"]) == 0
    assert project.logged() == [("snapshot real", "FINISHED")]
    assert project.kept() == []


@pytest.mark.parametrize(("method", "after"), [("create_run", True), ("log_artifact", False)])
def test_a_killed_server_is_given_the_run_once(project, no_generators, generator, s3, method, after):
    """SIGKILL of MLflow while a run is logged: kept with that reason, and completed when it is back."""
    keep(generator_run(generator), project.kept_in)
    with ExitStack() as away:
        _on_first(project.patch, method, lambda: away.enter_context(project.server.server.down()), after=after)
        assert "could not be reached" in (flush(project.kept_in) or "")
        assert len(project.kept()) == 1
    assert flush(project.kept_in) is None
    (run,) = project.runs()
    _whole(run, s3.data / "mlflow" / "artifacts")


@pytest.mark.parametrize(
    ("method", "after"),
    [
        ("create_run", False),
        ("create_run", True),
        ("log_batch", True),
        ("log_inputs", False),
        ("set_terminated", False),
        ("create_model_version", False),
        ("create_model_version", True),
    ],
)
def test_a_crashed_database_is_given_the_run_once(project, no_generators, generator, s3, postgres, method, after):
    """PostgreSQL crashes while MLflow stays up: what it answers is named as a server that is away, and the run is completed after."""
    keep(generator_run(generator), project.kept_in)
    with ExitStack() as away:
        _on_first(project.patch, method, lambda: away.enter_context(postgres.down()), after=after)
        assert "fails to answer (50" in (flush(project.kept_in) or "")
        assert len(project.kept()) == 1
    assert flush(project.kept_in) is None
    (run,) = project.runs()
    _whole(run, s3.data / "mlflow" / "artifacts")


def test_a_database_that_is_down_may_be_tried_again(project, snapshot, postgres, capsys):
    """MLflow is up and answers that it cannot work: exit code 75 where the registry is needed, a kept run elsewhere."""
    ensure_experiment(connect())
    with postgres.down():
        assert snapshot() == 0
        assert "fails to answer (50" in capsys.readouterr().err
        with pytest.raises(TryAgainError), mlflow_errors():
            connect().search_registered_models()
    assert main(["doctor"]) == 0
    assert project.logged() == [("snapshot real", "FINISHED")]


@pytest.mark.parametrize("method", ["log_artifact", "log_image", "log_artifacts"])
def test_an_object_store_that_is_down_is_given_the_files_later(project, no_generators, generator, s3, method):
    """MLflow and its database are up, an upload fails: the run is kept, does not say FINISHED, and is completed once."""
    project.retried(1)
    keep(generator_run(generator), project.kept_in)
    with ExitStack() as away:
        _on_first(project.patch, method, lambda: away.enter_context(s3.server.down()))
        assert "fails to answer (50" in (flush(project.kept_in) or "")
        assert len(project.kept()) == 1
        if method != "log_artifacts":  # the weights come after all else
            assert [run.info.status for run in project.runs()] == ["RUNNING"]
    assert flush(project.kept_in) is None
    (run,) = project.runs()
    _whole(run, s3.data / "mlflow" / "artifacts")


@pytest.mark.parametrize(
    ("fault", "message"),
    [("no bucket", "artifact store has no such bucket"), ("other keys", "artifact store refuses the account of the server")],
)
def test_an_object_store_that_refuses_is_named(project, no_generators, generator, s3, fault, message):
    """MLflow answers 500 to an upload whatever its store says: the reason is requested, and is not taken for the user's own account."""
    project.retried(1)
    keep(generator_run(generator), project.kept_in)
    with s3.without("mlflow") if fault == "no bucket" else s3.with_other_keys():
        text = flush(project.kept_in) or ""
    assert message in text
    assert "MLFLOW_TRACKING_PASSWORD" not in text
    assert flush(project.kept_in) is None
    (run,) = project.runs()
    _whole(run, s3.data / "mlflow" / "artifacts")


def test_a_server_that_never_answers_is_given_up(project, snapshot, capsys):
    """A hung server accepts connections and never answers: the command ends in bounded time, and the run is kept."""
    with socket.create_server(("127.0.0.1", 0)) as hung:
        project.patch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{hung.getsockname()[1]}")
        project.patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        project.patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        begun = time.monotonic()
        assert snapshot() == 0
        assert time.monotonic() - begun < 20
        assert "could not be reached" in capsys.readouterr().err
    project.server.as_admin(project.patch)
    assert main(["doctor"]) == 0
    assert project.logged() == [("snapshot real", "FINISHED")]


def test_the_patience_with_a_hung_server_is_ours(project, monkeypatch):
    """Without settings of the user: 20 s per request, tried three times, instead of MLflow's minutes."""
    for name in ("TIMEOUT", "MAX_RETRIES"):
        monkeypatch.delenv(f"MLFLOW_HTTP_REQUEST_{name}", raising=False)
    connect()
    assert [os.environ[f"MLFLOW_HTTP_REQUEST_{name}"] for name in ("TIMEOUT", "MAX_RETRIES")] == ["20", "2"]


@pytest.mark.parametrize(
    "call", ["POST runs/create", "POST runs/log-batch", "PUT generator.json", "POST runs/update", "POST model-versions/create"]
)
def test_a_server_that_falls_silent_is_given_the_run_once(project, no_generators, generator, s3, call):
    """It hangs in the middle: the run is kept after the patience, and completed when it answers again."""
    keep(generator_run(generator), project.kept_in)
    with Gateway.before(project.server.uri) as gateway:
        project.patch.setenv("MLFLOW_TRACKING_URI", gateway.uri)
        project.patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
        gateway.hold.add(call)
        assert "could not be reached" in (flush(project.kept_in) or "")
        assert len(project.kept()) == 1
        assert gateway.hold == set()
        project.patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        assert flush(project.kept_in) is None
    (run,) = project.runs()
    _whole(run, s3.data / "mlflow" / "artifacts")


@pytest.mark.parametrize(
    "call", ["POST runs/create", "POST runs/log-batch", "PUT generator.json", "POST runs/update", "POST registered-models/create"]
)
def test_a_lost_reply_leaves_one_run(project, no_generators, generator, s3, call):
    """The server has done it and the reply is lost: MLflow's client retries, and one whole run is what remains."""
    keep(generator_run(generator), project.kept_in)
    with Gateway.before(project.server.uri) as gateway:
        project.patch.setenv("MLFLOW_TRACKING_URI", gateway.uri)
        project.retried(2)
        gateway.lose.add(call)
        assert flush(project.kept_in) is None
        assert gateway.lose == set()
    (run,) = project.runs()
    _whole(run, s3.data / "mlflow" / "artifacts")


def test_two_processes_log_a_kept_run_once(project, no_generators, generator, s3):
    """Commands that end together wait for each other: one run, one version, and both end well."""
    keep(generator_run(generator), project.kept_in)
    connect()
    _on_first(project.patch, "create_run", lambda: time.sleep(1))
    both = [start(lambda: _flushed(project.kept_in)) for _ in range(2)]
    assert [wait(child) for child in both] == [0, 0]
    (run,) = project.runs()
    _whole(run, s3.data / "mlflow" / "artifacts")


def _flushed(folder):
    assert flush(folder) is None
