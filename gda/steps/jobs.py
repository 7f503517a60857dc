"""Steps that several pods carry out: a synthetic set sampled by one Indexed Job, a network trained by one TrainJob.

The step creates, adopts and watches the job, and then finds what its pods published, as if it had done the work itself.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from gda.cluster.specs import JobSettings, PodSettings, indexed_job, job_name, train_job
from gda.cluster.watching import Cluster
from gda.errors import UsageError
from gda.runtime.reading import as_object, parse_json
from gda.steps.entry import require_workers
from gda.steps.graph import StepRequest
from gda.steps.step import Place, Step, run_step

# Where a pod finds its namespace.
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
# The worker's number is in a variable that Kubernetes sets.
_WORKER = 'exec python3 -m gda "$@" --worker "$JOB_COMPLETION_INDEX"'
# How many processes on how many pods is in variables that Trainer sets.
_TOGETHER = ("python3", "-m", "torch.distributed.run", "-m", "gda")
# Variables that the pods get from this step: where checkpoints go, and where runs are logged.
_OWN_ENV = ("GDA_WORK_DIR", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")
Body = Callable[[str, Sequence[str], PodSettings, JobSettings], dict[str, Any]]


class TaskConfig(Protocol):
    """What a pipeline sets for its step's pod (`kfp.dsl.TaskConfig`), as parts of a Kubernetes pod specification; None outside one."""

    resources: Any
    env: Any
    volumes: Any
    volume_mounts: Any
    node_selector: Any
    tolerations: Any
    affinity: Any


def sample_by_job(
    *,
    inputs: Mapping[str, str],
    settings: str,
    data_root: str,
    code: str,
    workers: int,
    image: str,
    task: TaskConfig,
    job: str,
    namespace: str = "",
) -> Step:
    """Sample the synthetic set by a Job of `workers` pods, watch it to its end, and publish the set: the same for any number of workers.

    `job` is a JSON object with fields of `JobSettings`; the pods are given what `task` has. A step that is tried again adopts the job of
    the one before. Raises what `Cluster.run_to_end` raises, and `UsageError` for a wrong field, or where `task` mounts no `data_root`.
    """
    require_workers("sample_workers", workers)

    def body(name: str, words: Sequence[str], pods: PodSettings, how: JobSettings) -> dict[str, Any]:
        command = ["sh", "-c", _WORKER, "gda", *words, "--workers", str(workers)]
        return indexed_job(name, namespace=namespace or _own_namespace(), command=command, workers=workers, pods=pods, job=how)

    by = _by_job(body, image=image, task=task, job=job, data_root=data_root)
    return run_step("sample", inputs=inputs, settings=settings, data_root=data_root, code=code, by=by)


def train_by_job(
    step: str,
    *,
    inputs: Mapping[str, str],
    settings: str,
    data_root: str,
    code: str,
    nodes: int,
    image: str,
    task: TaskConfig,
    job: str,
    item: Mapping[str, str],
    namespace: str = "",
) -> Step:
    """Train the network of `step` (finetune, or classify with its `item`) by a TrainJob on `nodes` pods, a process for each accelerator.

    Everything else as in `sample_by_job`; a pod without accelerators runs one process. Raises `UsageError` for fewer than 1 node.
    """

    def body(name: str, words: Sequence[str], pods: PodSettings, how: JobSettings) -> dict[str, Any]:
        return train_job(
            name,
            namespace=namespace or _own_namespace(),
            command=[*_TOGETHER, *words],
            nodes=nodes,
            processes_per_node=max(1, pods.accelerators),
            pods=pods,
            job=how,
        )

    by = _by_job(body, image=image, task=task, job=job, data_root=data_root)
    return run_step(step, inputs=inputs, settings=settings, data_root=data_root, code=code, item=item, by=by)


def _by_job(body: Body, *, image: str, task: TaskConfig, job: str, data_root: str) -> Callable[[StepRequest, Sequence[str]], None]:
    """A function that does a step's work by a job of this `body`. Raises `UsageError` for settings that no job can have."""
    pods, how = pods_of(task, image=image, data_root=Place.at(data_root).root), read_job(job)

    def work(request: StepRequest, words: Sequence[str]) -> None:
        Cluster().run_to_end(body(job_name(f"gda-{request.name}", request.key), words, pods, how))

    return work


def pods_of(task: TaskConfig, *, image: str, data_root: Path) -> PodSettings:
    """Pods that are given what the step's own task has, and work in the same folder.

    Raises `UsageError` where the task has no volume at `data_root`: the step was not started by a pipeline on a cluster.
    """
    mounts = list(task.volume_mounts or ())
    if not any(PurePosixPath(data_root).is_relative_to(mount["mountPath"]) for mount in mounts):
        places = ", ".join(mount["mountPath"] for mount in mounts) or "none"
        raise UsageError(f"data_root {data_root}: pods of a job would not see it; volumes of this step: {places}")
    return PodSettings(
        image=image,
        resources=task.resources or {},
        env=[*(task.env or ()), *({"name": name, "value": os.environ[name]} for name in _OWN_ENV if os.environ.get(name))],
        volumes=list(task.volumes or ()),
        volume_mounts=mounts,
        node_selector=task.node_selector or {},
        tolerations=task.tolerations or (),
        affinity=task.affinity or {},
    )


def read_job(text: str) -> JobSettings:
    """How a job runs, from a JSON object. Raises `UsageError` that names an unknown field."""
    content = as_object(parse_json(text or "{}", "job", error=UsageError), "job", error=UsageError)
    try:
        known = {field.name for field in fields(JobSettings)}
        if unknown := sorted(set(content) - known):
            raise UsageError(f"job: unknown field {unknown[0]!r}; accepted: {', '.join(sorted(known))}")
        return JobSettings(**content)
    except (ValueError, TypeError) as error:
        raise UsageError(f"job: {text[:80]!r}: {error}") from None


def _own_namespace() -> str:
    return _NAMESPACE_FILE.read_text("utf-8").strip() if _NAMESPACE_FILE.is_file() else "gda"
