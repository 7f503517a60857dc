"""JSON objects of model directories, read and written."""

import json
from pathlib import Path
from typing import Any

from gda.errors import DataError


def read_config_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `DataError` naming the file if it holds anything else or cannot be read."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: must hold a JSON object, found {type(content).__name__}")
    return content


def write_object(path: Path, content: dict[str, Any]) -> None:
    """Write sorted and indented, so that equal contents give equal files."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
