"""What Kubeflow fixes when a pipeline is compiled, in one place."""

import json
from dataclasses import dataclass

from components import IMAGE


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """The image of every step by digest, the Kueue queue and priority of their pods, and how many of a loop's pods run at once.

    `namespace` is that of the objects for GitOps. `retries` is how often a step that failed is tried again. `run_name` is the placeholder
    of a run's unique name: servers have one for it, and the local runner knows only that of the name, which is unique there and on
    servers is not.
    """

    image: str = IMAGE
    queue: str = ""
    priority: str = ""
    parallelism: int = 8
    retries: int = 3
    namespace: str = "gda"
    run_name: str = "{{$.pipeline_job_resource_name}}"

    def job_text(self) -> str:
        """How a Job of this pipeline runs, as a step reads it."""
        return json.dumps({"queue": self.queue, "priority": self.priority}, sort_keys=True)
