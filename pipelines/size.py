"""How large the workflow of a run becomes: Argo keeps it in one object of Kubernetes, and refuses it above 1 MiB.

An estimate, from a run of `augment` on Kubeflow Pipelines 2.17.0 (Argo 4.0.5): 616 KiB, of which 330 KiB were the specification (181,000
bytes as compiled) and 10 to 12.6 KiB each of the 7 pods of its loops; the rest was of the steps outside loops.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.documents import component_of, tasks_of

KIB = 1024
LIMIT = 1024 * KIB
# What is left is for texts that run longer than in the run that was measured: messages of errors, parameters, names.
BUDGET = 870 * KIB
# Loops of more pods outgrow what a cluster's store takes (kubeflow/pipelines#12131); of which nothing else is known, are so wide.
MOST_ITERATIONS = 50
_SPECIFICATION = 1.9  # bytes for each that is compiled: it is text within text
_IN_LOOP, _OUTSIDE = 12.6 * KIB, 7.1 * KIB  # a step with its driver, or a group


@dataclass(frozen=True, kw_only=True)
class WorkflowSize:
    """Estimated bytes of the specification, of steps and groups outside loops, and of the pods of loops, of which there are `num_pods`."""

    specification: int
    outside: int
    loops: int
    num_pods: int

    @property
    def total(self) -> int:
        return self.specification + self.outside + self.loops

    def __str__(self) -> str:
        parts = (
            f"specification {self.specification // KIB}",
            f"steps {self.outside // KIB}",
            f"{self.num_pods} pods of loops {self.loops // KIB}",
        )
        accepted = f"at most {BUDGET // KIB}, Argo takes {LIMIT // KIB}"
        return f"a workflow of about {self.total // KIB} KiB at its widest ({', '.join(parts)}); {accepted}"


def estimate(spec: Mapping[str, Any], platform: Mapping[str, Any], widths: Mapping[str, int]) -> WorkflowSize:
    """Size of the workflow of the pipeline `spec` with every loop at its widest.

    `widths` are the most items of loops, by the name of the task that plans them; of others, the items that are written out, or 50.
    """
    outside, pods = _counted(spec, spec["root"], dict(widths))
    compiled = len(json.dumps(spec)) + len(json.dumps(platform))
    return WorkflowSize(
        specification=round(compiled * _SPECIFICATION), outside=round(outside * _OUTSIDE), loops=round(pods * _IN_LOOP), num_pods=pods
    )


def _counted(spec: Mapping[str, Any], group: Mapping[str, Any], widths: Mapping[str, int]) -> tuple[int, int]:
    """Nodes outside loops, and steps in loops, below `group`; of branches, the largest, for one alone is run."""
    found = []
    for task in tasks_of(group).values():
        component = component_of(spec, task)
        outside, pods = (0, 0) if "dag" not in component else _counted(spec, component, widths)
        if (iterator := task.get("parameterIterator") or task.get("artifactIterator")) is not None:
            found.append((1, _width(iterator, widths) * (outside + pods)))
        else:
            found.append((outside + 1, pods))
    conditions = [bool(task.get("triggerPolicy", {}).get("condition")) for task in tasks_of(group).values()]
    if found and all(conditions):
        return max(found, key=lambda one: one[0] * _OUTSIDE + one[1] * _IN_LOOP)
    return sum(outside for outside, _ in found), sum(pods for _, pods in found)


def _width(iterator: Mapping[str, Any], widths: Mapping[str, int]) -> int:
    items = iterator.get("items", {})
    if "raw" in items:
        return len(json.loads(items["raw"]))
    planner = str(items.get("inputParameter", "")).removeprefix("pipelinechannel--").removesuffix("-Output")
    return widths.get(planner, MOST_ITERATIONS)
