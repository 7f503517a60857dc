"""What a compiled pipeline must not do: read a name that its scope does not have, run without limits, lose whole numbers.

Pure, on the parsed intermediate representation. The compiler of kfp 2.17 lets through what fails only on the cluster: an item of a loop
in text inside an exit handler (kubeflow/pipelines#12390), loops over literal dicts inside a condition or an exit handler (#13273), and
run parameters that set nothing but resources inside any group of steps; and it garbles an item in text where a step gives the list.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Loops of more pods outgrow what a cluster's store takes (kubeflow/pipelines#12131).
MOST_ITERATIONS = 50
_CHANNEL = re.compile(r"\{\{\$\.inputs\.(parameters|artifacts)\['([^']+)'\]")
_KINDS = ("parameters", "artifacts")
# Parameters of these types are passed as protobuf structs, in which every number is floating point.
_AS_STRUCT = "STRUCT"


@dataclass(frozen=True, order=True)
class Finding:
    """One defect: where (component and task) and what."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def lint(
    spec: Mapping[str, Any], platform: Mapping[str, Any] | None = None, *, image: str = "", structs: frozenset[str] = frozenset()
) -> list[Finding]:
    """Every defect of the pipeline `spec`, sorted; `platform` is its Kubernetes part.

    `image`, if given, is what every step must run in. `structs` are names of parameters that may be dictionaries.
    """
    findings = set(_scopes(spec))
    findings |= set(_executors(spec, platform or {}, image))
    findings |= set(_whole_numbers(spec, structs))
    return sorted(findings)


