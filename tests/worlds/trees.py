"""The content of a folder in a form that can be compared, with a readable difference."""

import hashlib
from pathlib import Path

READABLE = 4096  # bytes


def tree(folder: Path, pattern: str = "*", *, without: tuple[str, ...] = ()) -> dict[str, str]:
    """Every file below `folder` that matches, by its path in it: length and SHA-256, or the text of a small JSON file.

    Files whose name is in `without` do not count.
    """
    files = (path for path in sorted(folder.rglob(pattern)) if path.is_file() and path.name not in without)
    return {path.relative_to(folder).as_posix(): _content(path) for path in files}


def _content(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix == ".json" and len(data) <= READABLE:
        return data.decode()
    return f"{len(data)} bytes {hashlib.sha256(data).hexdigest()}"
