"""Reading untrusted files: whatever error a parser raises, gda raises one that names the file.

Size, depth and expansion are bounded before anything is built from a file. Only a library's parser runs inside `parser`; what we do with
its result stays outside, so that a defect of ours still shows as one.
"""

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gda.errors import DataError, GdaError
from gda.runtime.disks import storage_problem
from gda.runtime.interruption import require_not_stopped

if TYPE_CHECKING:
    import numpy as np
    from ruamel.yaml.nodes import Node

MIB = 1 << 20
JSON_LIMIT, TEXT_LIMIT = 64 * MIB, 64 * MIB
YAML_LIMIT = MIB // 8  # its parser takes up to 25 microseconds a byte
_MOST_DEPTH = 64
_MOST_YAML_NODES = 100_000  # after aliases and merge keys are written out
_MOST_DIGITS = 40  # room for the 128 bits of a random generator's state
_BIGGEST = 10**_MOST_DIGITS
_WHOLE = re.compile(r"[0-9]{1,18}")


class Unreadable(ValueError):  # noqa: N818 - never leaves this module
    """Content that a parser accepts and gda refuses."""


def whole_number(text: str) -> int | None:
    """The number that up to 18 ASCII digits write, None for any other text.

    Python's own `isdigit` takes digits of every script, some of which `int` refuses, as it refuses thousands of digits.
    """
    return int(text) if _WHOLE.fullmatch(text) else None


@contextmanager
def parser(where: object, what: str, *, error: type[GdaError] = DataError) -> Iterator[None]:
    """Run a library's parser: anything it raises becomes `error`, "`where`: not `what` (reason)".

    A disk that fails during reading is a `MissingError` instead. Only for library calls: defects of gda must not be caught here.
    """
    try:
        yield
    except GdaError:
        raise
    except Exception as problem:
        require_not_stopped()
        if (of_disk := _disk_problem(problem)) is not None:
            raise of_disk from None
        raise error(f"{where}: not {what} ({reason_of(problem)})") from None


def reason_of(problem: BaseException) -> str:
    """One line of at most 200 characters: what is wrong, with the line number of a YAML error."""
    problem_text, mark = getattr(problem, "problem", None), getattr(problem, "problem_mark", None)
    text = f"line {mark.line + 1}: {problem_text}" if problem_text and mark else str(problem)
    if isinstance(problem, RecursionError):
        text = "nested too deep"
    elif isinstance(problem, MemoryError):
        text = "would take more memory than there is"
    first = (text.strip().splitlines() or [""])[0].encode("utf-8", "backslashreplace").decode()
    return first[:200] or type(problem).__name__


def read_bytes(path: Path, *, limit: int = TEXT_LIMIT, where: object = None, error: type[GdaError] = DataError) -> bytes:
    """All bytes of a regular file of at most `limit` bytes.

    Raises `error` where there is none, it may not be read, or it is larger, `MissingError` where the disk fails.
    """
    name = path if where is None else where
    try:
        # If the name is a pipe, opening it must not wait for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise error(f"{name}: cannot be read (not a regular file)")
            if found.st_size > limit:
                raise error(f"{name}: is larger than the {limit / MIB:g} MiB that are accepted")
            return file.read()
    except (OSError, ValueError) as problem:  # ValueError: a name with a null byte
        if (of_disk := _disk_problem(problem)) is not None:
            raise of_disk from None
        raise error(f"{name}: cannot be read ({getattr(problem, 'strerror', None) or problem})") from None


def read_text(
    path: Path, *, limit: int = TEXT_LIMIT, what: str = "text in UTF-8", where: object = None, error: type[GdaError] = DataError
) -> str:
    """As `read_bytes`, decoded as UTF-8 with or without a byte order mark. Raises `error` for any other encoding: "not `what`"."""
    data = read_bytes(path, limit=limit, where=where, error=error)
    with parser(path if where is None else where, what, error=error):
        return data.decode("utf-8-sig")


def read_json(path: Path, *, limit: int = JSON_LIMIT, finite: bool = True, where: object = None, error: type[GdaError] = DataError) -> Any:
    """The content of a JSON file, as `parse_json` gives it. Raises as `read_bytes` and `parse_json` do."""
    data = read_bytes(path, limit=limit, where=where, error=error)
    return parse_json(data, path if where is None else where, finite=finite, error=error)


def read_object(path: Path, *, finite: bool = True, where: object = None, error: type[GdaError] = DataError) -> dict[str, Any]:
    """As `read_json`. Raises `error` also for anything but a JSON object."""
    return as_object(read_json(path, finite=finite, where=where, error=error), path if where is None else where, error=error)


def as_object(content: Any, where: object, *, error: type[GdaError] = DataError) -> dict[str, Any]:
    """`content`, which is a dictionary. Raises `error` where it is anything else."""
    if not isinstance(content, dict):
        raise error(f"{where}: expected a JSON object, found {type(content).__name__}")
    return content


