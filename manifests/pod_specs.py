"""Every pod that a file would have a cluster run, whatever kind of object describes it, in one shape."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from manifests.documents import KubernetesObject

# Keys of a pod specification by which one is known that names no containers, in an object that changes another's pods.
_POD_KEYS = {"hostNetwork", "hostPID", "hostIPC", "serviceAccountName", "volumes", "initContainers", "automountServiceAccountToken"}
_ARGO_KINDS = {"Workflow", "WorkflowTemplate", "ClusterWorkflowTemplate", "CronWorkflow"}
_ARGO_INHERITED = ("serviceAccountName", "automountServiceAccountToken", "securityContext", "hostNetwork")
# Objects that say only what is to differ in pods described elsewhere: nothing is missing in them.
_PARTIAL_KINDS = {"TrainJob"}


@dataclass(frozen=True, kw_only=True)
class PodSpec:
    """A pod specification at `path` of a document.

    `containers` are (path, container), those of initialisation included. `partial`: what is absent here is given elsewhere.
    `kfp`: a step of Kubeflow Pipelines, which cannot say more than `spec`, its Kubernetes part, knows (no read-only root, no
    account); the backend drops capabilities and sets the seccomp profile. `parameters` are those of its pipeline.
    """

    document: KubernetesObject
    path: str
    spec: Mapping[str, Any]
    containers: tuple[tuple[str, Mapping[str, Any]], ...]
    partial: bool = False
    kfp: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)


def pod_specs(document: KubernetesObject) -> list[PodSpec]:
    """Every pod specification in `document`."""
    if document.kind == "KfpPipeline":
        return list(_of_pipeline(document))
    found = list(_of_argo(document)) if document.kind in _ARGO_KINDS else []
    if document.kind == "TrainJob":
        found += _of_trainer(document)
    return found + list(_walk(document, document.data, "", partial=document.kind in _PARTIAL_KINDS))


def _walk(document: KubernetesObject, data: Any, path: str, *, partial: bool) -> Iterator[PodSpec]:
    """Pod specifications by their look, at any depth: objects with a list of containers, and parts of such in partial kinds."""
    if isinstance(data, list):
        for i, item in enumerate(data):
            yield from _walk(document, item, f"{path}[{_name(item, i)}]", partial=partial)
    elif isinstance(data, Mapping):
        if _looks_like_pod(data, partial=partial) and not path.endswith("containerSet"):
            yield PodSpec(document=document, path=path, spec=data, containers=tuple(_containers(data, path)), partial=partial)
            return
        for key, value in data.items():
            yield from _walk(document, value, f"{path}.{key}".lstrip("."), partial=partial)


def _looks_like_pod(data: Mapping[str, Any], *, partial: bool) -> bool:
    containers = data.get("containers")
    if isinstance(containers, list) and all(isinstance(item, Mapping) for item in containers):
        return True
    return partial and bool(_POD_KEYS & set(data))


def _containers(spec: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key in ("initContainers", "containers", "ephemeralContainers", "sidecars"):
        for i, container in enumerate(spec.get(key) or []):
            yield f"{path}.{key}[{_name(container, i)}]", container


def _name(item: Any, index: int) -> str:
    return str(item["name"]) if isinstance(item, Mapping) and isinstance(item.get("name"), str) else str(index)


def _of_argo(document: KubernetesObject) -> Iterator[PodSpec]:
    """A pod for each template that runs something; what a template does not say, the workflow does."""
    spec = document.data.get("spec") or {}
    path = "spec"
    if document.kind == "CronWorkflow":
        spec, path = spec.get("workflowSpec") or {}, "spec.workflowSpec"
    for i, template in enumerate(spec.get("templates") or []):
        where = f"{path}.templates[{_name(template, i)}]"
        containers = [(f"{where}.{key}", template[key]) for key in ("container", "script") if isinstance(template.get(key), Mapping)]
        containers += _containers(template, where)
        containers += _containers(template.get("containerSet") or {}, f"{where}.containerSet")
        if containers:
            inherited = {key: spec[key] for key in _ARGO_INHERITED if key in spec}
            volumes = [*(spec.get("volumes") or []), *(template.get("volumes") or [])]
            whole = {**inherited, **template, "volumes": volumes}
            yield PodSpec(document=document, path=where, spec=whole, containers=tuple(containers))


def _of_trainer(document: KubernetesObject) -> list[PodSpec]:
    """The trainer's container of a TrainJob, which goes into the pods of its runtime."""
    trainer = (document.data.get("spec") or {}).get("trainer")
    if not isinstance(trainer, Mapping):
        return []
    container = {**trainer, "resources": trainer.get("resourcesPerNode") or {}}
    return [PodSpec(document=document, path="spec.trainer", spec={}, containers=(("spec.trainer", container),), partial=True)]


def _of_pipeline(document: KubernetesObject) -> Iterator[PodSpec]:
    """A pod for each executor of a compiled pipeline, with its Kubernetes part as the specification."""
    spec, platform = document.data["spec"], document.data["platform"]
    kubernetes = _at(platform, "platforms", "kubernetes", "deploymentSpec", "executors")
    parameters = _at(spec, "root", "inputDefinitions", "parameters")
    for name, executor in _at(spec, "deploymentSpec", "executors").items():
        if isinstance(executor.get("container"), Mapping):
            path = f"deploymentSpec.executors.{name}"
            containers = ((f"{path}.container", executor["container"]),)
            settings = kubernetes.get(name) or {}
            yield PodSpec(document=document, path=path, spec=settings, containers=containers, kfp=True, parameters=parameters)


def _at(data: Any, *keys: str) -> Mapping[str, Any]:
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data if isinstance(data, Mapping) else {}
