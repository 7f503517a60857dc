"""What a compiled pipeline must not do: read a name that its scope does not have, run without limits, lose whole numbers.

Pure, on the parsed intermediate representation. The compiler of kfp 2.17 lets through what fails only on the cluster: an item of a loop
in text inside an exit handler (kubeflow/pipelines#12390), loops over literal dicts inside a condition or an exit handler (#13273), and
run parameters that set nothing but resources inside any group of steps; and it garbles an item in text where a step gives the list.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.documents import component_of, executors_of, named_nodes, node_groups, tasks_of
from pipelines.size import BUDGET, MOST_ITERATIONS, estimate
from pipelines.step_lint import Finding, lint_steps

_CHANNEL = re.compile(r"\{\{\$\.inputs\.(parameters|artifacts)\['([^']+)'\]")
_CONDITION = re.compile(r"inputs\.parameter_values\['([^']+)'\]")
_KINDS = ("parameters", "artifacts")
# What a task's input may come from; an empty one comes from nowhere.
_SOURCES = {
    "componentInputParameter",
    "componentInputArtifact",
    "taskOutputParameter",
    "taskOutputArtifact",
    "runtimeValue",
    "taskFinalStatus",
}
_OUTPUTS = (("taskOutputParameter", "parameters", "outputParameterKey"), ("taskOutputArtifact", "artifacts", "outputArtifactKey"))
# Inputs of a task in addition to those that its component declares: channels, and what sets its resources.
_SET_BY_KFP = re.compile(r"pipelinechannel--.*|(cpu|memory)_(request|limit)|accelerator_(type|count)")


def lint(
    spec: Mapping[str, Any],
    platform: Mapping[str, Any] | None = None,
    *,
    image: str = "",
    structs: frozenset[str] = frozenset(),
    uncached: frozenset[str] | None = None,
    named_loops: frozenset[str] = frozenset(),
    widths: Mapping[str, int] | None = None,
) -> list[Finding]:
    """Every defect of the pipeline `spec`, sorted; `platform` is its Kubernetes part.

    `image`, if given, is what every step must run in. `structs` are names of parameters that may be dictionaries, `uncached`, if given,
    of the tasks that may run without the cache, `named_loops` of loops that may have a name although their outputs are collected;
    `widths` are the most items of loops, by the task that plans them.
    """
    findings = set(_scopes(spec, executors_of(platform or {}), named_loops))
    findings |= set(lint_steps(spec, platform or {}, image=image, structs=structs, uncached=uncached))
    if (size := estimate(spec, platform or {}, widths or {})).total > BUDGET:
        findings.add(Finding("root", f"makes {size}"))
    return sorted(findings)


def _scopes(spec: Mapping[str, Any], settings: Mapping[str, Any], named_loops: frozenset[str]) -> Iterator[Finding]:
    inside = _inside_groups(spec)
    for name, group in node_groups(spec):
        has = {kind: set(group.get("inputDefinitions", {}).get(kind, {})) for kind in _KINDS}
        tasks = tasks_of(group)
        if not tasks:
            yield Finding(name, "holds no task")
        for task_name, task in tasks.items():
            where = f"{name}/{task_name}"
            yield from _inputs(where, spec, task, tasks, has)
            yield from _declared(where, spec, task)
            yield from _iterator(where, task, has, nested=name in inside)
            yield from _condition(where, task)
            yield from _order(where, task, tasks)
            yield from _placement(where, spec, settings.get(component_of(spec, task).get("executorLabel", ""), {}), tasks, has)
        yield from _outputs(name, spec, group)
        yield from _collected(name, group, named_loops)


def _inputs(
    where: str, spec: Mapping[str, Any], task: Mapping[str, Any], tasks: Mapping[str, Any], has: Mapping[str, set[str]]
) -> Iterator[Finding]:
    given = task.get("inputs", {})
    items = _own_items(task)
    for kind in _KINDS:
        for name, source in given.get(kind, {}).items():
            if not _SOURCES & set(source):
                yield Finding(where, f"{name} comes from nowhere")
            own = source.get("componentInputParameter") or source.get("componentInputArtifact")
            if own is not None and own not in has[kind] | items:
                yield Finding(where, f"{name} reads {own}, which its group does not have")
            yield from _producers(where, name, spec, source, tasks)
            constant = source.get("runtimeValue", {}).get("constant")
            text = constant if isinstance(constant, str) else ""
            if "runtimeValue" in source and constant is None:
                yield Finding(where, f"{name} comes from nowhere")
            if "-loop-item" in _CHANNEL.sub("", text):
                yield Finding(where, f"{name} holds the name of a loop's item in its place")
            for _, channel in _CHANNEL.findall(text):
                if channel not in given.get("parameters", {}) and channel not in has["parameters"] | items:
                    yield Finding(where, f"{name} writes {channel} into text, which its group does not have")


def _declared(where: str, spec: Mapping[str, Any], task: Mapping[str, Any]) -> Iterator[Finding]:
    """What a task is given is what its component declares."""
    component = component_of(spec, task)
    if not component:
        yield Finding(where, "refers to a component that there is none of")
        return
    if "dag" not in component and "executorLabel" not in component:
        yield Finding(where, "has neither tasks nor an executor")
    wanted = component.get("inputDefinitions", {})
    items = _own_items(task)
    for kind in _KINDS:
        given = task.get("inputs", {}).get(kind, {})
        for name, definition in wanted.get(kind, {}).items():
            optional = (
                definition.get("isOptional") or "defaultValue" in definition or definition.get("parameterType") == "TASK_FINAL_STATUS"
            )
            if not optional and name not in given and name not in items:
                yield Finding(where, f"lacks {name}")
        for name in given:
            if name not in wanted.get(kind, {}) and not ("executorLabel" in component and _SET_BY_KFP.fullmatch(name)):
                yield Finding(where, f"is given {name}, which its component does not declare")


def _producers(where: str, name: str, spec: Mapping[str, Any], source: Mapping[str, Any], tasks: Mapping[str, Any]) -> Iterator[Finding]:
    for field, kind, key in _OUTPUTS:
        if (reference := source.get(field)) is None:
            continue
        producer = reference.get("producerTask")
        if producer not in tasks:
            yield Finding(where, f"{name} reads an output of {producer}, which is no task of the same scope")
        elif reference.get(key) not in component_of(spec, tasks[producer]).get("outputDefinitions", {}).get(kind, {}):
            yield Finding(where, f"{name} reads {reference.get(key)} of {producer}, which has no such output")
    if "taskFinalStatus" in source and source["taskFinalStatus"].get("producerTask") not in tasks:
        yield Finding(where, f"{name} is the end of {source['taskFinalStatus'].get('producerTask')}, which is no task of the same scope")


def _own_items(task: Mapping[str, Any]) -> set[str]:
    """Names that a loop's task gives its own body."""
    iterator = task.get("parameterIterator") or task.get("artifactIterator") or {}
    return {iterator["itemInput"]} if "itemInput" in iterator else set()


