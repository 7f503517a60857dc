"""Bodies of requests to Kubernetes: an Indexed Job of workers, and a TrainJob of Kubeflow Trainer. Pure: dictionaries, no client.

Every pod fits Pod Security's restricted profile and mounts the shared volume. A Job's pods hold no token of a service account; a
TrainJob's pods hold none if their account disables it, because no patch of a runtime can.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gda.artifacts.fingerprint import digest_of
from gda.errors import UsageError

REQUEST_DIGEST = "gda.dev/request"  # annotation: digest of the request, by which a retried step recognises its job
_QUEUE, _PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
_SCRATCH, _SHM, _SCRATCH_PATH = "gda-scratch", "gda-shm", "/tmp"
# Exit codes of gda that no other try will change: wrong usage, bad data, a refusal.
_HOPELESS = (2, 3, 4)
_CONTAINER = "gda"
_TRAINER = "node"  # name of the container and of the replicated job that Trainer's runtimes run a program in
CONTAINERS = {"Job": _CONTAINER, "TrainJob": _TRAINER}  # in which container of a kind's pods our program runs
# What others write into the spec of a job that waits in a queue.
_OF_OTHERS = frozenset({"spec.suspend"})


@dataclass(frozen=True, kw_only=True)
class PodSettings:
    """What the pods of a job are given, as fragments of Kubernetes' pod specification, which a pipeline hands to its step."""

    image: str
    resources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    env: Sequence[Mapping[str, Any]] = ()
    volumes: Sequence[Mapping[str, Any]] = ()
    volume_mounts: Sequence[Mapping[str, Any]] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    affinity: Mapping[str, Any] = field(default_factory=dict)
    shm: str = "8Gi"
    service_account: str = "gda-worker"

    @property
    def accelerators(self) -> int:
        """Number of devices of a pod: every resource other than processors, memory and disk."""
        amounts = self.resources.get("limits", {})
        return sum(int(amount) for name, amount in amounts.items() if "/" in name)


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """How a job runs: `parallelism` pods at once (0: all), tries of one worker, seconds until it is given up, Kueue's queue."""

    parallelism: int = 0
    retries_per_worker: int = 3
    deadline_seconds: int = 24 * 3600
    keep_seconds: int = 24 * 3600
    queue: str = ""
    priority: str = ""


def job_name(prefix: str, key: str) -> str:
    """A name that the same work has each time: DNS-1123, at most 50 characters, as a job's pods get longer ones."""
    name = f"{re.sub('[^a-z0-9]+', '-', prefix.lower())[:33].strip('-')}-{key[:16]}"
    if not name[0].isalpha():
        raise UsageError(f"job name {name}: must begin with a letter")
    return name


def indexed_job(name: str, *, namespace: str, command: Sequence[str], workers: int, pods: PodSettings, job: JobSettings) -> dict[str, Any]:
    """A batch/v1 Job of `workers` pods, each of which runs `command` with its number in the variable JOB_COMPLETION_INDEX.

    Each worker has its own retries, whatever happens to the others. An evicted or preempted pod does not count as a try. An exit code
    that no retry can change ends the worker at once. A pod is replaced only when it is gone, as two would fight for one share.
    """
    if workers < 1:
        raise UsageError(f"workers {workers}: accepted: 1 and more")
    spec = {
        "completionMode": "Indexed",
        "completions": workers,
        "parallelism": min(job.parallelism or workers, workers),
        "backoffLimitPerIndex": job.retries_per_worker,
        "maxFailedIndexes": workers,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _failure_rules()},
        "activeDeadlineSeconds": job.deadline_seconds,
        "ttlSecondsAfterFinished": job.keep_seconds,
        "template": {"metadata": {"labels": _labels(name)}, "spec": pod_spec(pods, command)},
    }
    if job.queue:
        spec["suspend"] = True  # Kueue lets it go when there is room
    return _signed({"apiVersion": "batch/v1", "kind": "Job", "metadata": _metadata(name, namespace, job), "spec": spec})


