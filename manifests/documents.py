"""Kubernetes objects and compiled pipelines as they are read from YAML files, and what a check says about them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gda.errors import DataError


@dataclass(frozen=True, kw_only=True)
class KubernetesObject:
    """One object of a file; a compiled pipeline's two documents are one, of the kind `KfpPipeline`."""

    file: str
    kind: str
    name: str
    namespace: str
    data: dict[str, Any]

    @property
    def label(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True, kw_only=True, order=True)
class ManifestFinding:
    """Something wrong: where, what, and what is accepted in its place."""

    file: str
    object: str
    path: str
    what: str
    accepted: str

    def __str__(self) -> str:
        return f"{self.file}: {self.object}: {self.path}: {self.what}; accepted: {self.accepted}"


def finding(document: KubernetesObject, path: str, what: str, accepted: str) -> ManifestFinding:
    """A finding in `document`."""
    return ManifestFinding(file=document.file, object=document.label, path=path, what=what, accepted=accepted)


def read(paths: Iterable[Path]) -> list[KubernetesObject]:
    """Every object of the files. Raises `DataError` for a file that is no YAML, or of which a document is no object."""
    return [document for path in paths for document in from_objects(str(path), _load(path))]


def from_objects(file: str, objects: Sequence[Any]) -> list[KubernetesObject]:
    """The objects of one file, lists taken apart. Raises `DataError` where one is neither an object nor a compiled pipeline."""
    found: list[KubernetesObject] = []
    platforms = [data for data in objects if isinstance(data, dict) and "platforms" in data]
    for data in _flat(objects):
        if not isinstance(data, dict):
            raise DataError(f"{file}: a document is a {type(data).__name__}; accepted: Kubernetes objects and compiled pipelines")
        if "pipelineInfo" in data:
            found.append(_pipeline(file, data, platforms[0] if platforms else {}))
        elif data.get("kind") == "PipelineVersion":
            found.append(_pipeline(file, data["spec"]["pipelineSpec"], data["spec"].get("platformSpec") or {}))
        elif "kind" in data:
            found.append(_object(file, data))
        elif "platforms" not in data:
            raise DataError(f"{file}: a document has no kind; accepted: Kubernetes objects and compiled pipelines")
    return found


def _load(path: Path) -> list[Any]:
    try:
        objects = [data for data in yaml.safe_load_all(path.read_text("utf-8")) if data is not None]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: no YAML: {' '.join(str(error).split())}; accepted: Kubernetes objects and compiled pipelines") from None
    if not objects:
        raise DataError(f"{path}: is empty; accepted: Kubernetes objects and compiled pipelines")
    return objects


def _flat(objects: Iterable[Any]) -> Iterator[Any]:
    for data in objects:
        if isinstance(data, dict) and data.get("kind") == "List":
            yield from _flat(data.get("items") or [])
        else:
            yield data


def _object(file: str, data: dict[str, Any]) -> KubernetesObject:
    metadata = data.get("metadata") or {}
    name = metadata.get("name") or metadata.get("generateName") or "?"
    return KubernetesObject(file=file, kind=str(data["kind"]), name=str(name), namespace=str(metadata.get("namespace") or ""), data=data)


def _pipeline(file: str, spec: dict[str, Any], platform: dict[str, Any]) -> KubernetesObject:
    name = str(spec["pipelineInfo"].get("name", "?"))
    return KubernetesObject(file=file, kind="KfpPipeline", name=name, namespace="", data={"spec": spec, "platform": platform})
