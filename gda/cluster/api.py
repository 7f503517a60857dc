"""The few requests to the Kubernetes API that a job needs, through the `kubernetes` client; its answers become errors of gda.

Jobs and TrainJobs are requested in the same way, as plain dictionaries, so that no field is lost that the client does not know.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from gda.errors import DataError, GdaError, MissingError, TryAgainError

TRAINER_GROUP, TRAINER_VERSION, TRAIN_JOBS = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
_PLACES = {"Job": ("batch", "v1", "jobs"), "TrainJob": (TRAINER_GROUP, TRAINER_VERSION, TRAIN_JOBS)}
_TRIES, _FIRST_WAIT, _LONGEST_WAIT = 6, 0.5, 30.0
# Seconds to connect and to wait for an answer, and for how long the server keeps a watch open.
_CONNECT, _ANSWER, _WATCH = 10, 120, 300


class _AbsentError(GdaError):
    """The object, or what it is to be in, is not there."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class JobApi:
    """The cluster of the kubeconfig, or of this pod. Raises `MissingError` where there is neither. `pause` waits, in seconds."""

    def __init__(self, pause: Callable[[float], None]) -> None:
        from kubernetes import client, config

        settings = client.Configuration()
        settings.retries = False  # tries are counted here
        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
                config.load_incluster_config(client_configuration=settings)
            else:
                config.load_kube_config(config_file=os.environ.get("KUBECONFIG"), client_configuration=settings)
        except (config.ConfigException, OSError) as error:
            raise MissingError(f"no cluster: neither a service account in this pod nor a kubeconfig ({error})") from None
        connection = client.ApiClient(settings)
        self._objects, self._core = client.CustomObjectsApi(connection), client.CoreV1Api(connection)
        self._pause = pause

    def create(self, body: Mapping[str, Any]) -> bool:
        """Create `body`; False if its name is taken. Raises `MissingError` that names what the cluster lacks."""
        from kubernetes.client import ApiException

        def call() -> bool:
            try:
                self._objects.create_namespaced_custom_object(*_place(body), dict(body), _request_timeout=(_CONNECT, _ANSWER))
            except ApiException as error:
                if error.status == 409:
                    return False
                raise
            return True

        try:
            return bool(self._tried(call, "create", body))
        except _AbsentError as absent:
            if absent.kind == "namespaces" or body["kind"] == "Job":
                raise MissingError(f"namespace {_space(body)}: is not in this cluster") from None
            raise MissingError("this cluster knows no TrainJob: Kubeflow Trainer (2.2 or later) is not installed") from None

    def read(self, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """What is there under the name of `body`, or None."""

        def call() -> Any:
            return self._objects.get_namespaced_custom_object(*_place(body), _name(body), _request_timeout=(_CONNECT, _ANSWER))

        try:
            return dict(self._tried(call, "get", body))
        except _AbsentError:
            return None

    def changes(self, there: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The job `there` each time that it changes; ends when the server or the connection does, or when the job is gone.

        The end of the watch does not mean that the job ended: read the job again and continue from there. The watch also ends when the
        server no longer has the version (410), or is in trouble.
        """
        selector, version = f"metadata.name={_name(there)}", there["metadata"].get("resourceVersion", "")
        try:
            with self._answered("watch", there):
                stream = self._objects.list_namespaced_custom_object(
                    *_place(there),
                    field_selector=selector,
                    resource_version=version,
                    timeout_seconds=_WATCH,
                    watch=True,
                    _preload_content=False,
                    _request_timeout=(_CONNECT, _WATCH + _ANSWER),
                )
                with closing(stream):
                    for event in map(json.loads, stream):
                        if event["type"] not in ("ADDED", "MODIFIED"):
                            return
                        yield event["object"]
        except (TryAgainError, _AbsentError, ValueError):
            return

    def delete(self, there: Mapping[str, Any]) -> None:
        """Delete the very job `there`, its pods first; one that is gone, or was made again by somebody else, is left alone."""
        from kubernetes.client import ApiException

        options = {"propagationPolicy": "Foreground", "preconditions": {"uid": there["metadata"]["uid"]}}

        def call() -> None:
            try:
                self._objects.delete_namespaced_custom_object(
                    *_place(there), _name(there), body=options, _request_timeout=(_CONNECT, _ANSWER)
                )
            except ApiException as error:
                if error.status not in (404, 409):
                    raise

        self._tried(call, "delete", there)

    def pods(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The pods of a job that are still there, the oldest first."""
        from kubernetes.client import ApiClient

        def call() -> Any:
            selector = f"gda.dev/job={_name(body)}"
            return self._core.list_namespaced_pod(_space(body), label_selector=selector, _request_timeout=(_CONNECT, _ANSWER))

        found = ApiClient().sanitize_for_serialization(self._tried(call, "list", body, "pods").items)
        return sorted(found, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))

    def log(self, body: Mapping[str, Any], pod: str, container: str, lines: int) -> str:
        """The last `lines` of what a pod of the job wrote."""

        def call() -> Any:
            timeout = (_CONNECT, _ANSWER)
            return self._core.read_namespaced_pod_log(pod, _space(body), container=container, tail_lines=lines, _request_timeout=timeout)

        return str(self._tried(call, "get", body, "pods/log")).strip()

    def _tried(self, call: Callable[[], Any], verb: str, body: Mapping[str, Any], resource: str = "") -> Any:
        """Retry while the API server is away, with growing pauses."""
        wait = _FIRST_WAIT
        for left in reversed(range(_TRIES)):
            try:
                with self._answered(verb, body, resource):
                    return call()
            except TryAgainError:
                if not left:
                    raise
            self._pause(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
        raise AssertionError("unreachable")

    @contextmanager
    def _answered(self, verb: str, body: Mapping[str, Any], resource: str = "") -> Iterator[None]:
        """Turn the API server's answers into our errors."""
        import urllib3
        from kubernetes.client import ApiException

        try:
            yield
        except ApiException as error:
            raise _as_ours(error, f"{verb} {resource or _resource(body)}", body) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise TryAgainError(f"the API server is away ({type(error).__name__})") from None


def name_of_job(body: Mapping[str, Any]) -> str:
    """Kind and name, as messages begin."""
    return f"{body['kind']} {_name(body)}"


def _as_ours(error: Any, action: str, body: Mapping[str, Any]) -> GdaError:
    """An answer of the API server as the error that a user can act on. A 403 may be a role's, a quota's or an admission rule's."""
    message, kind = _message(error)
    if error.status == 404:
        return _AbsentError(kind)
    if error.status == 403 and "exceeded quota" in message:
        return TryAgainError(f"{name_of_job(body)}: no room in the quota of {_space(body)}: {message}")
    if error.status in (401, 403) and "denied the request" not in message:
        return MissingError(f"this account may not {action} in {_space(body)}")
    if error.status in (410, 429) or not error.status or error.status >= 500:
        return TryAgainError(f"the API server answered {error.status} {error.reason}")
    return DataError(f"{name_of_job(body)}: refused by the API server: {error.status} {message}")


def _message(error: Any) -> tuple[str, str]:
    """The message of an answer, and the kind of what it is about."""
    text = error.body.decode(errors="replace") if isinstance(error.body, bytes) else str(error.body or "")
    try:
        status = json.loads(text)
        return str(status.get("message", ""))[:500], str((status.get("details") or {}).get("kind", ""))
    except (ValueError, AttributeError):
        return text[:500], ""


def _place(body: Mapping[str, Any]) -> tuple[str, str, str, str]:
    group, version, plural = _PLACES[body["kind"]]
    return group, version, _space(body), plural


def _resource(body: Mapping[str, Any]) -> str:
    group, _, plural = _PLACES[body["kind"]]
    return f"{plural}.{group}"


def _name(body: Mapping[str, Any]) -> str:
    return str(body["metadata"]["name"])


def _space(body: Mapping[str, Any]) -> str:
    return str(body["metadata"]["namespace"])
