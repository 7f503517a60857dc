"""MLflow runs: one a stage, named datasets by digest. MLflow is imported only when something is logged.

`MLFLOW_TRACKING_URI`, its credentials and `MLFLOW_EXPERIMENT_NAME` in the environment are honoured; SQLite is only the default.
A tracking server that is away never costs a result: what could not be logged is kept under `.gda/unlogged` and said.
"""

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gda.artifacts import Outcome
from gda.recipe import digest_of

DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"
DEFAULT_EXPERIMENT = "gda"
UNLOGGED = "unlogged"


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or SQLite in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI


def experiment_name() -> str:
    """`MLFLOW_EXPERIMENT_NAME`, or `gda`."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT


def connect() -> Any:
    """An MLflow client for `tracking_uri()`, with telemetry off and pickled models refused."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    # A server that is away should be noticed in seconds, not after MLflow's default of several minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri())


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One finished stage as MLflow will see it; kept as JSON until it is logged."""

    stage: str
    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    curves: Mapping[str, list[tuple[int, float]]]
    tags: Mapping[str, str]
    datasets: Mapping[str, tuple[str, str]]  # context -> (path, digest)
    files: tuple[str, ...]
    ended: float

    @property
    def identity(self) -> str:
        """Equal for equal results of one stage, so that nothing is logged twice."""
        return digest_of({"stage": self.stage, "name": self.name, "params": dict(self.params), "tags": dict(self.tags)})


def record(stage: str, name: str, outcome: Outcome, *, params: Mapping[str, Any], datasets: Mapping[str, tuple[str, str]]) -> RunRecord:
    """Describe a finished stage; parameters become strings, the full digest goes into a tag."""
    tags = {"gda.stage": stage, "gda.digest": outcome.digest, "gda.refused": str(outcome.refused).lower()}
    return RunRecord(
        stage=stage,
        name=name,
        params={k: str(v) for k, v in params.items()},
        metrics=outcome.metrics,
        curves=outcome.curves,
        tags=tags,
        datasets=datasets,
        files=tuple(str(path) for path in outcome.files),
        ended=time.time(),
    )


def keep(run: RunRecord, folder: Path) -> Path:
    """Write `run` under `folder` until `flush` has logged it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.identity[:32]}.json"
    path.write_text(json.dumps(run.__dict__, indent=1, default=list), "utf-8")
    return path


def flush(folder: Path) -> str | None:
    """Log every kept run once and forget it; returns a sentence when MLflow could not be reached, and keeps the rest."""
    kept = sorted(folder.glob("*.json"), key=lambda p: p.stat().st_mtime) if folder.is_dir() else []
    if not kept:
        return None
    from mlflow.exceptions import MlflowException

    try:
        client = connect()
        experiment = _experiment(client)
        for path in kept:
            _log(client, experiment, RunRecord(**json.loads(path.read_text("utf-8"))))
            path.unlink()
    except (MlflowException, OSError) as error:
        left = len(list(folder.glob("*.json")))
        where = _without_secrets(tracking_uri())
        return f"MLflow at {where} could not be reached ({type(error).__name__}); {left} runs are kept and logged next time"
    return None


def _experiment(client: Any) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(experiment_name())
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(experiment_name()))
    except MlflowException:  # another process created it in between
        found = client.get_experiment_by_name(experiment_name())
        if found is None:
            raise
        return str(found.experiment_id)


def _log(client: Any, experiment: str, run: RunRecord) -> None:
    from mlflow.entities import Metric, Param, RunTag

    tags = dict(run.tags) | {"gda.identity": run.identity}
    if client.search_runs([experiment], filter_string=f"tags.`gda.identity` = '{run.identity}'", max_results=1):
        return
    created = client.create_run(experiment, run_name=run.name, tags=tags)
    run_id = created.info.run_id
    now = int(run.ended * 1000)
    metrics = [Metric(k, float(v), now, 0) for k, v in run.metrics.items()]
    metrics += [Metric(k, float(v), now, int(step)) for k, points in run.curves.items() for step, v in points]
    client.log_batch(
        run_id, params=[Param(k, v[:6000]) for k, v in list(run.params.items())[:100]], tags=[RunTag(k, v) for k, v in tags.items()]
    )
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])
    _log_datasets(client, run_id, run.datasets)
    for file in run.files:
        if Path(file).is_file():
            client.log_artifact(run_id, file)
    client.set_terminated(run_id, "FINISHED", end_time=now)


def _log_datasets(client: Any, run_id: str, datasets: Mapping[str, tuple[str, str]]) -> None:
    from mlflow.data.http_dataset_source import HTTPDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    inputs = []
    for context, (path, digest) in datasets.items():
        # MLflow holds 36 characters of a digest; the whole one is in the tag.
        dataset = MetaDataset(source=HTTPDatasetSource(url=f"file:{path}"), name=Path(path).name, digest=digest[:36])
        inputs.append(
            DatasetInput(
                dataset=dataset._to_mlflow_entity(), tags=[InputTag("mlflow.data.context", context), InputTag("gda.digest", digest)]
            )
        )
    if inputs:
        client.log_inputs(run_id, datasets=inputs)


def _without_secrets(uri: str) -> str:
    return uri.split("://", 1)[0] + "://" + uri.split("@", 1)[-1] if "@" in uri else uri
