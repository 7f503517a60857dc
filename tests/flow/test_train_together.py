"""Steps whose network several processes train: under torchrun in the step's own pod, and as a TrainJob whose pods are processes here."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cluster_world import IMAGE, Pods, task_config
from fake_kubernetes import FakeKubernetes
from flow_job import ROOT
from safetensors.torch import load_file
from step_world import Run, two_textures

from components.classify import classify, classify_job
from components.finetune import finetune, finetune_job
from gda.cluster.watching import JobFailedError
from gda.errors import GdaError, UsageError
from gda.io.up_to_date import read_fingerprint
from gda.steps import processes
from gda.steps.graph import parse_reference
from gda.steps.processes import train_here
from gda.steps.step import StepRecord

WITHOUT = {"zero_shot": "", "img2img": "", "pool": "", "reference": "", "accepted": "", "verdict": ""}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, dict[str, str], str]]:
    """A run as far as its snapshot."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("together")
        patch.chdir(folder)
        two_textures(folder / "given", 40)
        changes = {"classify": {"arms": ["real"], "seeds": [0, 1]}, "promote": {"arm": "real"}}
        run = Run(root=folder, images=folder / "given" / "images", base=folder / "given" / "generator", changes=changes)
        configured = run.configure()
        yield run, configured, run.real(configured)["snapshot"]


@pytest.fixture
def kube(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    with FakeKubernetes() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "config")))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        yield server


def _folder(reference: str) -> Path:
    return parse_reference(reference, role="test").path


def _record(reference: str) -> StepRecord:
    (found,) = [parent / "step.json" for parent in _folder(reference).parents if (parent / "step.json").is_file()]
    return StepRecord.model_validate_json(found.read_bytes())


def _the_same_but_for_rounding(one: Path, other: Path) -> None:
    """Every tensor is within a hundredth of its norm, where another seed or share of the images moves it by its whole norm.

    Single weights may differ by more: training makes the rounding error of a few of them grow.
    """
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files
    for file in files:
        found, expected = load_file(one / file), load_file(other / file)
        assert found.keys() == expected.keys()
        for key in expected:
            distance = torch.linalg.vector_norm(found[key].double() - expected[key].double())
            assert distance <= 1e-2 * torch.linalg.vector_norm(expected[key].double()) + 1e-5, f"{file}: {key}"


@pytest.fixture(scope="module")
def alone(world: tuple[Run, dict[str, str], str]) -> str:
    """The generator that one process makes."""
    run, configured, real = world
    return run.call(finetune, snapshot=real, settings=configured["finetune"], code="alone", resources="")


