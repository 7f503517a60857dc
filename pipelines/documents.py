"""Compiled pipelines as they are read from their files, and the parts that every check of them walks."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gda.errors import UsageError

_NEEDED = (("pipelineInfo", "name"), ("root", "dag", "tasks"), ("deploymentSpec", "executors"))


def read_compiled(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline's specification and its Kubernetes part, of either form of file. Raises `UsageError` for anything else."""
    import yaml

    # The parser in C reads these files, which have thousands of lines, ten times as fast.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        documents = [document for document in yaml.load_all(path.read_text("utf-8"), loader) if isinstance(document, dict)]
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: no compiled pipeline ({' '.join(str(error).split())})") from None
    for document in documents:
        if document.get("kind") == "PipelineVersion":
            content = document.get("spec") or {}
            return _whole(path, content.get("pipelineSpec")), content.get("platformSpec") or {}
    specs = [document for document in documents if "pipelineInfo" in document]
    platforms = [document for document in documents if "platforms" in document]
    return _whole(path, specs[0] if specs else None), platforms[0] if platforms else {}


def _whole(path: Path, spec: Any) -> dict[str, Any]:
    """`spec`, if it has the parts without which it is no pipeline."""
    if not isinstance(spec, dict):
        raise UsageError(f"{path}: no compiled pipeline; accepted: what python -m pipelines compile writes")
    for names in _NEEDED:
        part: Any = spec
        for name in names:
            part = part.get(name) if isinstance(part, dict) else None
        if not part:
            raise UsageError(f"{path}: no compiled pipeline (lacks {'.'.join(names)}); accepted: what python -m pipelines compile writes")
    return spec


def node_groups(spec: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every component that holds tasks, by name."""
    yield "root", spec["root"]
    for name, component in spec.get("components", {}).items():
        if "dag" in component:
            yield name, component


def tasks_of(group: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """The tasks of a group by name."""
    tasks: Mapping[str, Mapping[str, Any]] = group["dag"].get("tasks", {})
    return tasks


def component_of(spec: Mapping[str, Any], task: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The component that `task` runs; empty where there is none."""
    name = (task or {}).get("componentRef", {}).get("name", "")
    component: Mapping[str, Any] = spec.get("components", {}).get(name, {})
    return component


def executors_of(platform: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """What Kubernetes gets for each executor."""
    found: Mapping[str, Mapping[str, Any]] = (
        platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    )
    return found


def named_nodes(node: Any, key: str) -> Iterator[Any]:
    """Every value of `key` at any depth below `node`."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            if name == key:
                yield value
            else:
                yield from named_nodes(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from named_nodes(value, key)
