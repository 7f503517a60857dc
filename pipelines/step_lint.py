"""How the steps of a compiled pipeline run: image, limits, retries, timeouts, caching where it is sound, and numbers that stay whole."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from pipelines.documents import component_of, executors_of, node_groups, tasks_of

# Parameters of these types are passed as protobuf structs, in which every number is floating point.
_AS_STRUCT = "STRUCT"
_LIMITS = ("resourceCpuLimit", "resourceMemoryLimit")
_PLACEHOLDER = re.compile(r"\{\{\$\.inputs\.(parameters|artifacts)\['([^']+)'\]")


@dataclass(frozen=True, order=True)
class Finding:
    """One defect: where (component and task) and what."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class Exemptions(TypedDict):
    """Names that rules leave alone: of parameters, of tasks and of loops; and how wide loops become, by the task that plans them."""

    structs: frozenset[str]
    uncached: frozenset[str]
    named_loops: frozenset[str]
    widths: dict[str, int]


def lint_steps(
    spec: Mapping[str, Any], platform: Mapping[str, Any], *, image: str, structs: frozenset[str], uncached: frozenset[str] | None
) -> Iterator[Finding]:
    """Defects of steps on their own; `scope_lint.lint` says what the arguments are."""
    yield from _executors(spec, executors_of(platform) if platform else None, image)
    yield from _tasks(spec, uncached)
    yield from _whole_numbers(spec, structs)


def _executors(spec: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]] | None, image: str) -> Iterator[Finding]:
    for name, executor in spec["deploymentSpec"]["executors"].items():
        container = executor.get("container")
        if container is None:
            if "importer" not in executor:
                yield Finding(name, "has no container")
            continue
        if not container.get("image"):
            yield Finding(name, "has no image")
        elif image and container["image"] != image:
            yield Finding(name, f"runs in {container['image']}, not in {image}")
        for limit in _LIMITS:
            if limit not in container.get("resources", {}):
                yield Finding(name, f"has no {limit}")
        if settings is not None:
            yield from _settings(name, settings.get(name, {}))


def _settings(name: str, settings: Mapping[str, Any]) -> Iterator[Finding]:
    if not str(settings.get("activeDeadlineSeconds", "")).isdecimal():
        yield Finding(name, "has no timeout")
    if not settings.get("securityContext", {}).get("runAsNonRoot"):
        yield Finding(name, "may run as root")


def _tasks(spec: Mapping[str, Any], uncached: frozenset[str] | None) -> Iterator[Finding]:
    chosen_from = _groups_chosen_from(spec)
    for group_name, group in node_groups(spec):
        for task_name, task in tasks_of(group).items():
            component = component_of(spec, task)
            if "executorLabel" not in component:
                continue
            cached = bool(task.get("cachingOptions", {}).get("enableCache"))
            where = f"{group_name}/{task_name}"
            if not task.get("retryPolicy", {}).get("maxRetryCount"):
                yield Finding(where, "is not tried again when it fails")
            if group_name in chosen_from and cached:
                yield Finding(where, "is cached in a branch that a OneOf reads; set_caching_options(False)")
            elif group_name not in chosen_from and uncached is not None and task_name not in uncached and not cached:
                yield Finding(where, "is not cached")
            yield from _placeholders(where, spec, component, task)


def _groups_chosen_from(spec: Mapping[str, Any]) -> set[str]:
    """Groups, at any depth, whose outputs a `OneOf` chooses from.

    Servers of 2.17 leave a group that holds a cached step in the state RUNNING, and a OneOf then finds none that succeeded.
    """
    found: set[str] = set()
    waiting = [component_of(spec, tasks_of(group).get(name)) for _, group in node_groups(spec) for name in _chosen_from(group)]
    names = {id(component): name for name, component in node_groups(spec)}
    while waiting:
        component = waiting.pop()
        name = names.get(id(component))
        if name is not None and name not in found:
            found.add(name)
            waiting += [component_of(spec, task) for task in tasks_of(component).values()]
    return found


def _chosen_from(group: Mapping[str, Any]) -> Iterator[str]:
    """Tasks of `group` that one of its outputs is chosen from."""
    handed = group["dag"].get("outputs", {})
    for output in handed.get("parameters", {}).values():
        yield from (one.get("producerSubtask", "") for one in output.get("valueFromOneof", {}).get("parameterSelectors", []))
    for output in handed.get("artifacts", {}).values():
        if len(selectors := output.get("artifactSelectors", [])) > 1:
            yield from (one.get("producerSubtask", "") for one in selectors)


def _placeholders(where: str, spec: Mapping[str, Any], component: Mapping[str, Any], task: Mapping[str, Any]) -> Iterator[Finding]:
    """Names that the container's words, image or resources refer to: a server looks them up among the step's own inputs."""
    container = spec["deploymentSpec"]["executors"].get(component["executorLabel"])
    if container is None:
        yield Finding(where, f"runs {component['executorLabel']}, which is no executor")
        return
    known = component.get("inputDefinitions", {}), task.get("inputs", {})
    for kind, name in sorted(set(_PLACEHOLDER.findall(json.dumps(container)))):
        if not any(name in inputs.get(kind, {}) for inputs in known):
            yield Finding(where, f"its container refers to {name}, which it is not given")


def _whole_numbers(spec: Mapping[str, Any], structs: frozenset[str]) -> Iterator[Finding]:
    for name, component in spec.get("components", {}).items():
        if "executorLabel" not in component:
            continue
        for parameter, definition in component.get("inputDefinitions", {}).get("parameters", {}).items():
            if definition.get("parameterType") == _AS_STRUCT and parameter not in structs:
                yield Finding(name, f"{parameter} is a dictionary, whose whole numbers become floating point; pass JSON as text")
