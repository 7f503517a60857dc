"""A run's parameters, checked against the pipeline before anything is sent: the server would accept a misspelt name."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gda.config.renamed import PARAMETERS
from gda.errors import UsageError

# The server keeps no more than this of a run's parameters, in bytes of JSON.
MOST_BYTES = 10_000
# It reads every number, a whole one too, as a double: larger ones would come out as others.
LARGEST_WHOLE = 2**53
_ACCEPTED = {
    "STRING": "text",
    "NUMBER_INTEGER": "a whole number",
    "NUMBER_DOUBLE": "a number",
    "BOOLEAN": "true or false",
    "LIST": "a JSON list",
    "STRUCT": "a JSON object",
}


def read_parameters(given: Sequence[str], file: Path | None, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters in `file` (a JSON object) with those of `NAME=VALUE` over them, in the types that the pipeline `spec` declares.

    Raises `UsageError` that names an unknown parameter, a value of another type, a missing one, or the size when there is too much.
    """
    wanted = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    values = _from_file(file) if file is not None else {}
    for item in given:
        name, equals, text = item.partition("=")
        if not equals:
            raise UsageError(f"--param {item}: accepted: NAME=VALUE")
        values[name] = text if wanted.get(name, {}).get("parameterType") == "STRING" else _parsed(name, text)
    for name, value in values.items():
        if (new := PARAMETERS.get(name)) in wanted and name not in wanted:
            raise UsageError(f"parameter {name}: is now {new}")
        if name not in wanted:
            raise UsageError(f"parameter {name}: there is none; accepted: {', '.join(sorted(wanted))}")
        _require_type(name, value, wanted[name]["parameterType"])
        _require_exact(name, value)
    for name, definition in wanted.items():
        if name not in values and "defaultValue" not in definition and not definition.get("isOptional"):
            raise UsageError(f"parameter {name}: must be given; it is {_ACCEPTED[definition['parameterType']]}")
    if (size := len(json.dumps(values, ensure_ascii=False).encode())) > MOST_BYTES:
        raise UsageError(f"parameters: {size} bytes as JSON; accepted: up to {MOST_BYTES}")
    return values


def _from_file(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: no JSON object of parameters ({error})") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: no JSON object of parameters")
    return content


def _parsed(name: str, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        raise UsageError(f"parameter {name}: {text!r} is not JSON; text needs no quotes only where the parameter is text") from None


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _require_exact(name: str, value: Any) -> None:
    """Raise `UsageError` for a number, at any depth, that the server would not hand on as it is."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _require_exact(name, part)
    elif isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        raise UsageError(f"parameter {name}: {value}; accepted: whole numbers from -2^53 to 2^53, others the server rounds")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"parameter {name}: {value}; accepted: finite numbers")


def _require_type(name: str, value: Any, kind: str) -> None:
    fits = {
        "STRING": isinstance(value, str),
        "NUMBER_INTEGER": isinstance(value, int) and not isinstance(value, bool),
        "NUMBER_DOUBLE": isinstance(value, int | float) and not isinstance(value, bool),
        "BOOLEAN": isinstance(value, bool),
        "LIST": isinstance(value, list),
        "STRUCT": isinstance(value, dict),
    }.get(kind, False)
    if not fits:
        raise UsageError(f"parameter {name}: {value!r}; accepted: {_ACCEPTED.get(kind, 'nothing, the server sets it')}")
