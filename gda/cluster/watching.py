"""A job on a cluster from its creation to its end: adopted when a step is tried again, taken back when the run is cancelled."""

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from gda.cluster.api import JobApi, name_of_job
from gda.cluster.specs import CONTAINERS, differences, request_digest
from gda.errors import DataError, GdaError, TryAgainError
from gda.runtime.failed_processes import code_of_torchrun, error_of

# Of a failed pod's log: so much is read, and so much is shown where our program says nothing of itself. torchrun writes pages after it.
_LINES_READ, _LINES_SHOWN = 400, 20
_OWN_SENTENCE = re.compile(r"gda [a-z]+: ")
# How often a job that is being deleted is looked at before this step gives up: ten minutes at the usual pause.
_LOOKS_AT_THE_LEAVING = 120
_INDEX = "batch.kubernetes.io/job-completion-index"


class JobFailedError(GdaError):
    """A job ended without its work being done."""


@dataclass(frozen=True, kw_only=True)
class JobState:
    """Where a job is: `ended` is None while it is under way, else Complete or Failed, with Kubernetes' reason."""

    ended: str | None
    reason: str
    text: str  # one line of progress
    failed_indexes: str = ""


@dataclass(frozen=True, kw_only=True)
class _End:
    """The exit code of a failed pod's program (1 where nothing says it), and whether it was killed for memory."""

    code: int = 1
    out_of_memory: bool = False


