"""A run is logged exactly once, by the next command of any kind, wherever the process that made it was killed."""

import json
import shutil
import subprocess
import sys

import mlflow
import pytest
from mlflow import MlflowClient

import gda.bookkeeping
import gda.cli.main
from gda.cli.main import main
from gda.registry.runs import registering
from gda.tracking import connect
from gda.tracking.sqlite import ensure_database


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    ensure_database(f"sqlite:///{path}")
    return path


@pytest.fixture
def place(tmp_path, monkeypatch, empty):
    shutil.copy(empty, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / ".gda"))
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return tmp_path


def _names():
    client = connect()
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return sorted((run.info.run_name, run.info.status) for run in found)


def _kept(place):
    return list((place / ".gda" / "unlogged").rglob("*.json"))


def _snapshot(images, out="real"):
    return main(["snapshot", str(images), "--out", out, "--quiet"])


@pytest.mark.parametrize("again", [["snapshot", "IMAGES", "--out", "real"], ["verify", "real"], ["doctor"]])
def test_the_next_command_logs_what_was_kept(place, small_images, monkeypatch, capsys, again):
    """The server is back: the same command, which is up to date, or any tool logs the run, once."""
    here = f"sqlite:///{place}/mlflow.db"
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert _snapshot(small_images) == 0
    assert "1 runs are kept" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", here)
    for _ in range(2):
        assert main([word.replace("IMAGES", str(small_images)) for word in again]) == 0
    assert _names() == [("snapshot real", "FINISHED")]
    assert _kept(place) == []


