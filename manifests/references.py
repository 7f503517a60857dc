"""Names that objects use of others: each must be there, or be on the list of what the platform or its operator brings."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from manifests.documents import KubernetesObject, ManifestFinding, finding
from manifests.pod_specs import PodSpec, pod_specs

# What no file here makes, and who does; README.md says how.
BROUGHT: dict[tuple[str, str], str] = {
    ("ConfigMap", "kfp-launcher"): "Kubeflow Pipelines",
    ("ConfigMap", "kube-root-ca.crt"): "Kubernetes",
    ("Secret", "mlpipeline-minio-artifact"): "Kubeflow Pipelines",
    ("Secret", "gda-mlflow"): "the operator",
    ("Secret", "gda-mlflow-promote"): "the operator",
    ("Secret", "gda-hub"): "the operator, where bases are fetched from a hub",
}
# Where Kubeflow Pipelines is, and on a Kubeflow of one user its runs.
_KUBEFLOW = "kubeflow"
_BY_RESOURCE = {
    "secrets": "Secret",
    "configmaps": "ConfigMap",
    "serviceaccounts": "ServiceAccount",
    "persistentvolumeclaims": "PersistentVolumeClaim",
}
_WITH_PODS = {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Pod", "Job", "CronJob"}


class Names:
    """What there is, by kind, namespace and name; an object without a namespace is found from every one."""

    def __init__(self, documents: Sequence[KubernetesObject]) -> None:
        self.documents = documents
        self._known = {(d.kind, d.namespace, d.name) for d in documents}

    def has(self, kind: str, name: str, namespace: str) -> bool:
        if (kind, name) in BROUGHT:
            return True
        spaces = {namespace, ""} if namespace else {key[1] for key in self._known}
        return any((kind, space, name) in self._known for space in spaces)


def check_references(documents: Sequence[KubernetesObject]) -> Iterator[ManifestFinding]:
    """Every name of `documents` that none of them has and nobody brings; selectors that select no pod."""
    names = Names(documents)
    for document in documents:
        for path, kind, name, namespace in _named(document):
            if not names.has(kind, name, namespace):
                yield finding(
                    document, path, f"names {kind} {name}, which is not there", "what these files hold or README.md lists as brought"
                )
        if document.kind in ("Service", "PodDisruptionBudget"):
            yield from _selection(document, documents)


Named = tuple[str, str, str, str]


def _named(document: KubernetesObject) -> Iterator[Named]:
    """(path, kind, name, namespace) of every object that `document` names."""
    for pod in pod_specs(document):
        yield from _of_pod(pod)
    if document.kind in ("RoleBinding", "ClusterRoleBinding"):
        role = document.data["roleRef"]
        yield "roleRef", role["kind"], role["name"], document.namespace if role["kind"] == "Role" else ""
        for i, subject in enumerate(document.data.get("subjects") or []):
            if subject["kind"] == "ServiceAccount":
                yield f"subjects[{i}]", "ServiceAccount", subject["name"], subject.get("namespace", document.namespace)
    if document.kind in ("Role", "ClusterRole"):
        yield from _of_role(document)
    if document.kind == "ValidatingAdmissionPolicyBinding":
        yield "spec.policyName", "ValidatingAdmissionPolicy", document.data["spec"]["policyName"], ""
    if document.namespace not in ("", _KUBEFLOW) and document.kind != "Namespace":
        yield "metadata.namespace", "Namespace", document.namespace, ""


def _of_role(document: KubernetesObject) -> Iterator[Named]:
    for i, rule in enumerate(document.data.get("rules") or []):
        for resource in rule.get("resources") or []:
            if resource in _BY_RESOURCE:
                for name in rule.get("resourceNames") or []:
                    yield f"rules[{i}].resourceNames", _BY_RESOURCE[resource], name, document.namespace


def _of_pod(pod: PodSpec) -> Iterator[Named]:
    space = pod.document.namespace
    if pod.kfp:
        yield from _of_kfp(pod)
        return
    if pod.spec.get("serviceAccountName"):
        yield f"{pod.path}.serviceAccountName", "ServiceAccount", str(pod.spec["serviceAccountName"]), space
    for volume in pod.spec.get("volumes") or []:
        for kind, source, key in _sources(volume):
            if source.get(key) and not source.get("optional"):
                yield f"{pod.path}.volumes[{volume.get('name')}]", kind, str(source[key]), space
    for path, container in pod.containers:
        for variables in container.get("envFrom") or []:
            yield from _reference(f"{path}.envFrom", variables, "configMapRef", "secretRef", space)
        for variable in container.get("env") or []:
            value = variable.get("valueFrom") or {}
            yield from _reference(f"{path}.env[{variable.get('name')}]", value, "configMapKeyRef", "secretKeyRef", space)


def _reference(path: str, holder: Mapping[str, Any], config: str, secret: str, space: str) -> Iterator[Named]:
    for key, kind in ((config, "ConfigMap"), (secret, "Secret")):
        source = holder.get(key)
        if source and not source.get("optional"):
            yield path, kind, str(source["name"]), space


def _sources(volume: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    for part in [volume, *((volume.get("projected") or {}).get("sources") or [])]:
        yield "ConfigMap", part.get("configMap") or {}, "name"
        yield "Secret", part.get("secret") or {}, "secretName" if "secretName" in (part.get("secret") or {}) else "name"
    yield "PersistentVolumeClaim", volume.get("persistentVolumeClaim") or {}, "claimName"


def _of_kfp(pod: PodSpec) -> Iterator[Named]:
    """Names that a step's Kubernetes part fixes, or takes from a parameter of the pipeline with a default."""
    path = f"platforms.kubernetes.{pod.path}"
    for key, kind, name in (
        ("secretAsEnv", "Secret", "secretName"),
        ("secretAsVolume", "Secret", "secretName"),
        ("configMapAsEnv", "ConfigMap", "configMapName"),
        ("configMapAsVolume", "ConfigMap", "configMapName"),
    ):
        for source in pod.spec.get(key) or []:
            name_of = source.get(name) or _default(pod, source.get(f"{name}Parameter") or {})
            if name_of and not source.get("optional"):
                yield f"{path}.{key}", kind, name_of, ""
    for mount in pod.spec.get("pvcMount") or []:
        name_of = _default(pod, mount.get("pvcNameParameter") or mount)
        if name_of:
            yield f"{path}.pvcMount", "PersistentVolumeClaim", name_of, ""