def _groups(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every component that holds tasks, by name."""
    yield "root", spec["root"]
    for name, component in spec.get("components", {}).items():
        if "dag" in component:
            yield name, component


def _scopes(spec: Mapping[str, Any]) -> Iterator[Finding]:
    inside = _inside_groups(spec)
    for name, group in _groups(spec):
        has = {kind: set(group.get("inputDefinitions", {}).get(kind, {})) for kind in _KINDS}
        tasks = group["dag"]["tasks"]
        for task_name, task in tasks.items():
            where = f"{name}/{task_name}"
            yield from _inputs(where, spec, task, tasks, has)
            yield from _iterator(where, task, has, nested=name in inside)
            yield from _condition(where, task)
        yield from _outputs(name, spec, group, tasks)


def _inputs(
    where: str, spec: Mapping[str, Any], task: Mapping[str, Any], tasks: Mapping[str, Any], has: Mapping[str, set[str]]
) -> Iterator[Finding]:
    given = task.get("inputs", {})
    items = _own_items(task)
    for kind in _KINDS:
        for name, source in given.get(kind, {}).items():
            own = source.get("componentInputParameter") or source.get("componentInputArtifact")
            if own is not None and own not in has[kind] | items:
                yield Finding(where, f"{name} reads {own}, which its group does not have")
            yield from _producers(where, name, spec, source, tasks)
            constant = source.get("runtimeValue", {}).get("constant")
            text = constant if isinstance(constant, str) else ""
            if "-loop-item" in _CHANNEL.sub("", text):
                yield Finding(where, f"{name} holds the name of a loop's item in its place")
            for _, channel in _CHANNEL.findall(text):
                if channel not in given.get("parameters", {}) and channel not in has["parameters"] | items:
                    yield Finding(where, f"{name} writes {channel} into text, which its group does not have")
    component = spec.get("components", {}).get(task.get("componentRef", {}).get("name", ""))
    if component is None:
        yield Finding(where, "refers to a component that there is none of")
        return
    wanted = component.get("inputDefinitions", {})
    for kind in _KINDS:
        for name, definition in wanted.get(kind, {}).items():
            optional = (
                definition.get("isOptional") or "defaultValue" in definition or definition.get("parameterType") == "TASK_FINAL_STATUS"
            )
            if not optional and name not in given.get(kind, {}) and name not in items:
                yield Finding(where, f"lacks {name}")


def _producers(where: str, name: str, spec: Mapping[str, Any], source: Mapping[str, Any], tasks: Mapping[str, Any]) -> Iterator[Finding]:
    for field, kind, key in (
        ("taskOutputParameter", "parameters", "outputParameterKey"),
        ("taskOutputArtifact", "artifacts", "outputArtifactKey"),
    ):
        if (reference := source.get(field)) is None:
            continue
        producer = tasks.get(reference["producerTask"])
        if producer is None:
            yield Finding(where, f"{name} reads an output of {reference['producerTask']}, which is no task beside it")
            continue
        component = spec["components"].get(producer["componentRef"]["name"], {})
        if reference[key] not in component.get("outputDefinitions", {}).get(kind, {}):
            yield Finding(where, f"{name} reads {reference[key]} of {reference['producerTask']}, which has no such output")


def _own_items(task: Mapping[str, Any]) -> set[str]:
    """Names that a loop's task gives its own body."""
    iterator = task.get("parameterIterator") or task.get("artifactIterator") or {}
    return {iterator["itemInput"]} if "itemInput" in iterator else set()


def _iterator(where: str, task: Mapping[str, Any], has: Mapping[str, set[str]], *, nested: bool) -> Iterator[Finding]:
    iterator = task.get("parameterIterator")
    if iterator is None:
        return
    items = iterator.get("items", {})
    if "raw" in items:
        values = json.loads(items["raw"])
        if len(values) > MOST_ITERATIONS:
            yield Finding(where, f"loops {len(values)} times; at most {MOST_ITERATIONS}")
        if nested and any(isinstance(value, dict) for value in values):
            yield Finding(where, "loops over literal dicts inside a group; let a step give the list")
    elif items.get("inputParameter") not in set(task.get("inputs", {}).get("parameters", {})) | has["parameters"]:
        yield Finding(where, f"loops over {items.get('inputParameter')}, which its group does not have")


def _condition(where: str, task: Mapping[str, Any]) -> Iterator[Finding]:
    condition = task.get("triggerPolicy", {}).get("condition", "")
    for name in re.findall(r"inputs\.parameter_values\['([^']+)'\]", condition):
        if name not in task.get("inputs", {}).get("parameters", {}):
            yield Finding(where, f"its condition reads {name}, which it is not given")


def _outputs(name: str, spec: Mapping[str, Any], group: Mapping[str, Any], tasks: Mapping[str, Any]) -> Iterator[Finding]:
    outputs = group["dag"].get("outputs", {})
    for output, source in outputs.get("parameters", {}).items():
        selectors = (
            [source["valueFromParameter"]]
            if "valueFromParameter" in source
            else source.get("valueFromOneof", {}).get("parameterSelectors", [])
        )
        for selector in selectors:
            task = tasks.get(selector["producerSubtask"])
            component = spec["components"].get(task["componentRef"]["name"], {}) if task else {}
            if selector["outputParameterKey"] not in component.get("outputDefinitions", {}).get("parameters", {}):
                yield Finding(name, f"hands out {output} of {selector['producerSubtask']}, which has no such output")


def _inside_groups(spec: Mapping[str, Any]) -> set[str]:
    """Groups that lie in another group than the root."""
    return {task["componentRef"]["name"] for name, group in _groups(spec) for task in group["dag"]["tasks"].values()} & {
        name for name, _ in _groups(spec)
    }


def _executors(spec: Mapping[str, Any], platform: Mapping[str, Any], image: str) -> Iterator[Finding]:
    settings = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    for name, executor in spec["deploymentSpec"]["executors"].items():
        container = executor.get("container")
        if container is None:
            continue
        if image and container.get("image") != image:
            yield Finding(name, f"runs in {container.get('image')}, not in {image}")
        resources = container.get("resources", {})
        for limit in ("resourceCpuLimit", "resourceMemoryLimit"):
            if limit not in resources:
                yield Finding(name, f"has no {limit}")
        if platform and "activeDeadlineSeconds" not in settings.get(name, {}):
            yield Finding(name, "has no timeout")
        if platform and not settings.get(name, {}).get("securityContext", {}).get("runAsNonRoot"):
            yield Finding(name, "may run as root")
    for group_name, group in _groups(spec):
        for task_name, task in group["dag"]["tasks"].items():
            component = spec.get("components", {}).get(task.get("componentRef", {}).get("name", ""), {})
            if "executorLabel" in component and "retryPolicy" not in task:
                yield Finding(f"{group_name}/{task_name}", "is not tried again when it fails")


def _whole_numbers(spec: Mapping[str, Any], structs: frozenset[str]) -> Iterator[Finding]:
    for name, component in spec.get("components", {}).items():
        if "executorLabel" not in component:
            continue
        for parameter, definition in component.get("inputDefinitions", {}).get("parameters", {}).items():
            if definition.get("parameterType") == _AS_STRUCT and parameter not in structs:
                yield Finding(name, f"{parameter} is a dictionary, whose whole numbers become floating point; pass JSON as text")