@pytest.mark.parametrize("again", ["real", "other"])
def test_killed_between_publishing_and_keeping_it_is_logged(place, small_images, monkeypatch, again):
    """The output is there and its run is not kept yet: the same command or another one logs it, with digest and counts."""
    with monkeypatch.context() as patch:
        patch.setattr(gda.cli.main, "note", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert _snapshot(small_images) == 75
    assert (place / "real" / "snapshot.json").is_file()
    assert _snapshot(small_images, again) == 0
    assert sorted(name for name, _ in _names()) == sorted({"snapshot real", f"snapshot {again}"})
    client = connect()
    (run,) = client.search_runs([client.get_experiment_by_name("gda").experiment_id], "attributes.run_name = 'snapshot real'")
    assert run.data.tags["gda.digest"] == json.loads((place / "real" / "snapshot.json").read_bytes())["digest"]
    assert run.data.metrics["images_train"] == 8
    assert _kept(place) == []


def test_killed_after_keeping_it_is_logged_once(place, small_images, monkeypatch):
    """Killed a moment later, kept and noted at once: both are of one key."""
    with monkeypatch.context() as patch:
        patch.setattr("gda.tracking.flush", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert _snapshot(small_images) == 75
    assert len(_kept(place)) == 2
    assert main(["doctor"]) == 0
    assert _names() == [("snapshot real", "FINISHED")]


def test_a_command_that_failed_leaves_no_note(place):
    """Nothing was published, so nothing is to be logged."""
    assert main(["snapshot", "nowhere", "--out", "real"]) in (2, 3)
    assert _kept(place) == []
    assert main(["doctor"]) == 0


def test_a_lost_reply_leaves_one_finished_run(place, small_images, monkeypatch):
    """MLflow's client retries when no reply came, and the server makes two runs: one is filled, the other goes."""
    works = MlflowClient.create_run

    def twice(self, *args, **kwargs):
        works(self, *args, **kwargs)
        return works(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_run", twice)
    assert _snapshot(small_images) == 0
    assert _names() == [("snapshot real", "FINISHED")]


def test_a_defect_of_ours_is_not_taken_for_a_complaint(place, small_images, monkeypatch):
    """An error of our own while logging is exit code 1, and the run is still kept."""
    monkeypatch.setattr("gda.tracking.replay._log_datasets", lambda *_: {}["missing"])
    assert _snapshot(small_images) == 1
    assert _kept(place) != []


def test_secrets_of_the_configuration_are_not_logged(place, small_images, monkeypatch):
    """A source with a password or a token in its address is a parameter without them, in MLflow and in the kept file."""
    secret = "https://bob:hunter22@host/x?token=t0k3nt0k3n"
    assert main(["snapshot", str(small_images), "--out", "real", "--quiet", "--set", f"snapshot.source={secret}"]) == 0
    client = connect()
    (run,) = client.search_runs([client.get_experiment_by_name("gda").experiment_id])
    assert run.data.params["source"] == "https://host/x?token=***"


def test_a_moved_project_is_reported(place, small_images, monkeypatch, capsys):
    """Artifacts would go to the folder's old place, which is made again in silence: it is named instead, and results are kept."""
    assert _snapshot(small_images) == 0
    new = place.with_name(place.name + "-moved")
    place.rename(new)
    try:
        monkeypatch.chdir(new)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
        monkeypatch.setenv("GDA_WORK_DIR", str(new / ".gda"))
        assert _snapshot(small_images, "other") == 0
        assert "was moved or copied" in capsys.readouterr().err
        assert not place.exists()
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "new")
        assert main(["doctor"]) == 0
        assert _kept(new) == []
    finally:
        monkeypatch.chdir(new.parent)
        new.rename(place)


def test_a_deleted_experiment_is_reported(place, small_images, capsys):
    """The remedy is named; after it the run is logged."""
    client = connect()
    number = client.create_experiment("gda")
    client.delete_experiment(number)
    assert _snapshot(small_images) == 0
    assert "mlflow experiments restore" in capsys.readouterr().err
    client.restore_experiment(number)
    assert main(["doctor"]) == 0
    assert _names() == [("snapshot real", "FINISHED")]


_KILLED = """
import os
from gda.registry.runs import registering
from gda.tracking import connect
with registering(connect(), {"digest": "d"}, "candidate"):
    os._exit(9)
"""


def test_a_killed_registration_ends_its_run_at_the_next_command(place):
    """A process that dies while it registers a classifier leaves a run that says RUNNING; the next command of any kind ends it."""
    killed = subprocess.run([sys.executable, "-c", _KILLED], cwd=place, check=False, capture_output=True, text=True)
    assert killed.returncode == 9, killed.stderr
    assert _names() == [("candidate", "RUNNING")]
    assert main(["doctor"]) == 0
    assert _names() == [("candidate", "KILLED")]
    assert _kept(place) == []


def _interrupted_registration(registered):
    client = connect()
    with registering(client, {"digest": "d"}, "candidate"):
        if registered:
            run = mlflow.active_run().info
            client.create_registered_model("m")
            client.create_model_version("m", run.artifact_uri, run.run_id)
        raise KeyboardInterrupt


@pytest.mark.parametrize(("registered", "status"), [(True, "FINISHED"), (False, "FAILED")])
def test_a_run_that_failed_after_it_registered_a_model_is_finished(place, registered, status):
    """An interruption between the version and the end of its run must not leave a model that comes of a run stated to have failed."""
    with pytest.raises(KeyboardInterrupt):
        _interrupted_registration(registered)
    assert _names() == [("candidate", "FAILED")]
    assert main(["recipes"]) == 0
    assert _names() == [("candidate", status)]
    assert _kept(place) == []


def test_a_registration_is_made_here_whatever_the_process_used_before(place, empty, monkeypatch):
    """MLflow remembers the last server of a process. A registration goes to the server of its own environment, and leaves no trace."""
    mlflow.set_tracking_uri(f"sqlite:///{shutil.copy(empty, place / 'other.db')}")
    here = f"sqlite:///{place}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", here)
    with registering(connect(), {"digest": "d"}, "candidate"):
        assert mlflow.get_tracking_uri() == here
    assert _names() == [("candidate", "FINISHED")]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert mlflow.get_tracking_uri() == "http://127.0.0.1:9"
