"""What every pod must say, and must not: the restricted level of Pod Security, and what a shared cluster requires in addition."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from manifests.documents import ManifestFinding, finding
from manifests.pod_specs import PodSpec
from manifests.secret_values import in_environment, in_words

# Accounts whose pods talk to the API server.
WITH_TOKEN = {"gda-run", "gda-promote"}
_BY_DIGEST = re.compile(r"[a-z0-9][a-z0-9._:/-]*@sha256:[0-9a-f]{64}")
_PLACEHOLDER = re.compile(r"gda\.invalid/[a-z0-9/_-]+")
_SHARED_WITH_NODE = ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace")
# Next to the host's, volumes that Pod Security's restricted level knows.
_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def check_pod(pod: PodSpec, accounts: Mapping[str, Any]) -> list[ManifestFinding]:
    """What is wrong with `pod`; `accounts` are the ServiceAccounts around it by name."""
    found = [*_whole_pod(pod, accounts)] if not pod.kfp else [*_kfp_pod(pod)]
    for path, container in pod.containers:
        found += _container(pod, path, container)
        found += _kfp_resources(pod, path, container) if pod.kfp else _resources(pod, path, container)
        if not pod.kfp:
            found += _security(pod, path, container)
    return found


def _whole_pod(pod: PodSpec, accounts: Mapping[str, Any]) -> Iterator[ManifestFinding]:
    for key in _SHARED_WITH_NODE:
        if pod.spec.get(key):
            yield finding(pod.document, f"{pod.path}.{key}", "is true", "absent")
    for i, volume in enumerate(pod.spec.get("volumes") or []):
        kinds = set(volume) - {"name"}
        if not kinds <= _VOLUMES:
            where = f"{pod.path}.volumes[{volume.get('name', i)}]"
            yield finding(pod.document, where, f"is of {', '.join(sorted(kinds - _VOLUMES))}", ", ".join(sorted(_VOLUMES)))
    yield from _token(pod, accounts)


def _token(pod: PodSpec, accounts: Mapping[str, Any]) -> Iterator[ManifestFinding]:
    account = pod.spec.get("serviceAccountName")
    if not account and not pod.partial:
        yield finding(pod.document, f"{pod.path}.serviceAccountName", "is missing", "an account of the pod's own")
    if account == "default":
        yield finding(pod.document, f"{pod.path}.serviceAccountName", "is default", "an account of the pod's own")
    of_account = accounts.get(str(account), {}).get("automountServiceAccountToken", True)
    mounted = pod.spec.get("automountServiceAccountToken", None if pod.partial and not account else of_account)
    if mounted and account not in WITH_TOKEN:
        accepted = f"false, or one of the accounts {', '.join(sorted(WITH_TOKEN))}"
        yield finding(pod.document, f"{pod.path}.automountServiceAccountToken", f"is true for {account or 'default'}", accepted)


def _kfp_pod(pod: PodSpec) -> Iterator[ManifestFinding]:
    context = pod.spec.get("securityContext") or {}
    where = f"platforms.kubernetes.{pod.path}.securityContext"
    if context.get("runAsNonRoot") is not True:
        yield finding(pod.document, f"{where}.runAsNonRoot", _shown(context.get("runAsNonRoot")), "true")
    if str(context.get("runAsUser", "")) == "0":
        yield finding(pod.document, f"{where}.runAsUser", "is 0", "absent, or above 0")


def _container(pod: PodSpec, path: str, container: Mapping[str, Any]) -> Iterator[ManifestFinding]:
    """What no container may do, of whatever kind."""
    image = container.get("image")
    if image is None and not pod.partial:
        yield finding(pod.document, f"{path}.image", "is missing", "NAME@sha256:DIGEST")
    if image is not None and not (_BY_DIGEST.fullmatch(str(image)) or _PLACEHOLDER.fullmatch(str(image))):
        yield finding(pod.document, f"{path}.image", f"is {image}", "NAME@sha256:DIGEST, with 64 hexadecimal digits, or gda.invalid/NAME")
    for name, why in in_environment(container.get("env") or []):
        yield finding(pod.document, f"{path}.env[{name}]", why, "valueFrom.secretKeyRef")
    for key in ("command", "args", "source"):
        words = container.get(key) or []
        for why in in_words([words] if isinstance(words, str) else words):
            yield finding(pod.document, f"{path}.{key}", why, "an environment variable from a Secret")
    for port in container.get("ports") or []:
        if port.get("hostPort"):
            yield finding(pod.document, f"{path}.ports", f"hostPort is {port['hostPort']}", "absent")


def _security(pod: PodSpec, path: str, container: Mapping[str, Any]) -> Iterator[ManifestFinding]:
    """The security context, a container's before its pod's. Of a partial pod, only what is given and wrong."""
    own = container.get("securityContext") or {}
    whole = {**(pod.spec.get("securityContext") or {}), **own}
    capabilities = own.get("capabilities") or {}
    required = {
        "runAsNonRoot": (whole.get("runAsNonRoot"), True),
        "seccompProfile.type": ((whole.get("seccompProfile") or {}).get("type"), "RuntimeDefault"),
        "allowPrivilegeEscalation": (own.get("allowPrivilegeEscalation"), False),
        "readOnlyRootFilesystem": (own.get("readOnlyRootFilesystem"), True),
        "capabilities.drop": (capabilities.get("drop"), ["ALL"]),
    }
    for key, (given, accepted) in required.items():
        if given != accepted and not (given is None and pod.partial):
            yield finding(pod.document, f"{path}.securityContext.{key}", _shown(given), _text(accepted))
    for key, given in (("privileged", own.get("privileged")), ("capabilities.add", capabilities.get("add"))):
        if given:
            yield finding(pod.document, f"{path}.securityContext.{key}", _shown(given), "absent")
    if whole.get("runAsUser") == 0:
        yield finding(pod.document, f"{path}.securityContext.runAsUser", "is 0", "absent, or above 0")
    if whole.get("procMount") not in (None, "Default"):
        yield finding(pod.document, f"{path}.securityContext.procMount", _shown(whole["procMount"]), "absent, or Default")


def _resources(pod: PodSpec, path: str, container: Mapping[str, Any]) -> Iterator[ManifestFinding]:
    """Requests, by which a pod finds its node, and the limit that keeps its memory from the others'."""
    resources = container.get("resources") or {}
    if pod.partial and not resources:
        return
    for part, names in (("requests", ("cpu", "memory")), ("limits", ("memory",))):
        for name in names:
            if not (resources.get(part) or {}).get(name):
                yield finding(pod.document, f"{path}.resources.{part}.{name}", "is missing", "a quantity")


def _kfp_resources(pod: PodSpec, path: str, container: Mapping[str, Any]) -> Iterator[ManifestFinding]:
    resources = container.get("resources") or {}
    for name, old in (("CpuRequest", "cpuRequest"), ("MemoryRequest", "memoryRequest"), ("MemoryLimit", "memoryLimit")):
        if not (resources.get(f"resource{name}") or resources.get(old)):
            yield finding(pod.document, f"{path}.resources.resource{name}", "is missing", "a quantity, or a parameter")


def _shown(value: object) -> str:
    return "is missing" if value is None else f"is {_text(value)}"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