def train_job(
    name: str,
    *,
    namespace: str,
    command: Sequence[str],
    nodes: int,
    processes_per_node: int,
    pods: PodSettings,
    job: JobSettings,
    runtime: str = "torch-distributed",
) -> dict[str, Any]:
    """A TrainJob (trainer.kubeflow.org/v1alpha1, Trainer 2.2 or later): `command` under torchrun on `nodes` pods."""
    if nodes < 1 or processes_per_node < 1:
        raise UsageError(f"nodes {nodes}, processes {processes_per_node}: accepted: 1 and more")
    spec = pod_spec(pods, command)
    container = spec.pop("containers")[0]
    patch = {
        "serviceAccountName": spec["serviceAccountName"],
        "securityContext": spec["securityContext"],
        "volumes": spec["volumes"],
        "nodeSelector": spec["nodeSelector"],
        "tolerations": spec["tolerations"],
        "affinity": spec["affinity"],
        "containers": [
            {"name": _TRAINER, "volumeMounts": container["volumeMounts"], "securityContext": container["securityContext"]},
        ],
    }
    template = {"spec": {"template": {"metadata": {"labels": _labels(name)}, "spec": patch}}}
    body = {
        "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "ClusterTrainingRuntime", "name": runtime},
        "trainer": {
            "image": container["image"],
            "command": list(container["command"]),
            "numNodes": nodes,
            "numProcPerNode": processes_per_node,
            "resourcesPerNode": container["resources"],
            "env": container["env"],
        },
        "runtimePatches": [
            {
                "manager": "gda.dev/steps",
                "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [{"name": _TRAINER, "template": template}]}}},
            }
        ],
        "activeDeadlineSeconds": job.deadline_seconds,
    }
    if job.queue:
        body["suspend"] = True
    metadata = _metadata(name, namespace, job)
    return _signed({"apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": metadata, "spec": body})


def pod_spec(pods: PodSettings, command: Sequence[str]) -> dict[str, Any]:
    """One container that runs `command`, within the restricted profile, with shared memory and a scratch folder next to its volumes.

    A variable that is given twice has the last value, as a container's would.
    """
    env = {str(one["name"]): dict(one) for one in ({"name": "HOME", "value": _SCRATCH_PATH}, *pods.env)}
    container = {
        "name": _CONTAINER,
        "image": pods.image,
        "command": list(command),
        "env": list(env.values()),
        "resources": {kind: dict(amounts) for kind, amounts in pods.resources.items()},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            *(dict(mount) for mount in pods.volume_mounts),
            {"name": _SCRATCH, "mountPath": _SCRATCH_PATH},
            {"name": _SHM, "mountPath": "/dev/shm"},
        ],
    }
    return {
        "restartPolicy": "Never",
        "serviceAccountName": pods.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a Service named mlflow would set MLFLOW_PORT
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [
            *(dict(volume) for volume in pods.volumes),
            {"name": _SCRATCH, "emptyDir": {}},
            {"name": _SHM, "emptyDir": {"medium": "Memory", "sizeLimit": pods.shm}},
        ],
        "nodeSelector": dict(pods.node_selector),
        "tolerations": [dict(toleration) for toleration in pods.tolerations],
        "affinity": dict(pods.affinity),
    }


def request_digest(body: Mapping[str, Any]) -> str:
    """The digest of what a body requests."""
    return str(body["metadata"].get("annotations", {}).get(REQUEST_DIGEST, ""))


def differences(there: Mapping[str, Any], body: Mapping[str, Any]) -> list[str]:
    """A line for each field of `body` that differs in the job `there`, e.g. `spec.parallelism: 1, requested: 3`.

    Fields that only `there` has are left out: the server fills in defaults, and queues add fields.
    """
    both = (
        {"spec": there.get("spec"), "labels": there["metadata"].get("labels")},
        {"spec": body["spec"], "labels": body["metadata"]["labels"]},
    )
    return [line for line in _differing("", *both) if line.partition(":")[0] not in _OF_OTHERS]


def _differing(field: str, there: Any, requested: Any) -> Iterator[str]:
    if isinstance(there, Mapping) and isinstance(requested, Mapping):
        for key in sorted(requested):
            yield from _differing(f"{field}.{key}" if field else key, there.get(key), requested[key])
    elif isinstance(there, list) and isinstance(requested, list) and len(there) == len(requested):
        for number, (one, other) in enumerate(zip(there, requested)):
            yield from _differing(f"{field}[{number}]", one, other)
    elif there != requested and (there or requested):
        yield f"{field}: {there}, requested: {requested}"


def _failure_rules() -> list[dict[str, Any]]:
    """In the order in which Kubernetes tries them."""
    return [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailIndex", "onExitCodes": {"containerName": _CONTAINER, "operator": "In", "values": list(_HOPELESS)}},
    ]


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": "gda", "app.kubernetes.io/component": "worker", "gda.dev/job": name}


def _metadata(name: str, namespace: str, job: JobSettings) -> dict[str, Any]:
    labels = _labels(name) | ({_QUEUE: job.queue} if job.queue else {}) | ({_PRIORITY: job.priority} if job.priority else {})
    return {"name": name, "namespace": namespace, "labels": labels}


def _signed(body: dict[str, Any]) -> dict[str, Any]:
    body["metadata"]["annotations"] = {REQUEST_DIGEST: digest_of({"spec": body["spec"], "labels": body["metadata"]["labels"]})}
    return body
