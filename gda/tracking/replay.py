"""Logs kept runs to MLflow, each exactly once: a run is found by the key that its client made, even after an interrupted attempt.

A tracking server that is away never costs a result: what could not be logged stays under `.gda/unlogged` and is reported.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gda.errors import GdaError, TryAgainError
from gda.io.locks import locked
from gda.tracking.complaints import complaint_of, explained, mlflow_errors
from gda.tracking.generator_versions import _DIGEST, ensure_version
from gda.tracking.job import TrackedJob
from gda.tracking.runs import RunRecord, read_kept
from gda.tracking.secrets import masked
from gda.tracking.server import connect, ensure_experiment

IDENTITY = "gda.identity"
_PARENT = "mlflow.parentRunId"
REGISTERING = "registering"  # in the folder of kept runs: notes of runs that register a classifier
_WAIT = 120.0  # seconds for another process that logs from the same folder


def flush(folder: Path) -> str | None:
    """Log every kept run once and forget it; returns what could not be logged, in sentences, and keeps what may succeed next time."""
    if not any(folder.glob("*.json")) and not any((folder / REGISTERING).glob("*.json")):
        return None
    try:
        with locked(folder / "lock", busy="another process is logging these runs; they are kept and logged next time", wait=_WAIT):
            return "; ".join(_flush(folder)) or None
    except TryAgainError as error:
        return str(error)


def _flush(folder: Path) -> list[str]:
    notes = []
    try:
        with mlflow_errors():
            client = connect()
            experiment = ensure_experiment(client)
            _end_killed(client, experiment, folder / REGISTERING)
        for path in sorted(folder.glob("*.json"), key=lambda p: p.stat().st_mtime):
            notes += _log_kept(client, experiment, path)
    except GdaError as error:
        left = len(list(folder.glob("*.json")))
        notes.append(f"{error}; {left} runs are kept and logged next time" if left else str(error))
    return notes


def _end_killed(client: Any, experiment: str, folder: Path) -> None:
    for path in folder.glob("*.json"):
        with suppress(TryAgainError), locked(path.with_suffix(".lock"), busy="still at work"):
            with suppress(ValueError, KeyError, TypeError, FileNotFoundError):  # one that was cut short is from before the run began
                end_runs(client, experiment, str(json.loads(path.read_bytes())["key"]))
            path.unlink(missing_ok=True)


def end_runs(client: Any, experiment: str, key: str) -> None:
    """End the runs of this key: FINISHED if they produced a registered model, else KILLED if they are still RUNNING.

    An interruption leaves a run in the state FAILED both before and after the model was registered.
    """
    for run in with_key(client, experiment, key):
        if run.info.status in ("RUNNING", "FAILED"):
            has_version = bool(client.search_model_versions(f"run_id = '{run.info.run_id}'"))
            if has_version or run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, "FINISHED" if has_version else "KILLED")


def _log_kept(client: Any, experiment: str, path: Path) -> list[str]:
    """Log one kept run; a refusal is reported and keeps it, not the runs after it. Raises `TryAgainError` when MLflow is away."""
    try:
        run = read_kept(path)
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError):
        return [f"{path}: not a kept run; remove it"]
    try:
        notes = _log(client, experiment, run)
    except Exception as error:
        complaint = complaint_of(error)
        if complaint is None:
            raise
        if isinstance(complaint, TryAgainError):
            raise complaint from None
        return [f"MLflow refuses {run.name!r} ({complaint}); it is kept as {path} and tried next time"]
    path.unlink()
    return notes


def _log(client: Any, experiment: str, run: RunRecord) -> list[str]:
    """Log `run` to MLflow, also after an interrupted attempt; returns what had to be left out."""
    if not with_key(client, experiment, run.identity):
        tags = dict(run.tags) | {IDENTITY: run.identity} | _below(client, experiment, run.job)
        client.create_run(experiment, start_time=_milliseconds(run.began or run.ended), run_name=masked(run.name), tags=tags)
    logged = _only_one(client, experiment, run)
    with explained(lambda: client.list_artifacts(logged.info.run_id)):
        notes = [] if logged.info.status in ("FINISHED", run.status) else _fill(client, logged, run)
        return notes + (ensure_version(client, logged, run.model) if run.model else [])


def with_key(client: Any, experiment: str, key: str) -> list[Any]:
    """The runs that carry this key, finished ones first, else in an order on which all clients agree."""
    found = client.search_runs([experiment], filter_string=f"tags.`{IDENTITY}` = '{key}'")
    return sorted(found, key=lambda one: (one.info.status != "FINISHED", one.info.run_id))


def _only_one(client: Any, experiment: str, run: RunRecord) -> Any:
    """The run of this key; a reply that was lost on its way makes MLflow's client request twice, and the server make two."""
    from mlflow.exceptions import MlflowException

    logged, *others = with_key(client, experiment, run.identity)
    for other in others:
        if other.info.status != "FINISHED":
            try:
                client.delete_run(other.info.run_id)
            except MlflowException:  # an account that may not delete: what is left is at least no run that never ends
                client.set_terminated(other.info.run_id, "KILLED")
    return logged