def _iterator(where: str, task: Mapping[str, Any], has: Mapping[str, set[str]], *, nested: bool) -> Iterator[Finding]:
    for field, kind, key in (("parameterIterator", "parameters", "inputParameter"), ("artifactIterator", "artifacts", "inputArtifact")):
        if (iterator := task.get(field)) is None:
            continue
        items = iterator.get("items", {})
        if "raw" in items:
            yield from _literals(where, json.loads(items["raw"]), nested=nested)
        elif items.get(key) not in set(task.get("inputs", {}).get(kind, {})) | has[kind]:
            yield Finding(where, f"loops over {items.get(key)}, which its group does not have")


def _literals(where: str, values: list[Any], *, nested: bool) -> Iterator[Finding]:
    if len(values) > MOST_ITERATIONS:
        yield Finding(where, f"loops {len(values)} times; at most {MOST_ITERATIONS}")
    if nested and any(isinstance(value, dict) for value in values):
        yield Finding(where, "loops over literal dicts inside a group; let a step give the list")


def _condition(where: str, task: Mapping[str, Any]) -> Iterator[Finding]:
    policy = task.get("triggerPolicy", {})
    for name in _CONDITION.findall(policy.get("condition", "")):
        if name not in task.get("inputs", {}).get("parameters", {}):
            yield Finding(where, f"its condition reads {name}, which it is not given")


