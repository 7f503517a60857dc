"""A job to its end, against a server that speaks Kubernetes' API: created once, adopted, watched, taken back, and its failures told."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_kubernetes import FakeKubernetes

from gda.cluster.specs import JobSettings, PodSettings, indexed_job, train_job
from gda.cluster.watching import Cluster, JobFailedError, state_of
from gda.errors import DataError, MissingError, TryAgainError

PODS = PodSettings(image="r/gda@sha256:1", data_claim="gda-data")
DONE = {"succeeded": 3, "conditions": [{"type": "Complete", "status": "True"}]}
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
    """One creation; each change is a line, and none is said twice."""
    kube.script = [{}, {"active": 3}, {"active": 3}, {"active": 1, "succeeded": 2}, DONE]
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
    kube.jobs["gda-sample-1"] = _job()
    kube.script = [{"active": 2, "succeeded": 1}, DONE]
    lines: list[str] = []
    _cluster().run_to_end(_job(), say=lines.append)
    assert lines[0] == "Job gda-sample-1: adopted"
    assert sum(asked.startswith("POST") for asked in kube.asked) == 1
    assert list(kube.jobs) == ["gda-sample-1"]


def test_another_job_of_the_name_is_left_alone(kube: FakeKubernetes) -> None:
    """A job that asks for something else is neither watched nor deleted."""
    kube.jobs["gda-sample-1"] = _job(parallelism=1)
    kube.script = [DONE]
    with pytest.raises(DataError, match="is there already, for other work"):
        _cluster().run_to_end(_job())
    assert not kube.deleted


@pytest.mark.parametrize("body", [_job(), _train()], ids=lambda body: body["kind"])
def test_a_cancelled_run_takes_its_job_back(kube: FakeKubernetes, body: dict) -> None:
    """On an interruption the job goes, its pods first, and the interruption goes on."""
    kube.script = [{"active": 3}]

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    lines: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        Cluster(between_looks=0.0, pause=interrupted).run_to_end(body, say=lines.append)
    assert kube.deleted == [(body["metadata"]["name"], "Foreground")]
    assert "deleted, as this step was cancelled" in lines[-1]


def test_workers_that_failed_are_named(kube: FakeKubernetes) -> None:
    """The indexes, and the last words of a pod that failed."""
    kube.script = [{"active": 3}, FAILED]
    labels = {"gda.dev/job": "gda-sample-1"}
    kube.pods = [
        {"metadata": {"name": "gda-sample-1-0", "labels": labels}, "status": {"phase": "Succeeded"}},
        {"metadata": {"name": "gda-sample-1-1", "labels": labels}, "status": {"phase": "Failed"}},
        {"metadata": {"name": "other", "labels": {"gda.dev/job": "other"}}, "status": {"phase": "Failed"}},
    ]
    kube.logs = {"gda-sample-1-1": "gda sample: 2 of 2 drawn images hold NaN\n"}
    with pytest.raises(JobFailedError) as caught:
        _cluster().run_to_end(_job())
    said = "Job gda-sample-1: failed (workers 1): FailedIndexes; gda-sample-1-1 said: gda sample: 2 of 2 drawn images hold NaN"
    assert str(caught.value) == said


def test_pods_that_are_gone_say_nothing(kube: FakeKubernetes) -> None:
    """A job whose pods were removed still says why it failed."""
    kube.script = [FAILED]
    with pytest.raises(JobFailedError, match="FailedIndexes; its pods are gone"):
        _cluster().run_to_end(_job())


def test_a_deadline_is_another_try(kube: FakeKubernetes) -> None:
    """What was drawn is kept, so that the next try goes on from it."""
    kube.script = [{"conditions": [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]}]
    with pytest.raises(TryAgainError, match="not done within its deadline"):
        _cluster().run_to_end(_job())


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_stumbles_is_asked_again(kube: FakeKubernetes, status: int) -> None:
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


def test_a_cluster_without_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kind is unknown there: said as what is not installed."""
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
    kube.script = [{"active": 3}]
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
    assert state_of(_job(queue="gpus")).said == "waits for its queue"


def test_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of any cluster, in one line."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(MissingError, match="no cluster: neither"):
        Cluster()
