"""What all JSON documents of the stages have in common, and how they are read and written."""

import itertools
import json
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from gda.artifacts.contents import require_recorded
from gda.errors import DataError
from gda.runtime.reading import read_bytes

SCHEMA_VERSION: Literal[1] = 1


class Document(BaseModel):
    """Base of every JSON document we write: frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    compared: ClassVar[bool] = True  # whether reading the document also compares it with the folder's list of files


D = TypeVar("D", bound=Document)


_MADE_BY = {
    "snapshot.json": "gda snapshot or gda sample",
    "generator.json": "gda finetune",
    "settings.json": "gda tune",
    "verdict.json": "gda validate",
    "reference.json": "gda reference",
    "classifier.json": "gda classify",
    "metrics.json": "gda evaluate",
    "decision.json": "gda promote",
    "ratio.json": "gda ratio",
}
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".avif")
_MOST_LOOKED_AT = 1000  # files


def read_document(path: Path, kind: type[D]) -> D:
    """Read and validate a JSON document, and compare it with the `fingerprint.json` in the same folder.

    Raises `DataError` naming the file when it is missing, cut short, changed since it was written or not of this kind.
    """
    if not path.exists():
        raise DataError(_why_missing(path))
    data = read_bytes(path)
    if kind.compared:
        require_recorded(path, data)
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: not a valid {kind.__name__} ({where}: {first['msg']})") from None


def _why_missing(path: Path) -> str:
    """What the user gave instead of an output of ours, which has its document or was not finished: documents are written last."""
    folder, command = path.parent, _MADE_BY.get(path.name, "the stage before")
    if not folder.exists():
        return f"{folder}: no such folder; expected an output of {command}"
    if path.name == "snapshot.json" and _holds_images(folder):
        return f"{folder}: is a folder of images, not a snapshot; freeze it first: gda snapshot {folder} --out data/real"
    return f"{path}: not found: {folder} is no output of {command}, or one that was not finished"


def _holds_images(folder: Path) -> bool:
    """Whether there are image files in the folder or in a folder of it."""
    files = itertools.islice(itertools.chain(folder.glob("*"), folder.glob("*/*"), folder.glob("*/*/*")), _MOST_LOOKED_AT)
    return any(file.suffix.lower() in _IMAGES for file in files)


def dump_document(document: Document) -> bytes:
    """The bytes we store: indented, sorted keys, newline at the end; equal documents give equal bytes."""
    content: dict[str, Any] = document.model_dump(mode="json")
    return (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
