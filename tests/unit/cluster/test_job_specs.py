"""Requests to Kubernetes: pods of the restricted profile, workers that are retried by themselves, names that repeated work finds."""

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
from kubernetes import client
from kubernetes_rules import unrestricted, wrong_job, wrong_train_job

from gda.cluster.specs import JobSettings, PodSettings, differences, indexed_job, job_name, pod_spec, request_digest, train_job
from gda.errors import UsageError

AMOUNTS = {"cpu": "4", "memory": "16Gi"}
PODS = PodSettings(
    image="r/gda@sha256:1",
    resources={"requests": AMOUNTS, "limits": AMOUNTS | {"nvidia.com/gpu": "2"}},
    env=[
        {"name": "MLFLOW_TRACKING_URI", "value": "http://mlflow:5000"},
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "gda-hub", "key": "token", "optional": True}}},
    ],
    volumes=[{"name": "data", "persistentVolumeClaim": {"claimName": "gda-data"}}],
    volume_mounts=[{"name": "data", "mountPath": "/data"}],
    node_selector={"gpu": "h100"}, tolerations=[{"key": "gpu", "operator": "Exists"}],
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
    assert unrestricted(pod) == []
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False, "a Service named mlflow would set MLFLOW_PORT"
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}


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
    assert env["HOME"]["value"] == "/tmp"
    assert pod["volumes"][0] == {"name": "data", "persistentVolumeClaim": {"claimName": "gda-data"}}
    assert container["volumeMounts"][0] == {"name": "data", "mountPath": "/data"}
    again = pod_spec(replace(PODS, env=[*PODS.env, {"name": "HF_TOKEN", "value": "t"}]), COMMAND)["containers"][0]["env"]
    assert [one for one in again if one["name"] == "HF_TOKEN"] == [{"name": "HF_TOKEN", "value": "t"}], "the last one counts"


@pytest.mark.parametrize(
    ("limits", "count"),
    [({}, 0), (AMOUNTS, 0), ({"nvidia.com/gpu": "8"} | AMOUNTS, 8), ({"amd.com/gpu": 2}, 2), ({"ephemeral-storage": "9"}, 0)],
)
def test_accelerators_are_counted(limits: dict, count: int) -> None:
    """Kubernetes names devices with their maker's domain, and counts them in whole numbers."""
    assert PodSettings(image="i", resources={"limits": limits}).accelerators == count


def test_a_job_is_one_that_the_server_takes() -> None:
    """No rule of the real API server is broken, and the client's own model knows every field."""
    job = _job()
    assert wrong_job(job) is None
    known = client.ApiClient()._ApiClient__deserialize(copy.deepcopy(job), "V1Job")
    assert client.ApiClient().sanitize_for_serialization(known) == job


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("completionMode", "NonIndexed", "backoffLimitPerIndex needs completionMode Indexed"),
        ("maxFailedIndexes", 4, "at most completions"),
        ("podReplacementPolicy", "TerminatingOrFailed", "replaced when Failed"),
        ("activeDeadlineSeconds", -1, "must not be negative"),
        ("template.spec.restartPolicy", "OnFailure", "needs restartPolicy Never"),
        ("template.spec.containers.0.name", "other", "no container of that name"),
        ("template.spec.volumes", [], "no volume data"),
        ("template.spec.containers.0.resources.limits.nvidia.com/gpu", "0.5", "must be whole"),
        ("podFailurePolicy.rules.1.onExitCodes.values", [3, 2], "must be ordered"),
        ("podFailurePolicy.rules.1.onExitCodes.values", [0, 2], "0 is no failure"),
        ("podFailurePolicy.rules.0.onPodConditions.0.status", "", "must be True, False or Unknown"),
        ("podFailurePolicy.rules.0.action", "Skip", "no action Skip"),
    ],
)
def test_rules_find_what_they_are_for(field: str, value: Any, message: str) -> None:
    """Else a body without fault would say nothing: each rule of the server refuses the body that breaks it."""
    job = copy.deepcopy(_job())
    *path, last = ["spec", *field.replace("nvidia.com/gpu", "GPU").split(".")]
    place: Any = job
    for step in path:
        place = place[int(step) if step.isdigit() else step]
    place[last.replace("GPU", "nvidia.com/gpu")] = value
    assert message in str(wrong_job(job))


