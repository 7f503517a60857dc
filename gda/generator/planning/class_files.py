"""Reads files with one entry per class (prompts, quotas) and checks them against the known classes; errors are one line."""

import csv
import io
import reprlib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from gda.data.store.classes import normalise
from gda.errors import ConfigError
from gda.runtime.reading import MIB, TEXT_LIMIT, parse_json, parse_yaml, parser, read_text

LISTED = 10


def read_by_class(path: Path, names: Sequence[str], *, where: str, what: str) -> dict[str, Any]:
    """Class name -> value, from a JSON file (by its suffix) or YAML 1.2 file; entries for some of `names` may be missing.

    Raises `ConfigError`, which begins with `where`, for an unreadable file, anything but a mapping of class name to `what`, and an
    unknown or repeated class.
    """
    content = _read_mapping(path, where)
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: expected a mapping of class name to {what}, found {kind_of(content)}")
    return _matched(((where, key, value) for key, value in content.items()), names)


def read_table(path: Path, names: Sequence[str], *, columns: tuple[str, str], where: str) -> dict[str, tuple[int, str]]:
    """Class name -> (line, text) of a CSV file in UTF-8, whose header must be `columns`; empty lines are ignored.

    Raises `ConfigError`, which begins with `where` and names the line, for an unreadable file, other columns, and an unknown or
    repeated class.
    """
    text = read_text(path, what="valid CSV in UTF-8", where=where, error=ConfigError)
    with parser(where, "valid CSV in UTF-8", error=ConfigError):
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    first, header = lines[0] if lines else (1, [])
    if tuple(header) != columns:
        raise ConfigError(f"{where}: line {first}: expected the header {','.join(columns)!r}, found {','.join(header)!r}")
    for line, row in lines[1:]:
        if len(row) != len(columns):
            raise ConfigError(f"{where}: line {line}: expected {len(columns)} columns, found {len(row)}")
    return _matched(((f"{where}: line {line}", name, (line, text)) for line, (name, text) in lines[1:]), names)


def kind_of(value: Any) -> str:
    """Describe a value for an error message: its type and an abbreviated repr."""
    return "nothing" if value is None else f"{type(value).__name__} {reprlib.repr(value)}"


def listed(items: Sequence[str], what: str) -> str:
    """The first ten of `items`, and the number of further ones, called `what`."""
    more = f" and {len(items) - LISTED} more {what}" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more


def _matched(entries: Iterable[tuple[str, Any, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Class name -> value of (where, key, value)."""
    matched: dict[str, Any] = {}
    known = set(names)
    for where, key, value in entries:
        name = normalise(key) if isinstance(key, str) else key
        if name not in known:
            raise ConfigError(f"{where}: {key!r} is no class; {_meant(str(key), names)}")
        if name in matched:
            raise ConfigError(f"{where}: class {name!r} is named twice")
        matched[name] = value
    return matched


def _meant(wrong: str, names: Sequence[str]) -> str:
    close = get_close_matches(wrong, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"the classes are {listed([repr(name) for name in names], 'classes')}"


def _read_mapping(path: Path, where: str) -> Any:
    """JSON, or YAML 1.2 with its top-level keys as literal text: 007, 1e3 and null are class names, not numbers."""
    is_json = path.suffix.lower() == ".json"
    what = f"valid {'JSON' if is_json else 'YAML'} in UTF-8"
    text = read_text(path, limit=TEXT_LIMIT if is_json else 2 * MIB, what=what, where=where, error=ConfigError)
    if is_json:
        return parse_json(text, where, unique=True, halves=True, error=ConfigError)
    return parse_yaml(text, where, keys_as_text=True, halves=True, error=ConfigError)
