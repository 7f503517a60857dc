"""A job to its end, against a server that speaks Kubernetes' API: created once, adopted, watched, taken back, and its failures reported."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_kubernetes import FakeKubernetes

from gda.cluster.specs import JobSettings, PodSettings, indexed_job, train_job
from gda.cluster.watching import Cluster, JobFailedError, state_of
from gda.errors import DataError, GdaError, MissingError, TryAgainError, UsageError

PODS = PodSettings(image="r/gda@sha256:1")
DONE = {"succeeded": 3, "conditions": [{"type": "Complete", "status": "True"}]}
RUNNING = {"active": 3}
FAILED = {"failed": 4, "failedIndexes": "1", "conditions": [{"type": "Failed", "status": "True", "reason": "FailedIndexes"}]}


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    with FakeKubernetes() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "config")))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        yield server


def _job(**more) -> dict:
    return indexed_job("gda-sample-1", namespace="gda", command=["gda"], workers=3, pods=PODS, job=JobSettings(**more))


def _train() -> dict:
    return train_job("gda-finetune-1", namespace="gda", command=["t"], nodes=2, processes_per_node=1, pods=PODS, job=JobSettings())


def _cluster() -> Cluster:
    return Cluster(between_looks=0.0, pause=lambda _: None)


def test_a_job_is_created_and_watched_to_its_end(kube: FakeKubernetes) -> None:
    """One creation; each change is a line, and none is reported twice."""
    kube.script = [{}, RUNNING, RUNNING, {"active": 1, "succeeded": 2}, DONE]
    lines: list[str] = []
    _cluster().run_to_end(_job(), say=lines.append)
    assert lines == [
        "Job gda-sample-1: created",
        "Job gda-sample-1: 0 of 3 workers done, 0 at work, 0 failed tries",
        "Job gda-sample-1: 0 of 3 workers done, 3 at work, 0 failed tries",
        "Job gda-sample-1: 2 of 3 workers done, 1 at work, 0 failed tries",
        "Job gda-sample-1: 3 of 3 workers done, 0 at work, 0 failed tries",
    ]


def test_a_step_that_is_tried_again_adopts_its_job(kube: FakeKubernetes) -> None:
    """After a process died, the next one finds the job by its name and does not start a second."""
    kube.put(_job())
    kube.script = [{"active": 2, "succeeded": 1}, DONE]
    lines: list[str] = []
    _cluster().run_to_end(_job(), say=lines.append)
    assert lines[0] == "Job gda-sample-1: adopted"
    assert not kube.deleted
    assert kube.jobs["gda-sample-1"]["metadata"]["uid"] == "uid-1"


@pytest.mark.parametrize("reason", ["DeadlineExceeded", "FailedIndexes"])
def test_a_job_that_failed_before_is_made_again(kube: FakeKubernetes, reason: str) -> None:
    """Else a step that is tried again would find the old failure again and again; other resources are what a user changes after one."""
    kube.put(_job(parallelism=1), conditions=[{"type": "Failed", "status": "True", "reason": reason}])
    kube.lingering = 2

    def pause(_: float) -> None:
        kube._look("gda-sample-1")
        kube.script = [] if "gda-sample-1" in kube.jobs else [DONE]

    lines: list[str] = []
    Cluster(between_looks=0.0, pause=pause).run_to_end(_job(), say=lines.append)
    assert lines[:2] == ["Job gda-sample-1: failed before; deleted, to be made again", "Job gda-sample-1: created"]
    assert kube.deleted == [("gda-sample-1", "Foreground")]
    assert kube.jobs["gda-sample-1"]["spec"]["parallelism"] == 3


def test_a_job_that_is_leaving_is_not_adopted(kube: FakeKubernetes) -> None:
    """It would be gone before its work is done: its end is waited for, and another one made."""
    kube.put(_job())
    kube.lingering = 3
    _cluster().delete(_job())
    kube.script = [DONE]
    lines: list[str] = []
    _cluster().run_to_end(_job(), say=lines.append)
    assert lines[:2] == ["Job gda-sample-1: waits until the one before is gone", "Job gda-sample-1: created"]


def test_a_job_that_never_leaves_is_another_try(kube: FakeKubernetes) -> None:
    """On a node that died pods may stay for hours: the step does not."""
    kube.put(_job())
    kube.lingering = 10_000
    _cluster().delete(_job())
    with pytest.raises(TryAgainError, match="the one before is still being deleted"):
        _cluster().run_to_end(_job())


def test_another_job_of_the_name_is_left_alone(kube: FakeKubernetes) -> None:
    """A job that requests something else is neither watched nor deleted."""
    kube.put(_job(parallelism=1))
    kube.script = [DONE]
    with pytest.raises(DataError, match=r"is there already, for other work \(spec.parallelism: 1, requested: 3\)"):
        _cluster().run_to_end(_job())
    assert not kube.deleted


def test_a_job_of_another_program_is_left_alone(kube: FakeKubernetes) -> None:
    """One without our annotation is not ours, even where it looks the same, and even where it failed."""
    strange = _job()
    del strange["metadata"]["annotations"]
    kube.put(strange, **FAILED)
    with pytest.raises(DataError, match="it is not of this program"):
        _cluster().run_to_end(_job())
    assert not kube.deleted


def test_a_cancelled_step_leaves_others_jobs_alone(kube: FakeKubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interruption before the job of that name was looked at does not delete it."""
    kube.put(_job(parallelism=1))
    cluster = _cluster()

    def interrupted(_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster._api, "create", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cluster.run_to_end(_job())
    assert not kube.deleted


def test_a_job_made_again_by_somebody_else_is_left_alone(kube: FakeKubernetes) -> None:
    """Between the look and the deletion it became another one of the same name."""
    kube.put(_job())
    seen = kube.jobs["gda-sample-1"]
    kube.put(_job())
    _cluster()._api.delete(seen)
    assert not kube.deleted
    assert list(kube.jobs) == ["gda-sample-1"]


@pytest.mark.parametrize("body", [_job(), _train()], ids=lambda body: body["kind"])
def test_a_cancelled_run_takes_its_job_back(kube: FakeKubernetes, body: dict) -> None:
    """On an interruption the job goes, its pods first, and the interruption goes on."""
    kube.script = [RUNNING]

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        Cluster(between_looks=0.0, pause=interrupted).run_to_end(body, say=lines.append)
    assert kube.deleted == [(body["metadata"]["name"], "Foreground")]
    assert "deleted, as this step was cancelled" in lines[-1]


def test_a_cancellation_that_cannot_delete_is_still_one(kube: FakeKubernetes) -> None:
    """What the account may not do is reported, and the step ends as cancelled."""
    kube.script = [RUNNING]

    def interrupted(_: float) -> None:
        kube.fail = [403]
        raise KeyboardInterrupt

    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        Cluster(between_looks=0.0, pause=interrupted).run_to_end(_job(), say=lines.append)
    assert "could not be deleted, though this step was cancelled: this account may not get jobs.batch in gda" in lines[-1]


STEP = """
import sys
from test_job_watching import _job
from gda.cluster.watching import Cluster
try:
    Cluster(between_looks=0.05).run_to_end(_job(), say=lambda line: print(line, flush=True))
except KeyboardInterrupt:
    sys.exit(75)
"""


@pytest.fixture
def step(kube: FakeKubernetes) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a process that runs a job, and returns it when it watches."""
    kube.script, kube.patience = [RUNNING], 5.0
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        env = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
        started.append(subprocess.Popen([sys.executable, "-c", STEP], env=env, stdout=subprocess.PIPE, text=True))
        watches, until = kube.verbs("WATCH"), time.monotonic() + 60
        while kube.verbs("WATCH") == watches and time.monotonic() < until:
            time.sleep(0.02)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_killed_step_is_followed_by_one_that_adopts(kube: FakeKubernetes, step: Callable[[], subprocess.Popen[str]]) -> None:
    """A pod that vanishes in the midst of a watch takes no work with it."""
    first = step()
    first.kill()
    assert first.wait(20) == -signal.SIGKILL
    assert list(kube.jobs) == ["gda-sample-1"]
    kube.script = [DONE]
    lines: list[str] = []
    _cluster().run_to_end(_job(), say=lines.append)
    assert lines[0] == "Job gda-sample-1: adopted"
    assert not kube.deleted


def test_a_terminated_step_takes_its_job_back(kube: FakeKubernetes, step: Callable[[], subprocess.Popen[str]]) -> None:
    """SIGTERM in the midst of a watch is how a pipeline is cancelled: at once, not when something next happens."""
    process = step()
    process.terminate()
    text, _ = process.communicate(timeout=4)
    assert process.returncode == 75
    assert text.splitlines()[-1] == "Job gda-sample-1: deleted, as this step was cancelled"
    assert kube.deleted == [("gda-sample-1", "Foreground")]


def test_a_second_sigterm_does_not_stop_the_deletion(kube: FakeKubernetes) -> None:
    """Who cancels may be impatient: the job is taken back all the same."""
    kube.script = [RUNNING]
    kube.on_look = lambda _: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        _cluster().run_to_end(_job())
    assert kube.deleted == [("gda-sample-1", "Foreground")]


def test_sigterm_is_as_before_afterwards(kube: FakeKubernetes) -> None:
    """What the caller had set is put back."""
    kube.script = [DONE]
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        _cluster().run_to_end(_job())
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_one_watch_shows_all_changes(kube: FakeKubernetes) -> None:
    """A job of many hours is not polled: changes are reported as they happen."""
    kube.script = [{}, RUNNING, {"active": 1, "succeeded": 2}, DONE]
    _cluster().run_to_end(_job())
    assert (kube.verbs("GET"), kube.verbs("WATCH")) == (1, 1)


@pytest.mark.parametrize("fate", ["expired", "forgotten", "cut", 500])
def test_a_watch_that_breaks_begins_again(kube: FakeKubernetes, fate: str | int) -> None:
    """A version that the server forgot (410, both ways to say it), a broken connection or a server in trouble loses nothing."""
    kube.watches = [fate, fate]
    kube.script = [{}, RUNNING, {"active": 1, "succeeded": 2}, DONE]
    lines: list[str] = []
    _cluster().run_to_end(_job(), say=lines.append)
    assert len(lines) == 5
    assert (kube.verbs("GET"), kube.verbs("WATCH")) == (3, 3)


def test_an_account_that_may_not_watch(kube: FakeKubernetes) -> None:
    """It is reported, as a role that lacks the verb would have every step request on and on."""
    kube.watches, kube.script = [403], [RUNNING]
    with pytest.raises(MissingError, match=r"may not watch jobs\.batch in gda"):
        _cluster().run_to_end(_job())


def _pod(name: str, index: int, phase: str, *, job: str = "gda-sample-1", made: int = 0, **status: object) -> dict:
    metadata = {
        "name": name,
        "labels": {"gda.dev/job": job},
        "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
        "creationTimestamp": f"2026-01-01T00:00:{made:02}Z",
    }
    return {"metadata": metadata, "status": {"phase": phase, **status}}


def test_workers_that_failed_are_named(kube: FakeKubernetes) -> None:
    """The indexes, and how the last pod of one of them ended and what it printed: not a pod of a worker that got through at last."""
    kube.script = [RUNNING, FAILED]
    killed = [{"name": "gda", "image": "i", "imageID": "", "ready": False, "restartCount": 0,
               "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]  # fmt: skip
    kube.pods = [
        _pod("last-of-1", 1, "Failed", made=7, containerStatuses=killed),
        _pod("first-of-1", 1, "Failed", made=3),
        _pod("first-of-0", 0, "Failed", made=9),
        _pod("last-of-0", 0, "Succeeded", made=10),
        _pod("other", 1, "Failed", job="other", made=11),
    ]
    kube.logs = {"last-of-1/gda": "sampling shard 3\n"}
    with pytest.raises(MissingError) as caught:
        _cluster().run_to_end(_job())
    assert str(caught.value) == "Job gda-sample-1: failed (workers 1): FailedIndexes; last-of-1 (137 OOMKilled) printed: sampling shard 3"


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_log_that_cannot_be_read_hides_no_failure(kube: FakeKubernetes, status: int) -> None:
    """The node is gone, or the account may not read logs: that the job failed, and where, is still what is reported."""
    kube.script = [FAILED]
    kube.pods = [_pod("a", 1, "Failed")]
    kube.logs = {"a/gda": status}
    with pytest.raises(JobFailedError, match=r"failed \(workers 1\): FailedIndexes; why cannot be read: "):
        _cluster().run_to_end(_job())


def test_a_train_job_that_failed(kube: FakeKubernetes) -> None:
    """Its pods' program runs in Trainer's own container."""
    kube.script = [{"conditions": [{"type": "Failed", "status": "True", "reason": "JobsFailed"}]}]
    kube.pods = [_pod("n", -1, "Failed", job="gda-finetune-1")]
    kube.logs = {"n/node": "no space left\n"}
    with pytest.raises(JobFailedError, match="failed: JobsFailed; n printed: no space left"):
        _cluster().run_to_end(_train())


@pytest.mark.parametrize(
    ("code", "kind"), [(1, JobFailedError), (2, UsageError), (3, DataError), (5, MissingError), (75, TryAgainError), (143, TryAgainError)]
)
def test_a_pods_exit_code_is_passed_on(kube: FakeKubernetes, code: int, kind: type[GdaError]) -> None:
    """The step learns whether it may be tried again; a defect in a pod stays one."""
    kube.script = [FAILED]
    ended = [{"name": "gda", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": {"terminated": {"exitCode": code}}}]
    kube.pods = [_pod("a", 1, "Failed", containerStatuses=ended)]
    kube.logs = {"a/gda": "gda sample: what is wrong\n"}
    with pytest.raises(GdaError, match="gda sample: what is wrong") as caught:
        _cluster().run_to_end(_job())
    assert type(caught.value) is kind
    assert caught.value.exit_code == (75 if code == 143 else code)


def test_the_exit_code_under_torchrun_is_passed_on(kube: FakeKubernetes) -> None:
    """torchrun ends with 1 whatever its processes met; the code of the first that failed is in what it wrote."""
    kube.script = [{"conditions": [{"type": "Failed", "status": "True", "reason": "JobsFailed"}]}]
    ended = [{"name": "node", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": {"terminated": {"exitCode": 1}}}]
    kube.pods = [_pod("n", -1, "Failed", job="gda-finetune-1", containerStatuses=ended)]
    kube.logs = {"n/node": "gda finetune: disk full\nRoot Cause (first observed failure):\n[0]:\n  exitcode  : 5 (pid: 12)\n"}
    with pytest.raises(MissingError, match="disk full"):
        _cluster().run_to_end(_train())


def test_pods_that_are_gone_say_nothing(kube: FakeKubernetes) -> None:
    """A job whose pods were removed still says why it failed."""
    kube.script = [FAILED]
    with pytest.raises(JobFailedError, match="FailedIndexes; its pods are gone"):
        _cluster().run_to_end(_job())


def test_a_deadline_is_another_try(kube: FakeKubernetes) -> None:
    """What was sampled is kept, so that the next try goes on from it."""
    kube.script = [{"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]}]
    with pytest.raises(TryAgainError, match="not done within its deadline"):
        _cluster().run_to_end(_job())


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_stumbles_is_tried_again(kube: FakeKubernetes, status: int) -> None:
    """A few answers of a server in trouble are nothing; pauses between them grow."""
    kube.fail = [status] * 3
    kube.script = [DONE]
    pauses: list[float] = []
    Cluster(between_looks=0.0, pause=pauses.append).run_to_end(_job())
    assert pauses[:3] == [0.5, 1.0, 2.0]


def test_a_server_that_stays_away_is_another_try(kube: FakeKubernetes) -> None:
    """After some tries the step gives up, and the job goes on without it."""
    kube.fail = [503] * 99
    with pytest.raises(TryAgainError, match="answered 503"):
        _cluster().run_to_end(_job())
    assert not kube.deleted


@pytest.mark.parametrize(("body", "resource"), [(_job(), "jobs.batch"), (_train(), "trainjobs.trainer.kubeflow.org")])
def test_what_the_account_may_not_is_named(kube: FakeKubernetes, body: dict, resource: str) -> None:
    """Verb, resource and namespace, as a role has them."""
    kube.fail = [403]
    with pytest.raises(MissingError, match=f"may not create {resource} in gda"):
        _cluster().run_to_end(body)


def test_a_quota_and_an_admission_rule_are_no_missing_right(kube: FakeKubernetes) -> None:
    """All three answer 403: room in a quota comes back, a rule's own words say what is wrong."""
    kube.fail = [(403, "jobs.batch is forbidden: exceeded quota: gda")] * 99
    with pytest.raises(TryAgainError, match=r"no room in the quota of gda: .*exceeded quota"):
        _cluster().run_to_end(_job())
    kube.fail = [(403, 'admission webhook "rules" denied the request: no image of that registry')]
    with pytest.raises(DataError, match="no image of that registry"):
        _cluster().run_to_end(_job())


def test_a_server_that_is_not_there(kube: FakeKubernetes, tmp_path: Path) -> None:
    """Nothing listens: tried a few times, then another try."""
    kube.url = "http://127.0.0.1:9"
    kube.kubeconfig(tmp_path / "config")
    pauses: list[float] = []
    with pytest.raises(TryAgainError, match="the API server is away"):
        Cluster(pause=pauses.append).run_to_end(_job())
    assert len(pauses) == 5


def test_a_namespace_that_is_not_there(kube: FakeKubernetes) -> None:
    """Reported as such, not as a Trainer or job that lacks."""
    body = _job()
    body["metadata"]["namespace"] = "elsewhere"
    with pytest.raises(MissingError, match="namespace elsewhere: is not in this cluster"):
        _cluster().run_to_end(body)


def test_a_cluster_without_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kind is unknown there: stated as what is not installed."""
    with FakeKubernetes(trainer=False) as kube:
        monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig(tmp_path / "config")))
        with pytest.raises(MissingError, match="Kubeflow Trainer"):
            _cluster().run_to_end(_train())


def test_a_body_that_the_server_refuses(kube: FakeKubernetes) -> None:
    """The server's own words are passed on."""
    body = _job()
    body["spec"]["template"]["spec"]["restartPolicy"] = "OnFailure"
    with pytest.raises(DataError, match="podFailurePolicy needs restartPolicy Never"):
        _cluster().run_to_end(body)


def test_a_job_that_somebody_deleted(kube: FakeKubernetes) -> None:
    """It does not wait for ever for what is no longer there."""
    kube.script = [RUNNING]
    kube.on_look = lambda look: kube.jobs.clear() if look == 2 else None
    with pytest.raises(JobFailedError, match="was deleted by somebody else"):
        _cluster().run_to_end(_job())


def test_a_train_job_to_its_end(kube: FakeKubernetes) -> None:
    """Its own status is read: jobs by name."""
    running = {"jobsStatus": [{"name": "node", "active": 2, "succeeded": 0}]}
    kube.script = [running, {"conditions": [{"type": "Complete", "status": "True"}], "jobsStatus": [{"name": "node", "succeeded": 2}]}]
    lines: list[str] = []
    _cluster().run_to_end(_train(), say=lines.append)
    assert lines[1:] == ["TrainJob gda-finetune-1: node: 2 at work, 0 done", "TrainJob gda-finetune-1: node: 0 at work, 2 done"]


def test_a_job_that_waits_for_its_queue() -> None:
    """A suspended job is not one that hangs."""
    assert state_of(_job(queue="gpus")).text == "waits for its queue"


def test_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of any cluster, in one line."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(MissingError, match="no cluster: neither"):
        Cluster()


def test_workers_given_up_are_in_the_progress() -> None:
    """While others go on, one can see which will be missing."""
    assert state_of(_job() | {"status": {"active": 1, "failedIndexes": "0,2"}}).text.endswith("given up: 0,2")