def test_processes_of_one_pod(world: tuple[Run, dict[str, str], str], alone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process for each accelerator, together what one process makes; the step's record is that of the work."""
    run, configured, real = world
    monkeypatch.setattr(processes, "num_accelerators", lambda: 2)
    together = run.call(finetune, snapshot=real, settings=configured["finetune"], code="in one pod", resources="")
    _the_same_but_for_rounding(_folder(together), _folder(alone))
    assert read_fingerprint(_folder(together)) == read_fingerprint(_folder(alone))
    assert _record(together).metrics == pytest.approx(_record(alone).metrics, abs=1e-4)
    assert "base_loss" in _record(together).metrics
    assert _record(together).seconds > 2, "two processes that import torch take that long"
    monkeypatch.setattr(processes, "_launch", lambda _: pytest.fail("trained again"))
    assert run.call(finetune, snapshot=real, settings=configured["finetune"], code="in one pod", resources="") == together


def test_what_the_processes_refuse_is_what_the_step_says(world: tuple[Run, dict[str, str], str]) -> None:
    """A batch that two processes cannot share: the error of `gda`, not the launcher's, here and in the file that the report reads."""
    run, configured, real = world
    settings = json.loads(configured["finetune"])
    settings["finetune"]["batch_size"] = 3
    request = {"inputs": {"snapshot": real}, "settings": json.dumps(settings), "data_root": str(run.root / "volume"), "code": "3"}
    with pytest.raises(GdaError, match=r"finetune.batch_size: must be a multiple of processes"):
        train_here("finetune", processes=2, **request)
    message = [json.loads(path.read_bytes())["error"] for path in (run.root / "volume/steps/finetune").glob("*/failure.json")]
    assert len(message) == 1
    assert message[0].startswith("finetune.batch_size")


def test_a_cancelled_step_ends_its_processes(world: tuple[Run, dict[str, str], str], tmp_path: Path) -> None:
    """SIGTERM to the step's own process ends all processes that it started."""
    run, configured, real = world
    settings = json.loads(configured["finetune"])
    settings["finetune"]["num_train_steps"] = 100_000
    request = {"inputs": {"snapshot": real}, "settings": json.dumps(settings), "data_root": str(run.root / "volume"), "code": "cancelled"}
    script = tmp_path / "step.py"
    script.write_text(f"from gda.steps.processes import train_here\ntrain_here('finetune', processes=2, **{request!r})\n")
    step = subprocess.Popen([sys.executable, str(script)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    started: list[int] = []
    try:
        started = _until(lambda: _descendants(step.pid) if len(_descendants(step.pid)) >= 3 else [])
        step.send_signal(signal.SIGTERM)
        _, message = step.communicate(timeout=90)
        assert "finetune: interrupted; run again" in message
        _until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() and _runs(pid) for pid in started))
    finally:
        for pid in (step.pid, *started):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _until(found: Any, seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return value


def _descendants(pid: int) -> list[int]:
    children = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    return children + [other for child in children for other in _descendants(child)]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_train_job_fine_tunes(world: tuple[Run, dict[str, str], str], alone: str, kube: FakeKubernetes) -> None:
    """Two pods under Trainer's variables make together what one process makes, and the step requests no more than its task has."""
    run, configured, real = world
    pods = Pods(kube)
    request = {"snapshot": real, "settings": configured["finetune"], "nodes": 2, "image": IMAGE, "job": '{"queue": "gpus"}', "code": "job"}
    request |= {"resources": "", "task_config": task_config(run.root / "volume")}
    made = run.call(finetune_job, **request)
    assert pods.codes == [0, 0], pods.printed
    _the_same_but_for_rounding(_folder(made), _folder(alone))
    (job,) = kube.jobs.values()
    assert job["kind"] == "TrainJob"
    assert job["metadata"]["name"].startswith("gda-finetune-")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    trainer = job["spec"]["trainer"]
    assert (trainer["image"], trainer["numNodes"], trainer["numProcPerNode"]) == (IMAGE, 2, 1)
    assert trainer["resourcesPerNode"]["limits"]["memory"] == "1Gi"
    assert pods.variables[0]["GDA_OF_TASK"] == "by the task"
    assert pods.variables[0]["GDA_WORK_DIR"] == str(run.root / "volume/.gda")
    assert pods.variables[0]["MLFLOW_TRACKING_URI"].startswith("sqlite:////")
    kube.jobs.clear()
    assert run.call(finetune_job, **request) == made, "a finished step requests nothing of the cluster"
    assert not kube.jobs


def test_a_train_job_trains_a_classifier(world: tuple[Run, dict[str, str], str], kube: FakeKubernetes) -> None:
    """The same for one arm and seed."""
    run, configured, real = world
    item = {"arm": "real", "seeds": "1", "snapshot": real, "settings": configured["classify"], "resources": ""}
    expected = run.call(classify, **item, **WITHOUT, code="alone")
    pods = Pods(kube)
    job = {"nodes": 2, "image": IMAGE, "job": "{}", "code": "job", "task_config": task_config(run.root / "volume")}
    made = run.call(classify_job, **item, **WITHOUT, **job)
    assert pods.codes == [0, 0], pods.printed
    assert next(iter(kube.jobs)).startswith("gda-classify-real-1-")
    assert _record(made).metrics == {"val_top1": _record(expected).metrics["val_top1"]}
    _the_same_but_for_rounding(_folder(made), _folder(expected))


def test_a_train_job_that_fails(world: tuple[Run, dict[str, str], str], kube: FakeKubernetes) -> None:
    """The step ends with its processes' exit code, names the job and its pod's last lines, and leaves them where the report looks."""
    run, configured, real = world
    settings = json.loads(configured["finetune"])
    settings["finetune"]["batch_size"] = 3
    pods = Pods(kube)
    request = {"snapshot": real, "settings": json.dumps(settings), "nodes": 2, "image": IMAGE, "job": "{}", "code": "failing"}
    message = r"TrainJob gda-finetune-\w+: failed: BackoffLimitExceeded; pod-\d \(1 Error\) printed: gda finetune: finetune.batch_size: "
    with pytest.raises(UsageError, match=message) as failed:
        run.call(finetune_job, **request, resources="", task_config=task_config(run.root / "volume"))
    assert failed.value.exit_code == 2
    assert pods.codes == [1, 1]
    left = [json.loads(path.read_bytes())["error"] for path in (run.root / "volume/steps/finetune").glob("*/failure.json")]
    assert any(line.startswith("TrainJob gda-finetune-") for line in left)


def test_accelerators_are_processes(world: tuple[Run, dict[str, str], str], kube: FakeKubernetes) -> None:
    """A pod with eight of them has to run eight processes; the rest of the task's settings are the pods' too."""
    run, configured, real = world
    kube.script = [{"conditions": [{"type": "Failed", "status": "True", "reason": "Tried"}]}]
    request = {
        "snapshot": real,
        "settings": configured["finetune"],
        "nodes": 3,
        "image": IMAGE,
        "job": "{}",
        "code": "eight",
        "resources": "",
    }
    with pytest.raises(JobFailedError, match="Tried"):
        run.call(finetune_job, **request, task_config=task_config(run.root / "volume", gpus="8"))
    (job,) = kube.jobs.values()
    assert (job["spec"]["trainer"]["numNodes"], job["spec"]["trainer"]["numProcPerNode"]) == (3, 8)
    (patch,) = job["spec"]["runtimePatches"]
    pod = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert (pod["nodeSelector"], pod["tolerations"]) == ({"gpu": "h100"}, [{"key": "gpu", "operator": "Exists"}])
    assert {"name": "gda-data", "persistentVolumeClaim": {"claimName": "gda-data"}} in pod["volumes"]
    assert {"name": "gda-data", "mountPath": str(run.root / "volume")} in pod["containers"][0]["volumeMounts"]


def test_outside_a_cluster(world: tuple[Run, dict[str, str], str]) -> None:
    """Run locally, a task has no volume for others to mount: an error before any cluster is looked for. So is a misspelt field."""
    run, configured, real = world
    request = {"snapshot": real, "settings": configured["finetune"], "nodes": 2, "image": IMAGE, "code": "local", "resources": ""}
    with pytest.raises(UsageError, match="pods of a job would not see it; volumes of this step: none"):
        run.call(finetune_job, **request, job="{}", task_config=type(task_config(run.root))())
    with pytest.raises(UsageError, match="job: unknown field 'tries'; accepted: deadline_seconds"):
        run.call(finetune_job, **request, job='{"tries": 1}', task_config=task_config(run.root / "volume"))
