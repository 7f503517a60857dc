"""MLflow runs: one a stage, named datasets by digest; a generator also becomes a version of a registered model.

`MLFLOW_TRACKING_URI`, its credentials and `MLFLOW_EXPERIMENT_NAME` in the environment are honoured; SQLite is only the default.
A tracking server that is away never costs a result: what could not be logged is kept under `.gda/unlogged` and said. Every step of
logging can be repeated, so that an interrupted one is completed by the next. MLflow is imported only when something is logged.
"""

import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gda.artifacts import Outcome, RegisteredModel
from gda.io.publish import write_bytes
from gda.model_versions import DIGEST, ensure_version
from gda.recipe import digest_of

DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"
DEFAULT_EXPERIMENT = "gda"
UNLOGGED = "unlogged"
IDENTITY = "gda.identity"


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
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):  # after the import, which sets levels of its own
        logging.getLogger(name).setLevel(logging.ERROR)
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
    images: Mapping[str, list[tuple[int, str]]] = field(default_factory=dict)  # name -> (step, PNG)
    model: RegisteredModel | None = None
    ended: float

    @property
    def identity(self) -> str:
        """Equal for equal results of one stage, so that nothing is logged twice."""
        return digest_of({"stage": self.stage, "name": self.name, "params": dict(self.params), "tags": dict(self.tags)})


def record(stage: str, name: str, outcome: Outcome, *, params: Mapping[str, Any], datasets: Mapping[str, tuple[str, str]]) -> RunRecord:
    """Describe a finished stage; parameters become strings, the full digest goes into a tag, paths become absolute."""
    tags = {"gda.stage": stage, DIGEST: outcome.digest, "gda.refused": str(outcome.refused).lower()}
    return RunRecord(
        stage=stage,
        name=name,
        params={k: str(v) for k, v in params.items()},
        metrics=outcome.metrics,
        curves=outcome.curves,
        tags=tags,
        datasets=datasets,
        files=tuple(str(path.absolute()) for path in outcome.files),
        images={name: [(step, str(path.absolute())) for step, path in series] for name, series in outcome.images.items()},
        model=outcome.model,
        ended=time.time(),
    )


def keep(run: RunRecord, folder: Path) -> Path:
    """Write `run` under `folder` until `flush` has logged it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.identity[:32]}.json"
    content = asdict(run)
    if run.model is not None:
        content["model"]["path"] = str(run.model.path.absolute())
    write_bytes(path, json.dumps(content, indent=1).encode())
    return path


def flush(folder: Path) -> str | None:
    """Log every kept run once and forget it; returns what could not be logged, in sentences, and keeps what may succeed next time."""
    if not any(folder.glob("*.json")):
        return None
    with _alone(folder):
        return "; ".join(_flush(folder)) or None


def _flush(folder: Path) -> list[str]:
    said = []
    try:
        client = connect()
        experiment = _experiment(client)
        for path in sorted(folder.glob("*.json"), key=lambda p: p.stat().st_mtime):
            said += _log_kept(client, experiment, path)
    except Exception as error:  # an artifact store raises what it likes: those of the clouds are no OSError
        left = len(list(folder.glob("*.json")))
        where = _without_secrets(tracking_uri())
        said.append(f"MLflow at {where} could not be reached ({type(error).__name__}); {left} runs are kept and logged next time")
    return said


def _log_kept(client: Any, experiment: str, path: Path) -> list[str]:
    """Log one kept run; a refusal is said and keeps it, but does not keep the runs after it."""
    from mlflow.exceptions import MlflowException

    try:
        run = _read(path)
    except (ValueError, TypeError, KeyError):
        return [f"{path}: not a kept run; remove it"]
    try:
        said = _log(client, experiment, run)
    except MlflowException as error:
        if not 400 <= error.get_http_status_code() < 429:
            raise
        reason = _without_secrets(error.message.splitlines()[0].rstrip("."))
        return [f"MLflow refuses {run.name!r} ({reason}); it is kept as {path} and tried next time"]
    path.unlink()
    return said


def _read(path: Path) -> RunRecord:
    content = json.loads(path.read_text("utf-8"))
    model = content.get("model")
    if model is not None:
        content["model"] = RegisteredModel(**model | {"path": Path(model["path"])})
    return RunRecord(**content)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for other processes that log from `folder`: two at once would log a run twice."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _artifact_location() -> str | None:
    """`mlruns` beside a SQLite file that is named by its absolute path; MLflow's own choice is the working directory."""
    path = tracking_uri().removeprefix("sqlite:///")
    return (Path(path).parent / "mlruns").as_uri() if path != tracking_uri() and Path(path).is_absolute() else None


def _experiment(client: Any) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(experiment_name())
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(experiment_name(), artifact_location=_artifact_location()))
    except MlflowException:  # another process created it in between
        found = client.get_experiment_by_name(experiment_name())
        if found is None:
            raise
        return str(found.experiment_id)


def _log(client: Any, experiment: str, run: RunRecord) -> list[str]:
    """Bring MLflow to the state in which `run` is logged, whatever an interrupted attempt has left; returns what had to be left out."""
    found = client.search_runs([experiment], filter_string=f"tags.`{IDENTITY}` = '{run.identity}'", max_results=1)
    if found:
        logged = found[0]
    else:
        tags = dict(run.tags) | {IDENTITY: run.identity}
        logged = client.create_run(experiment, start_time=int(run.ended * 1000), run_name=run.name, tags=tags)
    said = [] if logged.info.status == "FINISHED" else _fill(client, logged, run)
    return said + (ensure_version(client, logged, run.model) if run.model else [])


def _fill(client: Any, logged: Any, run: RunRecord) -> list[str]:
    from mlflow.entities import Metric, Param

    # The run's own time: MLflow takes equal points with equal times for one, so that a repetition adds nothing.
    run_id, now = logged.info.run_id, logged.info.start_time
    metrics = [Metric(k, float(v), now, 0) for k, v in run.metrics.items()]
    metrics += [Metric(k, float(v), now, int(step)) for k, points in run.curves.items() for step, v in points]
    client.log_batch(run_id, params=[Param(k, v[:6000]) for k, v in list(run.params.items())[:100]])
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])
    _log_datasets(client, run_id, run.datasets)
    for file in run.files:
        if Path(file).is_file():
            client.log_artifact(run_id, file)
    gone = _log_images(client, run_id, run.images, now)
    client.set_terminated(run_id, "FINISHED", end_time=now)
    return [f"{run.name}: {gone} images were gone before they could be logged"] if gone else []


def _log_datasets(client: Any, run_id: str, datasets: Mapping[str, tuple[str, str]]) -> None:
    from mlflow.data.http_dataset_source import HTTPDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    inputs = []
    for context, (path, digest) in datasets.items():
        # MLflow holds 36 characters of a digest; the whole one is in the tag.
        dataset = MetaDataset(source=HTTPDatasetSource(url=f"file:{path}"), name=Path(path).name, digest=digest[:36])
        inputs.append(
            DatasetInput(dataset=dataset._to_mlflow_entity(), tags=[InputTag("mlflow.data.context", context), InputTag(DIGEST, digest)])
        )
    if inputs:
        client.log_inputs(run_id, datasets=inputs)


def _log_images(client: Any, run_id: str, images: Mapping[str, list[tuple[int, str]]], timestamp: int) -> int:
    """Log each name's images over steps, but those that are there already; returns how many files were gone."""
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


def _without_secrets(text: str) -> str:
    return re.sub(r"://\S*@", "://", text)