def _default(pod: PodSpec, parameter: Mapping[str, Any]) -> str:
    """A constant, or the default of the run's parameter; empty where only the run will tell."""
    constant = parameter.get("constant") or (parameter.get("runtimeValue") or {}).get("constant")
    if constant:
        return str(constant)
    name = str(parameter.get("componentInputParameter") or "").removeprefix("pipelinechannel--")
    return str((pod.parameters.get(name) or {}).get("defaultValue") or "")


def _selection(document: KubernetesObject, documents: Sequence[KubernetesObject]) -> Iterator[ManifestFinding]:
    selector = document.data["spec"].get("selector") or {}
    wanted = selector.get("matchLabels", {}) if document.kind == "PodDisruptionBudget" else selector
    labels = [_labels(d) for d in documents if d.kind in _WITH_PODS and d.namespace == document.namespace]
    if wanted and not any(wanted.items() <= of_pods.items() for of_pods in labels):
        yield finding(document, "spec.selector", "selects no pod", "labels of a pod template of these files")


def _labels(document: KubernetesObject) -> dict[str, str]:
    data = document.data
    if document.kind == "CronJob":
        data = data["spec"]["jobTemplate"]
    holder = data if document.kind == "Pod" else data["spec"]["template"]
    return (holder.get("metadata") or {}).get("labels") or {}
