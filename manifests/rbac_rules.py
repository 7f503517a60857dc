"""What roles may allow and whom they may be bound to: the least that does the work."""

from collections.abc import Iterator

from manifests.documents import KubernetesObject, ManifestFinding, finding

_WIDE_ROLES = {"cluster-admin", "admin", "edit"}
# Verbs that make their holder somebody else.
_ESCALATING = {"escalate", "bind", "impersonate"}
_INTO_PODS = {"pods/exec", "pods/attach", "pods/portforward", "pods/ephemeralcontainers", "serviceaccounts/token", "nodes/proxy"}
_ANYBODY = {"system:authenticated", "system:unauthenticated", "system:anonymous", "system:serviceaccounts", "system:masters"}


def check_rbac(document: KubernetesObject) -> Iterator[ManifestFinding]:
    """What is wrong with a role or binding; nothing for other objects."""
    if document.kind in ("Role", "ClusterRole"):
        for i, rule in enumerate(document.data.get("rules") or []):
            yield from _rule(document, f"rules[{i}]", rule)
    elif document.kind in ("RoleBinding", "ClusterRoleBinding"):
        yield from _binding(document)


def _rule(document: KubernetesObject, path: str, rule: dict[str, list[str]]) -> Iterator[ManifestFinding]:
    for key in ("apiGroups", "resources", "verbs", "nonResourceURLs"):
        if any("*" in word for word in rule.get(key) or []):
            yield finding(document, f"{path}.{key}", "holds a wildcard", "each by its name")
    verbs, resources = set(rule.get("verbs") or []), set(rule.get("resources") or [])
    if "secrets" in resources:
        if verbs - {"get"}:
            yield finding(document, f"{path}.verbs", f"{', '.join(sorted(verbs - {'get'}))} of secrets", "get")
        if not rule.get("resourceNames"):
            yield finding(document, f"{path}.resourceNames", "is missing for secrets", "the Secrets by name")
    if verbs & _ESCALATING:
        yield finding(document, f"{path}.verbs", f"holds {', '.join(sorted(verbs & _ESCALATING))}", "none of them")
    if resources & _INTO_PODS:
        yield finding(document, f"{path}.resources", f"holds {', '.join(sorted(resources & _INTO_PODS))}", "none of them")
    if "pods" in resources and "create" in verbs:
        yield finding(document, f"{path}.verbs", "create of pods", "Jobs and TrainJobs, whose pods' account is checked at admission")
    if any("rbac.authorization.k8s.io" in group for group in rule.get("apiGroups") or []) and verbs - {"get", "list", "watch"}:
        yield finding(document, f"{path}.verbs", "changes roles or bindings", "get, list, watch")


def _binding(document: KubernetesObject) -> Iterator[ManifestFinding]:
    role = (document.data.get("roleRef") or {}).get("name")
    if role in _WIDE_ROLES:
        yield finding(document, "roleRef.name", f"is {role}", "a role that holds what is needed")
    for i, subject in enumerate(document.data.get("subjects") or []):
        name = subject.get("name")
        if subject.get("kind") in ("Group", "User") and name in _ANYBODY:
            yield finding(document, f"subjects[{i}].name", f"is {name}", "accounts by name")
        if subject.get("kind") == "ServiceAccount" and name == "default":
            yield finding(document, f"subjects[{i}].name", "is default", "an account of the pod's own")
