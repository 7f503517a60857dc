"""Tracking on PostgreSQL and S3 behind an MLflow server with accounts, as a cluster has it."""

import shutil

import pytest
from tiny_pipelines import build_tiny_pipeline

from gda.artifacts import GeneratorCard, Outcome, dump_document
from gda.model_versions import generator_model
from gda.tracking import connect, ensure_experiment, flush, keep, record

pytestmark = pytest.mark.servers


def test_a_run_with_its_generator_is_logged_once(mlflow_on_postgres, tmp_path, monkeypatch):
    """Metrics, files and a registered generator go through the server, and a repetition adds nothing."""
    mlflow_on_postgres.as_admin(monkeypatch)
    weights = build_tiny_pipeline("sd1", tmp_path / "sd1")
    card = GeneratorCard(family="latent_unet", digest="d" * 64, base_digest="b" * 64, snapshot_digest="e" * 64, licence="x")
    (weights / "generator.json").write_bytes(dump_document(card))
    outcome = Outcome(
        output=weights,
        digest=card.digest,
        summary="",
        metrics={"loss": 0.5},
        curves={"loss_curve": [(step, 1.0) for step in range(2000)]},
        files=(weights / "generator.json",),
        model=generator_model("generator", weights, card),
    )
    for _ in range(2):
        keep(record("finetune", "finetune generator", outcome, params={}, datasets={}), tmp_path / "unlogged")
        assert flush(tmp_path / "unlogged") is None
    client = connect()
    (run,) = client.search_runs([ensure_experiment(client)])
    assert run.info.status == "FINISHED"
    (version,) = client.search_model_versions("name = 'generator'")
    assert version.run_id == run.info.run_id
    shutil.rmtree(weights)
    assert "generator" in {info.path for info in client.list_artifacts(run.info.run_id)}
