"""What all JSON documents of the stages have in common, and how they are read and written."""

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


def read_document(path: Path, kind: type[D]) -> D:
    """Read and validate a JSON document, and compare it with the `fingerprint.json` in the same folder.

    Raises `DataError` naming the file when it is missing, cut short, changed since it was written or not of this kind.
    """
    if not path.exists():
        raise DataError(f"{path}: not found; it is written last, so its absence means unfinished or not a {kind.__name__}")
    data = read_bytes(path)
    if kind.compared:
        require_recorded(path, data)
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: not a valid {kind.__name__} ({where}: {first['msg']})") from None


def dump_document(document: Document) -> bytes:
    """The bytes we store: indented, sorted keys, newline at the end; equal documents give equal bytes."""
    content: dict[str, Any] = document.model_dump(mode="json")
    return (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
