"""MLflow is never in the way: results are kept while it is away, and logged once when it is back."""

from pathlib import Path

import pytest

from gda.artifacts.outcome import Outcome
from gda.tracking import connect, flush, keep, record, tracking_uri


def _run(name="finetune generator"):
    outcome = Outcome(output=Path("x"), digest="d" * 64, summary="", metrics={"loss": 0.5}, curves={"base_loss": [(1, 2.0), (2, 1.0)]})
    return record("finetune", name, outcome, params={"steps": 2}, datasets={"snapshot": ("data/real", "e" * 64)})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tests")
    return tmp_path / "unlogged"


def test_runs_kept_while_the_server_is_away_are_logged_once(folder, monkeypatch):
    """An unreachable server costs a sentence, not a result; when it is back each run is logged exactly once."""
    here = tracking_uri()
    keep(_run(), folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    problem = flush(folder)
    assert problem is not None
    assert "1 runs are kept" in problem
    assert len(list(folder.glob("*.json"))) == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", here)
    assert flush(folder) is None
    keep(_run(), folder)  # the same result, reported twice
    assert flush(folder) is None
    client = connect()
    runs = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert len(runs) == 1
    assert runs[0].data.metrics["loss"] == 0.5
    assert [m.value for m in client.get_metric_history(runs[0].info.run_id, "base_loss")] == [2.0, 1.0]
    assert runs[0].inputs.dataset_inputs[0].dataset.digest == "e" * 36
    assert list(folder.glob("*.json")) == []


def test_a_password_in_the_address_is_not_printed(folder, monkeypatch):
    """What could not be reached is named without its credentials."""
    keep(_run(), folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert "secret" not in (flush(folder) or "secret")
