"""What a namespace must have: pod security that is enforced, a network closed but for what is named, no way in from outside."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from manifests.documents import KubernetesObject, ManifestFinding, finding

_PSA = "pod-security.kubernetes.io"
_PINNED = re.compile(r"v1\.\d+")
_BY_NAME = "kubernetes.io/metadata.name"
_EVERYWHERE = {"0.0.0.0/0", "::/0"}


def check_namespaces(documents: Sequence[KubernetesObject]) -> Iterator[ManifestFinding]:
    """What is wrong with the namespaces of `documents`, their network policies and services."""
    yield from _guarded(documents)
    for document in documents:
        if document.kind == "Namespace":
            yield from _pod_security(document)
            yield from _closed(document, documents)
        elif document.kind == "NetworkPolicy":
            yield from _policy(document)
        elif document.kind == "Service" and _spec(document).get("type", "ClusterIP") != "ClusterIP":
            yield finding(document, "spec.type", f"is {_spec(document)['type']}", "ClusterIP")
        elif document.kind == "ValidatingAdmissionPolicyBinding" and _spec(document).get("validationActions") != ["Deny"]:
            yield finding(document, "spec.validationActions", f"is {_spec(document).get('validationActions')}", "[Deny]")
        elif document.kind == "ValidatingAdmissionPolicy" and _spec(document).get("failurePolicy", "Fail") != "Fail":
            yield finding(document, "spec.failurePolicy", f"is {_spec(document)['failurePolicy']}", "Fail")


def _guarded(documents: Sequence[KubernetesObject]) -> Iterator[ManifestFinding]:
    """Admission is decided where the accounts are: a binding that names another namespace decides nothing, without a word."""
    spaces = sorted({d.namespace for d in documents if d.kind == "ServiceAccount" and d.namespace})
    path = "spec.matchResources.namespaceSelector"
    for document in documents:
        if document.kind == "ValidatingAdmissionPolicyBinding" and spaces:
            labels = ((_spec(document).get("matchResources") or {}).get("namespaceSelector") or {}).get("matchLabels") or {}
            named = labels.get(_BY_NAME)
            if named is not None and named not in spaces:
                yield finding(document, f"{path}.matchLabels", f"is of {named}, which holds none of the accounts", ", ".join(spaces))


def _spec(document: KubernetesObject) -> dict[str, Any]:
    return document.data.get("spec") or {}


def _pod_security(document: KubernetesObject) -> Iterator[ManifestFinding]:
    labels = (document.data.get("metadata") or {}).get("labels") or {}
    for mode in ("enforce", "audit", "warn"):
        level, version = labels.get(f"{_PSA}/{mode}"), str(labels.get(f"{_PSA}/{mode}-version"))
        if level != "restricted":
            yield finding(document, f"metadata.labels.{_PSA}/{mode}", f"is {level}", "restricted")
        if not _PINNED.fullmatch(version):
            yield finding(document, f"metadata.labels.{_PSA}/{mode}-version", f"is {version}", "a version, such as v1.33")


def _closed(namespace: KubernetesObject, documents: Sequence[KubernetesObject]) -> Iterator[ManifestFinding]:
    policies = [d for d in documents if d.kind == "NetworkPolicy" and d.namespace == namespace.name]
    for direction in ("Ingress", "Egress"):
        if not any(_denies(_spec(policy), direction) for policy in policies):
            yield finding(namespace, "NetworkPolicy", f"none denies all {direction.lower()}", "one with podSelector {} and no rules")


def _denies(spec: dict[str, Any], direction: str) -> bool:
    return spec.get("podSelector") == {} and direction in (spec.get("policyTypes") or []) and not spec.get(direction.lower())


def _policy(document: KubernetesObject) -> Iterator[ManifestFinding]:
    for direction, key in (("ingress", "from"), ("egress", "to")):
        for i, rule in enumerate(_spec(document).get(direction) or []):
            path = f"spec.{direction}[{i}].{key}"
            if not rule.get(key):
                yield finding(document, path, "is missing, which is everywhere", "pods, namespaces or addresses")
            for peer in rule.get(key) or []:
                cidr = (peer.get("ipBlock") or {}).get("cidr")
                if cidr in _EVERYWHERE:
                    yield finding(document, path, f"is {cidr}", "the addresses that are needed")
                if peer.get("namespaceSelector") == {}:
                    yield finding(document, path, "is every namespace", "namespaces by label")
