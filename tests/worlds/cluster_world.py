"""A cluster whose jobs run as processes of this machine, with the commands and variables that their pods would have."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from fake_kubernetes import FakeKubernetes
from flow_job import ROOT
from kfp import dsl

from gda.cluster.specs import CONTAINERS

IMAGE = "r/gda@sha256:1"
DONE = {"succeeded": 2, "conditions": [{"type": "Complete", "status": "True"}]}
FAILED = {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]}


def task_config(volume: Path, *, gpus: str = "0") -> dsl.TaskConfig:
    """The task settings that the backend gives a step: resources, the shared volume, and a variable."""
    amounts = {"cpu": "1", "memory": "1Gi"}
    return dsl.TaskConfig(
        resources={"requests": amounts, "limits": amounts | {"nvidia.com/gpu": gpus}},
        env=[{"name": "GDA_OF_TASK", "value": "by the task"}],
        volumes=[{"name": "gda-data", "persistentVolumeClaim": {"claimName": "gda-data"}}],
        volume_mounts=[{"name": "gda-data", "mountPath": str(volume)}],
        node_selector={"gpu": "h100"},
        tolerations=[{"key": "gpu", "operator": "Exists"}],
    )


class Pods:
    """Runs the one job of a server when it is first looked at; `codes` are the exit codes of its pods, `printed` their output."""

    def __init__(self, kube: FakeKubernetes) -> None:
        self.kube = kube
        self.codes: list[int] = []
        self.printed: list[str] = []
        self.variables: list[dict[str, str]] = []
        kube.on_look = self._work

    def _work(self, look: int) -> None:
        if look != 1:
            return
        (job,) = self.kube.jobs.values()
        started = [self._start(job, index) for index in range(self._count(job))]
        for index, process in enumerate(started):
            self.printed.append(process.communicate(timeout=300)[0])
            self.codes.append(process.returncode)
            self._leave(job, f"pod-{index}", process.returncode)
        self.kube.script = [FAILED if any(self.codes) else DONE]

    def _leave(self, job: dict[str, Any], name: str, code: int) -> None:
        """A pod that ended, with its log."""
        labels = {"gda.dev/job": job["metadata"]["name"]}
        ended = {"state": {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}}}
        container = {"name": CONTAINERS[job["kind"]], "image": IMAGE, "imageID": IMAGE, "ready": False, "restartCount": 0} | ended
        status = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [container]}
        self.kube.pods.append({"metadata": {"name": name, "labels": labels}, "status": status})
        self.kube.logs[f"{name}/{CONTAINERS[job['kind']]}"] = self.printed[-1]

    @staticmethod
    def _count(job: dict[str, Any]) -> int:
        spec = job["spec"]
        return int(spec["completions"] if job["kind"] == "Job" else spec["trainer"]["numNodes"])

    def _start(self, job: dict[str, Any], index: int) -> "subprocess.Popen[str]":
        if job["kind"] == "Job":
            (container,) = job["spec"]["template"]["spec"]["containers"]
            own = {"JOB_COMPLETION_INDEX": str(index)}
        else:
            container = job["spec"]["trainer"]
            own = self._of_trainer(job, index)
        given = {one["name"]: one["value"] for one in container["env"] if "value" in one and one["name"] != "HOME"}
        self.variables.append(given)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as the image's python3 is ours
        env = {**os.environ, **given, **own, "PYTHONPATH": str(ROOT), "PATH": path}
        return subprocess.Popen(container["command"], env=env, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def _of_trainer(self, job: dict[str, Any], index: int) -> dict[str, str]:
        """What Trainer passes to torchrun in each pod."""
        if not hasattr(self, "_port"):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self._port = free.getsockname()[1]
        trainer = job["spec"]["trainer"]
        return {
            "PET_NNODES": str(trainer["numNodes"]),
            "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
            "PET_NODE_RANK": str(index),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(self._port),
        }