def _order(where: str, task: Mapping[str, Any], tasks: Mapping[str, Any]) -> Iterator[Finding]:
    for name in task.get("dependentTasks", ()):
        if name not in tasks:
            yield Finding(where, f"waits for {name}, which is no task of the same scope")


def _placement(
    where: str, spec: Mapping[str, Any], settings: Mapping[str, Any], tasks: Mapping[str, Any], has: Mapping[str, set[str]]
) -> Iterator[Finding]:
    """Names that the Kubernetes part reads, for volumes, secrets or nodes: they are looked up in the task's group."""
    for name in named_nodes(settings, "componentInputParameter"):
        if name not in has["parameters"]:
            yield Finding(where, f"its pod reads {name}, which its group does not have")
    for reference in named_nodes(settings, "taskOutputParameter"):
        yield from _producers(where, "its pod", spec, {"taskOutputParameter": reference}, tasks)


def _outputs(name: str, spec: Mapping[str, Any], group: Mapping[str, Any]) -> Iterator[Finding]:
    """What a group hands out is what it declares, and an output of one of its tasks."""
    tasks = tasks_of(group)
    for kind in _KINDS:
        handed = group["dag"].get("outputs", {}).get(kind, {})
        declared = group.get("outputDefinitions", {}).get(kind, {})
        for output in sorted(set(declared) - set(handed)):
            yield Finding(name, f"declares {output}, which it does not hand out")
        for output in sorted(set(handed) - set(declared)):
            yield Finding(name, f"hands out {output}, which it does not declare")
        for output, source in handed.items():
            selectors = _selectors(source)
            if not selectors:
                yield Finding(name, f"hands out {output} of nothing")
            for producer, key in selectors:
                if key not in component_of(spec, tasks.get(producer)).get("outputDefinitions", {}).get(kind, {}):
                    yield Finding(name, f"hands out {output} of {producer}, which has no such output")


def _selectors(source: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Task and output of each candidate for a group's output."""
    found = [source["valueFromParameter"]] if "valueFromParameter" in source else []
    found += source.get("valueFromOneof", {}).get("parameterSelectors", [])
    found += source.get("artifactSelectors", [])
    return [(one.get("producerSubtask", ""), one.get("outputParameterKey") or one.get("outputArtifactKey") or "") for one in found]


def _collected(name: str, group: Mapping[str, Any], named_loops: frozenset[str]) -> Iterator[Finding]:
    """Loops with a name whose outputs are read: servers look these up under that name (kubeflow/pipelines#13239)."""
    tasks = tasks_of(group)
    read = {reference.get("producerTask") for task in tasks.values() for field, _, _ in _OUTPUTS for reference in named_nodes(task, field)}
    handed = group["dag"].get("outputs", {})
    read |= {producer for kind in _KINDS for source in handed.get(kind, {}).values() for producer, _ in _selectors(source)}
    for task_name, task in tasks.items():
        title = task.get("taskInfo", {}).get("name", task_name)
        if "parameterIterator" in task and task_name in read and title not in {task_name, *named_loops}:
            yield Finding(f"{name}/{task_name}", f"is named {title}, and its outputs are collected; leave name= out")


def _inside_groups(spec: Mapping[str, Any]) -> set[str]:
    """Groups that lie in another group than the root."""
    return {task.get("componentRef", {}).get("name", "") for _, group in node_groups(spec) for task in tasks_of(group).values()} & {
        name for name, _ in node_groups(spec)
    }
