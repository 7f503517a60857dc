"""Drawing a synthetic set by one Indexed Job, for queues that take pods away: Kubernetes counts the tries of each worker for itself."""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from gda.cluster.specs import JobSettings, PodSettings, indexed_job, job_name
from gda.cluster.watching import Cluster
from gda.errors import UsageError
from gda.io.publish import write_bytes
from gda.steps.entry import require_workers
from gda.steps.graph import Request, argv, make_request
from gda.steps.step import Place, Step, finished, references, run_step

# Where a pod finds its namespace.
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
# The worker's number is in a variable that Kubernetes sets.
_WORKER = 'exec python3 -m gda "$@" --worker "$JOB_COMPLETION_INDEX"'
SETTINGS_FILE = "settings.json"
T = TypeVar("T", PodSettings, JobSettings)


def sample_by_job(
    *, inputs: Mapping[str, str], settings: str, data_root: str, code: str, workers: int, pods: str, job: str, namespace: str = ""
) -> Step:
    """Draw the synthetic set by a Job of `workers` pods, watch it to its end, and publish the set: the one that any workers draw.

    `pods` and `job` are JSON objects with fields of `PodSettings` and `JobSettings`. A step that is tried again adopts the job of the one
    before. Raises what `Cluster.run_to_end` raises, and `UsageError` for a wrong field.
    """
    require_workers("sample_workers", workers)
    place = Place.at(data_root)
    given = {role: references(role, text) for role, text in inputs.items()}
    request = make_request("sample", inputs=given, settings=settings, code=code, item={})
    folder = place.folder(request)
    if finished(folder) is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / SETTINGS_FILE, request.settings.encode())
        body = _body(request, folder, workers, _read(PodSettings, pods, "pods"), _read(JobSettings, job, "job"), namespace)
        Cluster().run_to_end(body)
    return run_step("sample", inputs=inputs, settings=settings, data_root=data_root, code=code)


def _body(request: Request, folder: Path, workers: int, pods: PodSettings, job: JobSettings, namespace: str) -> dict[str, Any]:
    words = [*argv(request, folder), "--params", str(folder / SETTINGS_FILE), "--workers", str(workers), "--quiet"]
    return indexed_job(
        job_name("gda-sample", request.key),
        namespace=namespace or _own_namespace(),
        command=["sh", "-c", _WORKER, "gda", *words],
        workers=workers,
        pods=pods,
        job=job,
    )


def _read(kind: type[T], text: str, name: str) -> T:
    """Settings of a job from a JSON object. Raises `UsageError` that names an unknown or missing field."""
    try:
        content = json.loads(text or "{}")
        known = {field.name for field in fields(kind)}
        if unknown := sorted(set(content) - known):
            raise UsageError(f"{name}: unknown field {unknown[0]!r}; accepted: {', '.join(sorted(known))}")
        return kind(**content)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name}: {text[:80]!r}: {error}") from None


def _own_namespace() -> str:
    return _NAMESPACE_FILE.read_text("utf-8").strip() if _NAMESPACE_FILE.is_file() else "gda"
