"""Why a real API server would refuse a Job, a TrainJob or a pod, as one line; None for what it accepts."""

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def wrong_job(job: dict[str, Any]) -> str | None:
    """The first rule of batch/v1 that a Job breaks."""
    spec = job["spec"]
    pod = spec["template"]["spec"]
    return next(chain(_of_indexes(job["metadata"]["name"], spec), _of_failures(spec, pod), _of_pods(pod)), None)


def wrong_train_job(job: dict[str, Any]) -> str | None:
    """The first rule of trainer.kubeflow.org/v1alpha1 that a TrainJob breaks."""
    return next(_of_train_jobs(job), None)


def unrestricted(pod: dict[str, Any]) -> list[str]:
    """Why Pod Security's restricted profile would refuse a pod."""
    return [f"{field}: must be {need}" for field, need, given in _restricted(pod) if given != need]


def _of_indexes(name: str, spec: dict[str, Any]) -> Iterator[str]:
    indexed, retried = spec.get("completionMode") == "Indexed", "backoffLimitPerIndex" in spec
    if indexed and "completions" not in spec:
        yield "completionMode Indexed needs completions"
    if retried and not indexed:
        yield "backoffLimitPerIndex needs completionMode Indexed"
    if "maxFailedIndexes" in spec and (not retried or spec["maxFailedIndexes"] > spec["completions"]):
        yield "maxFailedIndexes needs backoffLimitPerIndex and at most completions"
    if indexed and not _LABEL.fullmatch(f"{name}-{spec.get('completions', 1) - 1}"):
        yield f"{name}: pods of that name and index would have no valid hostname"
    if spec.get("podReplacementPolicy") not in (None, "Failed") and "podFailurePolicy" in spec:
        yield "with a podFailurePolicy, pods are replaced when Failed"
    for field in ("activeDeadlineSeconds", "ttlSecondsAfterFinished", "backoffLimitPerIndex", "parallelism"):
        if spec.get(field, 0) < 0:
            yield f"{field} must not be negative"


def _of_failures(spec: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    if pod["restartPolicy"] != "Never" and "podFailurePolicy" in spec:
        yield "podFailurePolicy needs restartPolicy Never"
    if pod["restartPolicy"] == "Always":
        yield "restartPolicy must be Never or OnFailure"
    for rule in spec.get("podFailurePolicy", {}).get("rules", ()):
        if rule["action"] not in ("FailJob", "FailIndex", "Ignore", "Count"):
            yield f"no action {rule['action']}"
        if rule["action"] == "FailIndex" and "backoffLimitPerIndex" not in spec:
            yield "FailIndex needs backoffLimitPerIndex"
        if ("onExitCodes" in rule) == ("onPodConditions" in rule):
            yield "a rule has exit codes or conditions, not both"
        if "onExitCodes" in rule:
            yield from _of_codes(rule["onExitCodes"], [container["name"] for container in pod["containers"]])
        for pattern in rule.get("onPodConditions", ()):
            if pattern.get("status") not in ("True", "False", "Unknown"):
                yield "a condition's status must be True, False or Unknown"


def _of_codes(codes: dict[str, Any], containers: list[str]) -> Iterator[str]:
    values = codes["values"]
    if not values or values != sorted(set(values)) or not 0 <= min(values) <= max(values) <= 255:
        yield "exit codes must be ordered, unique and of 0 to 255"
    if codes["operator"] == "In" and 0 in values:
        yield "0 is no failure"
    if codes.get("containerName", containers[0]) not in containers:
        yield "no container of that name"


def _of_pods(pod: dict[str, Any]) -> Iterator[str]:
    volumes = [volume["name"] for volume in pod.get("volumes", ())]
    for container in pod["containers"]:
        mounts = container.get("volumeMounts", ())
        yield from (f"no volume {mount['name']}" for mount in mounts if mount["name"] not in volumes)
        if len({mount["mountPath"] for mount in mounts}) < len(mounts):
            yield "two volumes at one path"
        resources = container.get("resources", {})
        for name, amount in resources.get("limits", {}).items():
            if "/" in name and (not amount.isdigit() or resources.get("requests", {}).get(name, amount) != amount):
                yield f"{name}: must be whole, and as much as is requested"


def _of_train_jobs(job: dict[str, Any]) -> Iterator[str]:
    spec = job["spec"]
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", job["metadata"]["name"]):
        yield "a TrainJob's name must be a DNS label that begins with a letter"
    if not spec.get("runtimeRef", {}).get("name"):
        yield "runtimeRef.name is needed"
    if spec.get("activeDeadlineSeconds", 1) < 1:
        yield "activeDeadlineSeconds must be positive"
    for patch in spec.get("runtimePatches", ()):
        if not patch.get("manager"):
            yield "a patch needs its manager"
        for replicated in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            for container in replicated["template"]["spec"]["template"]["spec"].get("containers", ()):
                if container["name"] in ("node", "dataset-initializer", "model-initializer") and container.get("env"):
                    yield f"env of {container['name']} is set by the trainer alone"


def _restricted(pod: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Field, the value that is needed, the value that is there."""
    own = pod.get("securityContext", {})
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
    yield "volumes", set(), {kind for volume in pod.get("volumes", ()) for kind in volume if kind != "name"} - allowed
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        yield field, False, pod.get(field, False)
    for container in pod["containers"]:
        context = container.get("securityContext", {})
        yield "runAsNonRoot", True, context.get("runAsNonRoot", own.get("runAsNonRoot"))
        yield "seccompProfile", {"type": "RuntimeDefault"}, context.get("seccompProfile", own.get("seccompProfile"))
        yield "allowPrivilegeEscalation", False, context.get("allowPrivilegeEscalation")
        yield "privileged", False, context.get("privileged", False)
        yield "capabilities", (["ALL"], []), (context.get("capabilities", {}).get("drop"), context.get("capabilities", {}).get("add", []))
        yield "runAsUser", False, 0 in (context.get("runAsUser"), own.get("runAsUser"))