def parse_json(
    data: str | bytes,
    where: object,
    *,
    finite: bool = True,
    unique: bool = False,
    halves: bool = False,
    error: type[GdaError] = DataError,
) -> Any:
    """JSON at most 64 levels deep, of numbers of at most 40 digits; with `unique`, no key twice.

    Halves of surrogate pairs, which no file can be written with, are refused unless `halves`: the caller then names the field. NaN
    and infinity are refused unless `finite` is false. Raises `error` that names `where`.
    """
    with parser(where, "valid JSON in UTF-8", error=error):
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        content = json.loads(text, object_pairs_hook=_unique) if unique else json.loads(text)
        _require_bounded(content)
        written = json.dumps(content, ensure_ascii=False, allow_nan=not finite)
        if not halves:
            written.encode()
    return content


def parse_yaml(text: str, where: object, *, keys_as_text: bool = False, halves: bool = False, error: type[GdaError] = DataError) -> Any:
    """YAML 1.2 of plain types, whose aliases and merges may expand to 100,000 nodes; `keys_as_text` takes top keys as they are written.

    `halves` as in `parse_json`. Raises `error` that names `where`.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.nodes import MappingNode, ScalarNode

    with parser(where, "valid YAML in UTF-8", error=error):
        _require_shallow(text)
        yaml = YAML(typ="safe", pure=True)
        node = yaml.compose(text)
        if node is None:
            return None
        _require_small(node)
        for key, _ in node.value if keys_as_text and isinstance(node, MappingNode) else ():
            if isinstance(key, ScalarNode):
                key.tag = "tag:yaml.org,2002:str"
        content = yaml.constructor.construct_document(node)
        _require_bounded(content)
        if not halves:
            repr(content).encode()
        return content


class PickledError(DataError):
    """A file whose reading could run any code; it is never opened."""


def read_npz(path: Path, names: tuple[str, ...], *, limit: int) -> "tuple[Mapping[str, np.ndarray], tuple[str, ...]]":
    """Those of the arrays `names` that an .npz holds, and the names of all that it holds.

    Raises `PickledError` for one of objects, `DataError` for any other file and an array of more than `limit` bytes, before memory is
    taken for it.
    """
    import zipfile

    arrays = {}
    with parser(path, "a whole .npz"), zipfile.ZipFile(path) as archive:
        held = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        for name in (name for name in names if name in held):
            with archive.open(held[name]) as member:
                arrays[name] = _read_npy(member, name, held[name].file_size, limit, path)
    return arrays, tuple(held)


def _read_npy(member: Any, name: str, size: int, limit: int, path: Path) -> "np.ndarray":
    """One array; numpy allocates the size in the header, so that size is first compared with the file's."""
    import math

    from numpy.lib import format as npy

    read_header = npy.read_array_header_1_0 if npy.read_magic(member) == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(member)
    if dtype.hasobject:
        raise PickledError(f"{path}: {name} is pickled, and reading it could run any code")
    if size > limit or member.tell() + math.prod(shape) * dtype.itemsize != size:
        raise Unreadable(f"{name}: an array of {list(shape)} {dtype} in {size} bytes; at most {limit / MIB:g} MiB are accepted")
    member.seek(0)
    return npy.read_array(member, allow_pickle=False)


def _disk_problem(problem: BaseException) -> GdaError | None:
    """The error of a disk that cannot be used; None for a file that is missing or may not be read."""
    if isinstance(problem, PermissionError):
        return None
    return storage_problem(problem)


def _require_bounded(content: Any) -> None:
    """Refuse what would overflow the caller's stack or numbers."""
    waiting = [(content, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > _MOST_DEPTH:
            raise Unreadable(f"more than {_MOST_DEPTH} levels deep")
        if isinstance(value, dict):
            waiting += [(child, depth + 1) for child in value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += [(child, depth + 1) for child in value]
        elif type(value) is int and not -_BIGGEST < value < _BIGGEST:
            raise Unreadable(f"a number of more than {_MOST_DIGITS} digits")


def _require_shallow(text: str) -> None:
    """Refuse hundreds of unclosed brackets: the parser needs seconds to find that they are too many."""
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = max(0, depth + (1 if bracket in "[{" else -1))
        if depth > 4 * _MOST_DEPTH:
            raise Unreadable("nested too deep")


def _require_small(node: "Node") -> None:
    """Refuse aliases that refer to themselves or multiply; the node graph itself is no larger than its text."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(one: "Node", depth: int) -> int:
        if id(one) in sizes:
            return sizes[id(one)]
        if id(one) in open_nodes:
            raise Unreadable(f"line {one.start_mark.line + 1}: an alias refers to itself")
        if depth > _MOST_DEPTH:
            raise Unreadable(f"more than {_MOST_DEPTH} levels deep")
        open_nodes.add(id(one))
        total = 1
        if not isinstance(one.value, str):
            parts = [part for item in one.value for part in (item if isinstance(item, tuple) else (item,))]
            total += sum(size(part, depth + 1) for part in parts)
        open_nodes.discard(id(one))
        if total > _MOST_YAML_NODES:
            raise Unreadable(f"its aliases expand to more than {_MOST_YAML_NODES:,} values")
        sizes[id(one)] = total
        return total

    size(node, 1)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Unreadable(f"key {repeated!r} twice")
    return found