@pytest.mark.parametrize("field", ["runAsNonRoot", "seccompProfile", "allowPrivilegeEscalation", "capabilities"])
def test_the_profile_finds_what_it_is_for(field: str) -> None:
    """A pod that lacks a field of the restricted profile is found."""
    pod = pod_spec(PODS, COMMAND)
    for context in (pod["securityContext"], pod["containers"][0]["securityContext"]):
        context.pop(field, None)
    assert [line.partition(":")[0] for line in unrestricted(pod)] == [field]


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


def test_a_queue_lets_a_train_job_go() -> None:
    """A TrainJob too is created suspended where Kueue admits it."""
    requested = {"namespace": "gda", "command": ["t"], "nodes": 2, "processes_per_node": 1, "pods": PODS}
    assert train_job("a", **requested, job=JobSettings(queue="gpus"))["spec"]["suspend"] is True
    assert "suspend" not in train_job("a", **requested, job=JobSettings())["spec"]


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


def test_a_train_job_is_one_that_trainer_takes() -> None:
    """No rule of Trainer's is broken, and the pods that its runtime makes with this patch are of the restricted profile."""
    job = _train()
    assert wrong_train_job(job) is None
    (replicated,) = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert unrestricted(replicated["template"]["spec"]["template"]["spec"]) == []
    replicated["template"]["spec"]["template"]["spec"]["containers"][0]["env"] = [{"name": "A", "value": "b"}]
    assert wrong_train_job(job) == "env of node is set by the trainer alone"


def test_a_train_job_agrees_with_trainers_models() -> None:
    """Trainer's own models hold every field of the body under its name and of its type: what they do not know is lost in them."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="needs kubeflow-trainer-api")
    job = train_job("t", namespace="gda", command=["torchrun"], nodes=2, processes_per_node=8, pods=PODS, job=JobSettings(queue="q"))
    assert models.TrainerV1alpha1TrainJob.from_dict(copy.deepcopy(job)).to_dict() == job


def test_differences_name_the_field() -> None:
    """A refusal says what is otherwise; what the server, a queue or another program adds is no difference."""
    there = copy.deepcopy(_job(queue="q"))
    there["spec"] |= {"suspend": False, "backoffLimit": 7, "parallelism": 1}
    there["metadata"]["labels"]["other"] = "x"
    there["spec"]["template"]["spec"]["containers"][0]["image"] = "r/old"
    assert differences(there, _job(queue="q")) == [
        "spec.parallelism: 1, requested: 3",
        "spec.template.spec.containers[0].image: r/old, requested: r/gda@sha256:1",
    ]
    without = indexed_job("a", namespace="gda", command=COMMAND, workers=3, pods=PodSettings(image="i"), job=JobSettings())
    stored = copy.deepcopy(without)
    del stored["spec"]["template"]["spec"]["nodeSelector"]
    assert differences(stored, without) == [], "a server leaves out what is empty"


def test_a_name_is_the_works_own() -> None:
    """The same work has the same name each time, another has another; names fit Kubernetes' rules, and those of pods made from them."""
    assert job_name("gda-sample", "ab" * 32) == job_name("gda-sample", "ab" * 32) != job_name("gda-sample", "cd" * 32)
    for prefix in ("gda-sample_zero_shot", "gda-real+synthetic.2", "gda-" + "x" * 80):
        name = job_name(prefix, "ab" * 32)
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
        assert len(name) <= 50
    with pytest.raises(UsageError, match="must begin with a letter"):
        job_name("1", "ab" * 32)


def test_a_body_states_its_request() -> None:
    """The annotation changes with the spec and with the queue, not with the namespace's other contents."""
    assert request_digest(_job()) == request_digest(_job()) != request_digest(_job(parallelism=1))
    assert request_digest(_job()) != request_digest(_job(queue="q"))
    assert len(request_digest(_train())) == 64


@pytest.mark.parametrize("call", [lambda: _job_of(0), lambda: _train_of(0, 1), lambda: _train_of(1, 0)])
def test_no_workers_are_refused(call) -> None:
    """A job of nothing would be done at once."""
    with pytest.raises(UsageError, match="accepted: 1 and more"):
        call()


def _job_of(workers: int) -> dict:
    return indexed_job("a", namespace="gda", command=COMMAND, workers=workers, pods=PODS, job=JobSettings())


def _train_of(nodes: int, processes: int) -> dict:
    return train_job("a", namespace="gda", command=["t"], nodes=nodes, processes_per_node=processes, pods=PODS, job=JobSettings())
