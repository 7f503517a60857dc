"""A job on a cluster from its creation to its end: adopted when a step is tried again, taken back when the run is cancelled."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gda.cluster.specs import asked_of
from gda.errors import DataError, GdaError, MissingError, TryAgainError

TRAINER_GROUP, TRAINER_VERSION, TRAIN_JOBS = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
_TRIES, _FIRST_WAIT, _LONGEST_WAIT = 6, 0.5, 30.0
_LOG_LINES = 20


class JobFailedError(GdaError):
    """A job ended without its work being done."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a job is: `ended` is None while it is under way, else Complete or Failed, with Kubernetes' reason."""

    ended: str | None
    reason: str
    said: str  # one line of progress
    failed_indexes: str = ""


class Cluster:
    """The cluster of this pod, or of the kubeconfig. Raises `MissingError` where there is neither.

    `pause` is what waits between looks, in seconds.
    """

    def __init__(self, *, between_looks: float = 5.0, pause: Callable[[float], None] = time.sleep) -> None:
        from kubernetes import client, config

        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST"):
                config.load_incluster_config()
            else:
                config.load_kube_config(config_file=os.environ.get("KUBECONFIG"))
        except (config.ConfigException, OSError) as error:
            raise MissingError(f"no cluster: neither a service account in this pod nor a kubeconfig ({error})") from None
        self._client = client
        self._between, self._pause = between_looks, pause

    def run_to_end(self, body: Mapping[str, Any], *, say: Callable[[str], None] = print) -> None:
        """Create the Job or TrainJob `body`, or adopt the one of that name that asks for the same, and wait for its end.

        On an interruption - the run was cancelled - the job and its pods are deleted; when this process merely dies, the next one adopts.
        Raises `JobFailedError` naming the workers that failed and the last lines of one, `TryAgainError` at its deadline or when the
        API server is away for long, `MissingError` for what the account may not do, `DataError` where the name is taken by other work.
        """
        try:
            self._create_or_adopt(body, say)
            state = self._watch(body, say)
        except KeyboardInterrupt:
            self.delete(body)
            say(f"{_named(body)}: deleted, as this step was cancelled")
            raise
        if state.ended == "Complete":
            return
        if state.reason == "DeadlineExceeded":
            raise TryAgainError(f"{_named(body)}: not done within its deadline; the next try goes on from what is drawn")
        workers = f" (workers {state.failed_indexes})" if state.failed_indexes else ""
        raise JobFailedError(f"{_named(body)}: failed{workers}: {state.reason}; {self._last_words(body)}")

    def delete(self, body: Mapping[str, Any]) -> None:
        """Delete the job, its pods first; one that is gone already is no error."""
        name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
        with self._answered("delete", body, absent_is_fine=True):
            if body["kind"] == "Job":
                self._client.BatchV1Api().delete_namespaced_job(name, namespace, propagation_policy="Foreground")
            else:
                self._custom().delete_namespaced_custom_object(
                    TRAINER_GROUP, TRAINER_VERSION, namespace, TRAIN_JOBS, name, propagation_policy="Foreground"
                )

    def _create_or_adopt(self, body: Mapping[str, Any], say: Callable[[str], None]) -> None:
        created = self._tried(lambda: self._create(body), "create", body)
        if created:
            say(f"{_named(body)}: created")
            return
        there = self._tried(lambda: self._read(body), "get", body)
        if asked_of(there) != asked_of(body):
            raise DataError(f"{_named(body)}: is there already, for other work (annotation {asked_of(there)[:12] or 'missing'}); delete it")
        say(f"{_named(body)}: adopted")

    def _create(self, body: Mapping[str, Any]) -> bool:
        """False where the name is taken."""
        from kubernetes.client import ApiException

        namespace = body["metadata"]["namespace"]
        try:
            if body["kind"] == "Job":
                self._client.BatchV1Api().create_namespaced_job(namespace, dict(body))
            else:
                self._custom().create_namespaced_custom_object(TRAINER_GROUP, TRAINER_VERSION, namespace, TRAIN_JOBS, dict(body))
        except ApiException as error:
            if error.status == 409:
                return False
            raise
        return True

    def _read(self, body: Mapping[str, Any]) -> dict[str, Any]:
        name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
        if body["kind"] == "Job":
            job = self._client.BatchV1Api().read_namespaced_job(name, namespace)
            return dict(self._client.ApiClient().sanitize_for_serialization(job))
        return dict(self._custom().get_namespaced_custom_object(TRAINER_GROUP, TRAINER_VERSION, namespace, TRAIN_JOBS, name))

    def _watch(self, body: Mapping[str, Any], say: Callable[[str], None]) -> State:
        """Look again and again: a watch that breaks off would have to be taken up by looking, too."""
        last = ""
        while True:
            state = state_of(self._tried(lambda: self._read(body), "get", body))
            if state.said != last:
                say(f"{_named(body)}: {state.said}")
                last = state.said
            if state.ended is not None:
                return state
            self._pause(self._between)

    def _last_words(self, body: Mapping[str, Any]) -> str:
        """The last lines of a pod that failed."""
        name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
        core = self._client.CoreV1Api()
        with self._answered("read the logs of", body, absent_is_fine=True):
            pods = core.list_namespaced_pod(namespace, label_selector=f"gda.dev/job={name}").items
            failed = [pod for pod in pods if pod.status.phase == "Failed"]
            if failed:
                pod = failed[-1].metadata.name
                text = core.read_namespaced_pod_log(pod, namespace, tail_lines=_LOG_LINES)
                return f"{pod} said: {text.strip()}"
        return "its pods are gone"

    def _custom(self) -> Any:
        return self._client.CustomObjectsApi()

    def _tried(self, ask: Callable[[], Any], verb: str, body: Mapping[str, Any]) -> Any:
        """Ask again while the API server is away, with growing pauses."""
        wait = _FIRST_WAIT
        for left in reversed(range(_TRIES)):
            try:
                with self._answered(verb, body):
                    return ask()
            except TryAgainError:
                if not left:
                    raise
            self._pause(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
        raise AssertionError("unreachable")

    @contextmanager
    def _answered(self, verb: str, body: Mapping[str, Any], *, absent_is_fine: bool = False) -> Iterator[None]:
        """Turn the API server's answers into our errors."""
        import urllib3
        from kubernetes.client import ApiException

        try:
            yield
        except ApiException as error:
            if error.status == 404 and absent_is_fine:
                return
            if error.status in (401, 403):
                raise MissingError(f"this account may not {verb} {_resource(body)} in {body['metadata']['namespace']}") from None
            if error.status == 404 and verb == "create" and body["kind"] == "TrainJob":
                raise MissingError("this cluster knows no TrainJob: Kubeflow Trainer (2.2 or later) is not installed") from None
            if error.status == 404:
                raise JobFailedError(f"{_named(body)}: was deleted by somebody else") from None
            if error.status == 429 or not error.status or error.status >= 500:
                raise TryAgainError(f"the API server answered {error.status} {error.reason}") from None
            raise DataError(f"{_named(body)}: refused by the API server: {error.status} {str(error.body)[:500]}") from None
        except urllib3.exceptions.HTTPError as error:
            raise TryAgainError(f"the API server is away ({type(error).__name__})") from None


def state_of(job: Mapping[str, Any]) -> State:
    """Read the status of a Job or a TrainJob."""
    status = job.get("status") or {}
    ended = [c for c in status.get("conditions") or () if c.get("type") in ("Complete", "Failed") and c.get("status") == "True"]
    indexes = str(status.get("failedIndexes") or "")
    if job["kind"] == "Job":
        done, active, failed = (status.get(name) or 0 for name in ("succeeded", "active", "failed"))
        said = f"{done} of {job['spec']['completions']} workers done, {active} at work, {failed} failed tries"
        said = "waits for its queue" if job["spec"].get("suspend") else said
    else:
        jobs = status.get("jobsStatus") or ()
        said = "; ".join(f"{one['name']}: {one.get('active', 0)} at work, {one.get('succeeded', 0)} done" for one in jobs) or "waits"
    if not ended:
        return State(ended=None, reason="", said=said, failed_indexes=indexes)
    return State(ended=ended[0]["type"], reason=ended[0].get("reason") or "", said=said, failed_indexes=indexes)


def _named(body: Mapping[str, Any]) -> str:
    return f"{body['kind']} {body['metadata']['name']}"


def _resource(body: Mapping[str, Any]) -> str:
    return "jobs.batch" if body["kind"] == "Job" else f"{TRAIN_JOBS}.{TRAINER_GROUP}"
