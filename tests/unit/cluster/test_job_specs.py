"""What is asked of Kubernetes: pods of the restricted profile, workers that are tried for themselves, names that work has again."""

import copy
import re

import pytest
from fake_kubernetes import wrong_job
from kubernetes import client

from gda.cluster.specs import JobSettings, PodSettings, asked_of, indexed_job, job_name, pod_spec, train_job
from gda.errors import UsageError

PODS = PodSettings(
    image="r/gda@sha256:1", data_claim="gda-data", gpus=2,
    node_selector={"gpu": "h100"}, tolerations=[{"key": "gpu", "operator": "Exists"}],
    env={"MLFLOW_TRACKING_URI": "http://mlflow:5000"}, secrets={"HF_TOKEN": ("gda-hub", "token")},
)  # fmt: skip
COMMAND = ["sh", "-c", "gda sample --worker $JOB_COMPLETION_INDEX --workers 3"]


def _job(**more) -> dict:
    return indexed_job("gda-sample-1", namespace="gda", command=COMMAND, workers=3, pods=PODS, job=JobSettings(**more))


def _train() -> dict:
    return train_job("gda-finetune-1", namespace="gda", command=["torchrun"], nodes=2, processes_per_node=8, pods=PODS, job=JobSettings())


def test_a_pod_is_of_the_restricted_profile() -> None:
    """Pod Security would refuse any pod that lacks one of these; the root is read-only, and no token of an account is mounted."""
    pod = pod_spec(PODS, COMMAND)
    (container,) = pod["containers"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["automountServiceAccountToken"] is False
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}
    assert not any("hostPath" in volume for volume in pod["volumes"])


def test_a_pod_has_what_it_was_given() -> None:
    """Accelerators, nodes, volume, shared memory and variables; a secret by reference, not by value."""
    pod = pod_spec(PODS, COMMAND)
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "2"}
    assert (pod["nodeSelector"], pod["tolerations"]) == ({"gpu": "h100"}, [{"key": "gpu", "operator": "Exists"}])
    env = {one["name"]: one for one in container["env"]}
    assert env["MLFLOW_TRACKING_URI"]["value"] == "http://mlflow:5000"
    assert env["HF_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "gda-hub"
    assert "value" not in env["HF_TOKEN"]
    assert env["GDA_WORK_DIR"]["value"] == "/data/.gda"
    without = pod_spec(PodSettings(image="i", data_claim="c", gpus=0), COMMAND)
    assert "nvidia.com/gpu" not in without["containers"][0]["resources"]["limits"]


def test_a_job_is_one_that_the_server_takes() -> None:
    """No rule of the real API server is broken, and the client's own model knows every field."""
    job = _job()
    assert wrong_job(job) is None
    known = client.ApiClient()._ApiClient__deserialize(copy.deepcopy(job), "V1Job")
    assert client.ApiClient().sanitize_for_serialization(known) == job


def test_workers_are_tried_for_themselves() -> None:
    """Each has its own tries; eviction is none; what no try changes ends the worker; a pod is replaced when it is gone."""
    spec = _job(retries_per_worker=5)["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert (spec["backoffLimitPerIndex"], spec["podReplacementPolicy"]) == (5, "Failed")
    ignored, hopeless = spec["podFailurePolicy"]["rules"]
    assert (ignored["action"], ignored["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert (hopeless["action"], hopeless["onExitCodes"]["values"]) == ("FailIndex", [2, 3, 4])
    assert _job(parallelism=2)["spec"]["parallelism"] == 2
    assert _job(parallelism=9)["spec"]["parallelism"] == 3


def test_a_queue_lets_the_job_go() -> None:
    """Under Kueue a job is created suspended, with the queue and priority as labels; without, it starts."""
    queued = _job(queue="gpus", priority="low")
    assert queued["spec"]["suspend"] is True
    labels = queued["metadata"]["labels"]
    assert (labels["kueue.x-k8s.io/queue-name"], labels["kueue.x-k8s.io/priority-class"]) == ("gpus", "low")
    assert "suspend" not in _job()["spec"]


def test_a_train_job_patches_its_runtime() -> None:
    """What a runtime cannot know - account, volume, nodes, the restricted profile - is a patch of its container `node`."""
    spec = _train()["spec"]
    assert spec["runtimeRef"]["name"] == "torch-distributed"
    assert (spec["trainer"]["numNodes"], spec["trainer"]["numProcPerNode"]) == (2, 8)
    (patch,) = spec["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = replicated["template"]["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert replicated["name"] == container["name"] == "node"
    assert template["spec"]["serviceAccountName"] == "gda-worker"
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert template["metadata"]["labels"]["gda.dev/job"] == "gda-finetune-1"


def test_a_name_is_the_works_own() -> None:
    """The same work has the same name each time, another has another; names fit Kubernetes' rules, and those of pods made from them."""
    assert job_name("gda-sample", "ab" * 32) == job_name("gda-sample", "ab" * 32) != job_name("gda-sample", "cd" * 32)
    for prefix in ("gda-sample_zero_shot", "gda-" + "x" * 80):
        name = job_name(prefix, "ab" * 32)
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
        assert len(name) <= 50
    with pytest.raises(UsageError, match="must begin with a letter"):
        job_name("1", "ab" * 32)


def test_a_body_says_what_it_asks_for() -> None:
    """The annotation changes with the spec and with the queue, not with the namespace's other contents."""
    assert asked_of(_job()) == asked_of(_job()) != asked_of(_job(parallelism=1))
    assert asked_of(_job()) != asked_of(_job(queue="q"))
    assert len(asked_of(_train())) == 64


@pytest.mark.parametrize("call", [lambda: _job_of(0), lambda: _train_of(0, 1), lambda: _train_of(1, 0)])
def test_no_workers_are_refused(call) -> None:
    """A job of nothing would be done at once."""
    with pytest.raises(UsageError, match="accepted: 1 and more"):
        call()


def _job_of(workers: int) -> dict:
    return indexed_job("a", namespace="gda", command=COMMAND, workers=workers, pods=PODS, job=JobSettings())


def _train_of(nodes: int, processes: int) -> dict:
    return train_job("a", namespace="gda", command=["t"], nodes=nodes, processes_per_node=processes, pods=PODS, job=JobSettings())
