"""Files that carry their own checksum, so that a damaged file is made again rather than used.

For safetensors it is in the header's metadata, which other readers ignore; for JSON it is one more field.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from gda.artifacts.fingerprint import digest_of
from gda.io.atomic import write_bytes, write_json

CHECKSUM = "sha256"
_METADATA = "__metadata__"


def with_checksum(data: bytes) -> bytes:
    """safetensors bytes with the sha256 of all tensors and metadata added to the metadata; equal bytes give equal bytes."""
    header, tensors = _split(data)
    metadata = dict(header.pop(_METADATA, {}))
    metadata[CHECKSUM] = _checksum(header, metadata, tensors)
    text = json.dumps({_METADATA: dict(sorted(metadata.items())), **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned
    return len(text).to_bytes(8, "little") + text + tensors


def checksum_of(data: bytes) -> str | None:
    """The checksum of safetensors bytes from `with_checksum`, the empty string if it does not fit them, None if there is none."""
    try:
        header, tensors = _split(data)
        metadata = dict(header.pop(_METADATA, {}))
        recorded = metadata.pop(CHECKSUM, None)
        return recorded if recorded is None or recorded == _checksum(header, metadata, tensors) else ""
    except (ValueError, TypeError, AttributeError, MemoryError):
        return ""


def is_whole(path: Path) -> bool:
    """Whether a file written by `write_checked` is there and unchanged; reads all of it."""
    try:
        return bool(checksum_of(path.read_bytes()))
    except OSError:
        return False


def write_checked(path: Path, data: bytes) -> None:
    """`write_bytes` of safetensors bytes with their checksum."""
    write_bytes(path, with_checksum(data))


def write_checked_json(path: Path, content: dict[str, Any]) -> None:
    """`write_json` of an object with the sha256 of its content as one more field."""
    write_json(path, content | {CHECKSUM: digest_of(content)})


def read_checked_json(path: Path) -> dict[str, Any] | None:
    """What `write_checked_json` wrote, without the checksum; None where the file is missing or was changed."""
    try:
        content = json.loads(path.read_bytes())
        recorded = content.pop(CHECKSUM)
        return dict(content) if digest_of(content) == recorded else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _split(data: bytes) -> tuple[dict[str, Any], memoryview]:
    length = int.from_bytes(data[:8], "little")
    if length + 8 > len(data):
        raise ValueError("shorter than its header states")
    header = json.loads(data[8 : 8 + length])
    if not isinstance(header, dict):
        raise TypeError("its header is not an object")
    return header, memoryview(data)[8 + length :]


def _checksum(header: dict[str, Any], metadata: dict[str, Any], tensors: memoryview) -> str:
    sha = hashlib.sha256(digest_of([header, metadata]).encode())
    sha.update(tensors)
    return sha.hexdigest()
