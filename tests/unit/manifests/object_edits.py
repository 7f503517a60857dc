"""Edits of objects in memory, by the path that findings print."""

import copy
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
RENDERED = ROOT / "manifests" / "rendered"
PIPELINE = ROOT / "pipelines" / "compiled" / "augment.yaml"
Objects = list[dict[str, Any]]
Edit = Callable[[Objects], None]


def load(*paths: Path) -> Objects:
    """The objects of the files, lists taken apart, none of which shares a part with another (YAML's aliases do)."""
    return [_copy(data) for path in paths for data in _parsed(path)]


@functools.cache
def _parsed(path: Path) -> Objects:
    documents = [data for data in yaml.load_all(path.read_text("utf-8"), yaml.CSafeLoader) if data]
    return [item for data in documents for item in (data["items"] if data.get("kind") == "List" else [data])]


def _copy(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _copy(value) for key, value in data.items()}
    return [_copy(item) for item in data] if isinstance(data, list) else data


def put(label: str, path: str, value: Any) -> Edit:
    """Sets what is at `path` of the object `Kind/name`."""

    def edit(objects: Objects) -> None:
        holder, key = _holder(_object(objects, label), path)
        holder[key] = copy.deepcopy(value)

    return edit


def drop(label: str, path: str = "") -> Edit:
    """Removes what is at `path` of the object, or the object."""

    def edit(objects: Objects) -> None:
        whole = _object(objects, label)
        if not path:
            objects[:] = [data for data in objects if data is not whole]
            return
        holder, key = _holder(whole, path)
        del holder[key]

    return edit


def add(label: str, path: str, item: Any) -> Edit:
    """Appends to the list at `path`, which is made where there is none."""

    def edit(objects: Objects) -> None:
        holder, key = _holder(_object(objects, label), path)
        if isinstance(holder, dict):
            holder.setdefault(key, [])
        holder[key].append(copy.deepcopy(item))

    return edit


def add_object(**data: Any) -> Edit:
    """One object more."""
    return lambda objects: objects.append(copy.deepcopy(data))


def _object(objects: Objects, label: str) -> dict[str, Any]:
    if label == "KfpPipeline/augment":
        return next(data for data in objects if "pipelineInfo" in data)
    if label == "platform":
        return next(data for data in objects if "platforms" in data)
    kind, name = label.split("/")
    found = [d for d in objects if d.get("kind") == kind and name in (d["metadata"].get("name"), d["metadata"].get("generateName"))]
    assert len(found) == 1, f"{label}: {len(found)}"
    return found[0]


def _holder(data: Any, path: str) -> tuple[Any, Any]:
    """What holds the last key of `path`, and the key; `[name]` and `[0]` are items of a list, `[a.b/c]` is a key with dots."""
    keys = re.findall(r"\[[^\]]+\]|[^.\[\]]+", path)
    for key in keys[:-1]:
        data = data[_key(data, key)]
    return data, _key(data, keys[-1])


def _key(data: Any, key: str) -> Any:
    if not key.startswith("["):
        return key
    name = key[1:-1]
    if isinstance(data, dict):
        return name
    return int(name) if name.isdigit() else next(i for i, item in enumerate(data) if item["name"] == name)
