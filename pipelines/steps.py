"""How the steps of a pipeline run: image, resources, the shared volume, retries and limits; one place for all of them."""

from dataclasses import dataclass
from typing import Any

from kfp import kubernetes
from kfp.dsl import PipelineTask

from pipelines.options import CompileOptions
from pipelines.step_lint import Exemptions

# Where the shared volume is mounted; a run's data_root is this folder or one below it.
DATA_MOUNT = "/data"
LIGHT, CPU, GPU, JOB = "light", "cpu", "gpu", "job"
_HOUR = 3600
# After so many seconds one step is given up and tried again; it goes on from its last checkpoint.
_TIMEOUTS = {LIGHT: _HOUR, CPU: 12 * _HOUR, GPU: 72 * _HOUR, JOB: 72 * _HOUR}
# Dictionaries that are no settings of a step: Kubernetes reads them.
STRUCTS: frozenset[str] = frozenset()
# Tasks that run again in each run: they name it, look another one up, or move something outside it.
UNCACHED = frozenset({"configure", "look-up", "promote", "register", "report"})
# Loops that have a name although their outputs are collected, which servers before the fix of kubeflow/pipelines#13239 cannot look up.
NAMED_LOOPS: frozenset[str] = frozenset()
# Most pods of each loop, which the tasks that plan them hold to (`gda.steps.entry`).
WIDTHS = {"plan-sampling": 12, "plan-classifiers": 12, "plan-points": 50}
# What the lint lets these pipelines do.
EXEMPT: Exemptions = {"structs": STRUCTS, "uncached": UNCACHED, "named_loops": NAMED_LOOPS, "widths": WIDTHS}
# Keys of the ConfigMap gda-tracking, each of which may be absent.
_TRACKING = {
    "MLFLOW_TRACKING_URI": "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME": "MLFLOW_EXPERIMENT_NAME",
    "GDA_STEP_RETRIES": "GDA_STEP_RETRIES",
}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a run's steps go; every field but `options` is a run parameter of the pipeline, or a constant in its place.

    `cpu` and `memory` are Kubernetes quantities of steps that compute, `gpu_type` a resource name such as nvidia.com/gpu.
    """

    options: CompileOptions
    data_claim: Any
    cpu: Any = "4"
    memory: Any = "16Gi"
    gpu_type: Any = "nvidia.com/gpu"
    gpu_count: Any = "1"
    node_selector: Any = None
    tolerations: Any = None
    shm_size: str = "8Gi"

    def __call__(self, task: PipelineTask, kind: str, *, title: str, cached: bool = True, hours: int | None = None) -> PipelineTask:
        """Give `task` what steps of its `kind` need, and the name that the graph shows.

        `kind` is light, cpu, gpu, or job: what a gpu step needs is then its job's, and its own pod only watches. `hours` are how long it
        may take, by default what its kind may.
        """
        task.set_display_name(title)
        task.set_container_image(self.options.image)
        if self.options.retries:
            task.set_retry(num_retries=self.options.retries, backoff_duration="30s", backoff_factor=2, backoff_max_duration="600s")
        task.set_caching_options(cached)
        kubernetes.set_timeout(task, seconds=hours * _HOUR if hours else _TIMEOUTS[kind])
        kubernetes.set_security_context(task, run_as_non_root=True)
        kubernetes.mount_pvc(task, pvc_name=self.data_claim, mount_path=DATA_MOUNT)
        kubernetes.use_config_map_as_env(task, "gda-tracking", _TRACKING, optional=True)
        kubernetes.use_secret_as_env(task, "gda-hub", {"token": "HF_TOKEN"}, optional=True)
        if kind == LIGHT:
            task.set_cpu_request("250m").set_cpu_limit("2").set_memory_request("1Gi").set_memory_limit("4Gi")
            return task
        task.set_cpu_request(self.cpu).set_cpu_limit(self.cpu).set_memory_request(self.memory).set_memory_limit(self.memory)
        if kind != JOB:  # of which pods have their own
            # Loaders hand batches over in shared memory, of which a container has 64 MiB unless it is given more.
            kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=self.shm_size)
        if kind in (GPU, JOB):
            task.set_accelerator_type(self.gpu_type).set_accelerator_limit(self.gpu_count)
            kubernetes.add_node_selector_json(task, self.node_selector)
            kubernetes.add_toleration_json(task, self.tolerations)
        if kind == GPU:
            self._queue(task)
        return task

    def _queue(self, task: PipelineTask) -> None:
        """Kueue admits the pod when its queue has room; labels are fixed when a pipeline is compiled."""
        if self.options.queue:
            kubernetes.add_pod_label(task, "kueue.x-k8s.io/queue-name", self.options.queue)
        if self.options.priority:
            kubernetes.add_pod_label(task, "kueue.x-k8s.io/priority-class", self.options.priority)
