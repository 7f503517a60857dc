"""One finished stage as MLflow will see it, kept as a file until it is logged."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gda.artifacts.fingerprint import digest_of
from gda.artifacts.outcome import Outcome, RegisteredModel
from gda.io.atomic import write_bytes
from gda.runtime.disks import storage_errors
from gda.tracking.generator_versions import _DIGEST
from gda.tracking.job import StepTimes, TrackedJob, current_job
from gda.tracking.secrets import masked

UNLOGGED = "unlogged"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One finished stage, or a finished job, as MLflow will see it; kept as JSON until it is logged.

    `began` and `ended` are seconds since 1970. `times` has (step, time) by curve, for the points of the curve that were timed.
    """

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
    began: float | None = None
    times: Mapping[str, list[tuple[int, float]]] = field(default_factory=dict)
    job: TrackedJob | None = None
    key: str = ""
    status: str = "FINISHED"

    @property
    def identity(self) -> str:
        """Equal for equal results of one stage, so that nothing is logged twice; a job has a key of its own."""
        return self.key or digest_of({"stage": self.stage, "name": self.name, "params": dict(self.params), "tags": dict(self.tags)})


def record(
    stage: str,
    name: str,
    outcome: Outcome,
    *,
    params: Mapping[str, Any],
    datasets: Mapping[str, tuple[str, str]],
    ended: float | None = None,
    began: float | None = None,
    times: StepTimes | None = None,
) -> RunRecord:
    """Describe a finished stage; parameters become strings without secrets, the full digest goes into a tag, paths become absolute.

    A run begins when its first step was taken, if that was before `began`: seeds that are trained together are published one by one.
    """
    known = {} if times is None else {curve: times.series[name] for curve, name in outcome.series.items() if name in times.series}
    starts = [points[0][1] for points in known.values()] + ([] if began is None else [began])
    tags = {"gda.stage": stage, _DIGEST: outcome.digest, "gda.refused": str(outcome.refused).lower()}
    return RunRecord(
        stage=stage,
        name=name,
        params={k: masked(str(v)) for k, v in params.items()},
        metrics=outcome.metrics,
        curves=outcome.curves,
        tags=tags,
        datasets={context: (masked(path), digest) for context, (path, digest) in datasets.items()},
        files=tuple(str(path.absolute()) for path in outcome.files),
        images={name: [(step, str(path.absolute())) for step, path in series] for name, series in outcome.images.items()},
        model=outcome.model,
        ended=time.time() if ended is None else ended,
        began=min(starts, default=None),
        times=known,
        job=current_job(),
    )


def record_job(job: TrackedJob, *, metrics: Mapping[str, float], files: tuple[str, ...], failed: bool) -> RunRecord:
    """Describe a job that ended now; its run may be there already, as the parent of its stages."""
    return RunRecord(
        stage="job",
        name=job.name,
        params={},
        metrics=metrics,
        curves={},
        tags={"gda.stage": "job"},
        datasets={},
        files=files,
        ended=time.time(),
        began=job.began,
        key=job.key,
        status="FAILED" if failed else "FINISHED",
    )


def keep(run: RunRecord, folder: Path) -> Path:
    """Write `run` under `folder` until `flush` has logged it."""
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.identity[:32]}.json"
    content = asdict(run)
    if run.model is not None:
        content["model"]["path"] = str(run.model.path.absolute())
    write_bytes(path, json.dumps(content, indent=1).encode())
    return path


def read_kept(path: Path) -> RunRecord:
    """The run in a kept file. Raises `ValueError`, `TypeError` or `KeyError` for any other file."""
    content = json.loads(path.read_text("utf-8"))
    model = content.get("model")
    if model is not None:
        content["model"] = RegisteredModel(**model | {"path": Path(model["path"])})
    if content.get("job") is not None:
        content["job"] = TrackedJob(**content["job"])
    return RunRecord(**content)