class Cluster:
    """The cluster of the kubeconfig, or of this pod. Raises `MissingError` where there is neither.

    `pause` is what waits, in seconds; `between_looks` is how long, between two watches.
    """

    def __init__(self, *, between_looks: float = 5.0, pause: Callable[[float], None] = time.sleep) -> None:
        self._api = JobApi(pause)
        self._between, self._pause = between_looks, pause

    def run_to_end(self, body: Mapping[str, Any], *, say: Callable[[str], None] = print) -> None:
        """Create the Job or TrainJob `body`, or adopt the one of that name with the same request, and wait for its end.

        On an interruption or SIGTERM - the run was cancelled - the job and its pods are deleted; when this process merely dies, the next
        one adopts. A job of that name that failed before is made again: its workers go on from the finished shards.
        Raises the error of the exit code of a worker that failed (`JobFailedError` for one that is not documented), naming those that
        failed and the last lines of one, `TryAgainError` at its deadline or when the
        API server is away for long, `MissingError` for what the account may not do, `DataError` where the name is taken by other work.
        """
        with _sigterm_interrupts():
            try:
                self._create_or_adopt(body, say)
                state = self._watch(body, say)
            except KeyboardInterrupt:
                self._take_back(body, say)
                raise
        if state.ended == "Complete":
            return
        if state.reason == "DeadlineExceeded":
            raise TryAgainError(f"{name_of_job(body)}: not done within its deadline; the next try goes on from the finished shards")
        workers = f" (workers {state.failed_indexes})" if state.failed_indexes else ""
        words, end = self._last_words(body, state)
        message = f"{name_of_job(body)}: failed{workers}: {state.reason}; {words}"
        raise error_of(end.code, message, otherwise=JobFailedError, out_of_memory=end.out_of_memory)

    def delete(self, body: Mapping[str, Any]) -> bool:
        """Delete the job of `body`, its pods first; False where there is none with the same request."""
        there = self._api.read(body)
        if there is None or request_digest(there) != request_digest(body):
            return False
        self._api.delete(there)
        return True

    def _create_or_adopt(self, body: Mapping[str, Any], say: Callable[[str], None]) -> None:
        for look in range(_LOOKS_AT_THE_LEAVING):
            if self._api.create(body):
                say(f"{name_of_job(body)}: created")
                return
            there = self._api.read(body)
            if there is not None and not there["metadata"].get("deletionTimestamp"):
                if not self._is_over(there, body, say):
                    say(f"{name_of_job(body)}: adopted")
                    return
            elif there is not None and not look:
                say(f"{name_of_job(body)}: waits until the one before is gone")
            self._pause(self._between)
        raise TryAgainError(f"{name_of_job(body)}: the one before is still being deleted")

    def _is_over(self, there: Mapping[str, Any], body: Mapping[str, Any], say: Callable[[str], None]) -> bool:
        """True for a job of ours that failed: it is deleted, to be made again. Raises `DataError` for one at other work."""
        if request_digest(there) and state_of(there).ended == "Failed":
            say(f"{name_of_job(body)}: failed before; deleted, to be made again")
            self._api.delete(there)
            return True
        if request_digest(there) != request_digest(body):
            other = "; ".join(differences(there, body)[:3]) or "it is not of this program, or requests more"
            raise DataError(f"{name_of_job(body)}: is there already, for other work ({other}); wait for its end or delete it")
        return False

    def _take_back(self, body: Mapping[str, Any], say: Callable[[str], None]) -> None:
        """Delete the job without hiding that this step was cancelled."""
        try:
            if self.delete(body):
                say(f"{name_of_job(body)}: deleted, as this step was cancelled")
        except GdaError as error:
            say(f"{name_of_job(body)}: could not be deleted, though this step was cancelled: {error}")

    def _watch(self, body: Mapping[str, Any], say: Callable[[str], None]) -> JobState:
        """Follow the job to its end, printing each change once."""
        last = ""
        for there in self._looks(body):
            state = state_of(there)
            if state.text != last:
                say(f"{name_of_job(body)}: {state.text}")
                last = state.text
            if state.ended is not None:
                return state
        raise JobFailedError(f"{name_of_job(body)}: was deleted by somebody else")

    def _looks(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The job as it is and at every change, until it is gone; a watch that ends, for any reason, begins again by reading."""
        while (there := self._api.read(body)) is not None:
            yield there
            yield from self._api.changes(there)
            self._pause(self._between)

    def _last_words(self, body: Mapping[str, Any], state: JobState) -> tuple[str, "_End"]:
        """How a pod of a failed worker ended, in words with its last lines, and by its code; what may not be read hides no failure."""
        end = _End()
        try:
            failed = [pod for pod in self._api.pods(body) if pod.get("status", {}).get("phase") == "Failed"]
            of_failed = [pod for pod in failed if _index_of(pod) in _numbers(state.failed_indexes)]
            if not failed:
                return "its pods are gone", end
            pod = (of_failed or failed)[-1]
            end, name = _end_of(pod), pod["metadata"]["name"]
            log = self._api.log(body, name, CONTAINERS[body["kind"]], _LINES_READ)
            if end.code == 1 and (code := code_of_torchrun(log.splitlines())):  # torchrun's own is 1 whatever its processes met
                end = _End(code=code)
            return f"{name}{_ending(pod)} printed: {_last_line(log)}", end
        except GdaError as error:
            return f"why cannot be read: {error}", end


def state_of(job: Mapping[str, Any]) -> JobState:
    """Read the status of a Job or a TrainJob."""
    status = job.get("status") or {}
    ended = [c for c in status.get("conditions") or () if c.get("type") in ("Complete", "Failed") and c.get("status") == "True"]
    indexes = str(status.get("failedIndexes") or "")
    if job["kind"] == "Job":
        done, active, failed = (status.get(name) or 0 for name in ("succeeded", "active", "failed"))
        text = f"{done} of {job['spec']['completions']} workers done, {active} at work, {failed} failed tries"
        text += f", given up: {indexes}" if indexes else ""
    else:
        jobs = status.get("jobsStatus") or ()
        text = "; ".join(f"{one['name']}: {one.get('active', 0)} at work, {one.get('succeeded', 0)} done" for one in jobs) or "waits"
    if not ended:
        text = "waits for its queue" if job["spec"].get("suspend") else text
        return JobState(ended=None, reason="", text=text, failed_indexes=indexes)
    return JobState(ended=ended[0]["type"], reason=ended[0].get("reason") or "", text=text, failed_indexes=indexes)


def _last_line(log: str) -> str:
    """The line in which our program reports the error, else the last lines."""
    lines = log.splitlines()
    own = [line for line in lines if _OWN_SENTENCE.match(line)]
    return own[-1] if own else "\n".join(lines[-_LINES_SHOWN:])


def _numbers(indexes: str) -> set[int]:
    """`1,3-5` as numbers."""
    ends = [[int(end) for end in part.split("-")] for part in indexes.split(",") if part]
    return {number for pair in ends for number in range(pair[0], pair[-1] + 1)}


def _index_of(pod: Mapping[str, Any]) -> int:
    """The number of a pod's worker; -1 where it has none."""
    return int(pod["metadata"].get("annotations", {}).get(_INDEX, -1))


def _terminated(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """How each container of a pod ended."""
    states = [one.get("state", {}).get("terminated") for one in pod["status"].get("containerStatuses") or ()]
    return [end for end in states if end]


def _end_of(pod: Mapping[str, Any]) -> _End:
    """By the container that failed."""
    failed = [end for end in _terminated(pod) if end.get("exitCode")]
    if not failed:
        return _End()
    return _End(code=int(failed[0]["exitCode"]), out_of_memory=any(end.get("reason") == "OOMKilled" for end in failed))


def _ending(pod: Mapping[str, Any]) -> str:
    """How the program of a pod ended, e.g. ` (137 OOMKilled)`: of which its log says nothing."""
    codes = [f"{end.get('exitCode')} {end.get('reason', '')}".strip() for end in _terminated(pod)]
    return f" ({', '.join(codes)})" if codes else ""


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM as one interruption; a second one does not stop the deletion that the first began."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