def _fill(client: Any, logged: Any, run: RunRecord) -> list[str]:
    from mlflow.entities import Metric, Param

    # Times of the record: MLflow takes equal points with equal times for one, so that a repetition adds nothing.
    run_id, now = logged.info.run_id, _milliseconds(run.ended)
    metrics = [Metric(k, float(v), now, 0) for k, v in run.metrics.items()]
    for k, points in run.curves.items():
        metrics += [Metric(k, float(v), when, int(step)) for (step, v), when in zip(points, _times(run, k), strict=True)]
    client.log_batch(run_id, params=[Param(k, v[:6000]) for k, v in list(run.params.items())[:100]])
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])
    _log_datasets(client, run_id, run.datasets)
    for file in run.files:
        if Path(file).is_file():
            client.log_artifact(run_id, file)
    gone = _log_images(client, run_id, run.images, now)
    client.set_terminated(run_id, run.status, end_time=now)
    return [f"{run.name}: {gone} images were gone before they could be logged"] if gone else []


def _below(client: Any, experiment: str, job: TrackedJob | None) -> dict[str, str]:
    """The tag of a run that belongs to a job; the job's run is created with its first stage."""
    if job is None:
        return {}
    if job.run_id:
        return {_PARENT: job.run_id}
    if not with_key(client, experiment, job.key):
        tags = {IDENTITY: job.key, "gda.stage": "job"}
        client.create_run(experiment, start_time=_milliseconds(job.began), run_name=masked(job.name), tags=tags)
    return {_PARENT: str(with_key(client, experiment, job.key)[0].info.run_id)}


def _times(run: RunRecord, curve: str) -> list[int]:
    """Milliseconds since 1970 of each point of a curve: interpolated between the steps that were timed, else the end of the run."""
    points, known = run.curves[curve], run.times.get(curve)
    if not known:
        return [_milliseconds(run.ended)] * len(points)
    import numpy as np

    steps, times = zip(*known, strict=True)
    return [_milliseconds(when) for when in np.interp([step for step, _ in points], steps, times).tolist()]


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def _log_datasets(client: Any, run_id: str, datasets: Mapping[str, tuple[str, str]]) -> None:
    from mlflow.data.http_dataset_source import HTTPDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    inputs = []
    for context, (path, digest) in datasets.items():
        # MLflow holds 36 characters of a digest; the whole one is in the tag.
        dataset = MetaDataset(source=HTTPDatasetSource(url=f"file:{path}"), name=Path(path).name, digest=digest[:36])
        inputs.append(
            DatasetInput(dataset=dataset._to_mlflow_entity(), tags=[InputTag("mlflow.data.context", context), InputTag(_DIGEST, digest)])
        )
    if inputs:
        client.log_inputs(run_id, datasets=inputs)


def _log_images(client: Any, run_id: str, images: Mapping[str, list[tuple[int, str]]], timestamp: int) -> int:
    """Log each name's images by step, except those already logged; returns how many files were missing."""
    if not images:
        return 0
    from PIL import Image

    # MLflow names a file by key, step, time and chance, and writes its thumbnail last.
    there = {info.path.rsplit("+timestamp+", 1)[0] for info in client.list_artifacts(run_id, "images") if info.path.endswith(".webp")}
    gone = 0
    for name, series in images.items():
        key = re.sub(r"[^A-Za-z0-9_\-. ]", "_", name)
        for step, file in series:
            if f"images/{key}+step+{step}" in there:
                continue
            if not Path(file).is_file():
                gone += 1
                continue
            with Image.open(file) as image:
                client.log_image(run_id, image, key=key, step=step, timestamp=timestamp, synchronous=True)
    return gone
