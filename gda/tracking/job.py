"""The job that a stage belongs to, whose run in MLflow is the parent of the stages' runs; and when each training step was taken."""

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from gda.artifacts.fingerprint import digest_of
from gda.runtime.progress import observed

JOB_VARIABLE = "GDA_JOB"  # environment: the job of `gda run`, for the stages that it starts
_INJECTED = "MLFLOW_RUN_ID"  # environment: a run of someone else's, below which the stages' runs belong
_LEAST_SECONDS = 0.5  # between two times that are kept of one series


@dataclass(frozen=True, kw_only=True)
class TrackedJob:
    """A job: the key, name and start (seconds since 1970) of its run, or the id of a run that is there already."""

    key: str = ""
    name: str = ""
    began: float = 0.0
    run_id: str = ""

    @classmethod
    def begin(cls, name: str) -> "TrackedJob":
        """A job that begins now, with a key of its own."""
        return cls(key=digest_of({"job": secrets.token_hex(16)}), name=name, began=time.time())

    def environment(self) -> dict[str, str]:
        """What makes the processes of its stages belong to it."""
        return {JOB_VARIABLE: json.dumps(asdict(self))}


def current_job() -> TrackedJob | None:
    """The job that this process belongs to: that of `MLFLOW_RUN_ID`, else that of `gda run`; None alone."""
    if run_id := os.environ.get(_INJECTED):
        return TrackedJob(run_id=run_id)
    try:
        return TrackedJob(**json.loads(os.environ.get(JOB_VARIABLE, "null")))
    except (ValueError, TypeError):
        return None


@dataclass
class StepTimes:
    """When the training steps of each series were taken, seconds since 1970, thinned to a few a second."""

    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def take(self, message: Mapping[str, Any]) -> None:
        """One message of `tick`; those without a step are left out."""
        if (step := message.get("step")) is None:
            return
        known, now = self.series.setdefault(str(message["series"]), []), time.time()
        if not known or now - known[-1][1] >= _LEAST_SECONDS:
            known.append((int(step), now))
        elif len(known) > 1:
            known[-1] = (int(step), now)


@contextmanager
def step_times() -> Iterator[StepTimes]:
    """Inside, the times of all steps are collected."""
    times = StepTimes()
    with observed(times.take):
        yield times
