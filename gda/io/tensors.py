"""Content digests of tensors: they identify a network independently of its files."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gda.artifacts.fingerprint import digest_of
from gda.errors import DataError
from gda.runtime.reading import parser, read_json

_LONGEST_HEADER = 100_000_000  # that of the format itself
# Written by the libraries that save and load; they do not affect what the network computes.
_FRAMING_KEYS = frozenset({"_diffusers_version", "_name_or_path", "transformers_version", "torch_dtype", "dtype"})

# Vocabularies of tokenizers that are not JSON: another vocabulary gives other tokens for the same prompt.
VOCABULARIES = frozenset({"vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"})


def tensors_digest(tensors: Mapping[str, np.ndarray]) -> str:
    """sha256 (64 hex digits) over names, types, shapes and bytes, in name order."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        sha.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Load a safetensors file; bfloat16, which numpy lacks, comes as the float32 of the same value.

    Raises `DataError` naming the file when it is missing, cut short or another format.
    """
    from safetensors import deserialize
    from safetensors.numpy import load_file

    if not path.exists():
        raise DataError(f"{path}: not found")
    with parser(path, "a whole safetensors file"):
        with path.open("rb") as file:
            header = file.read(min(int.from_bytes(file.read(8), "little"), _LONGEST_HEADER))
        if b'"BF16"' not in header:
            return load_file(path)
        return {name: _array(view) for name, view in deserialize(path.read_bytes())}


def _array(view: dict[str, Any]) -> np.ndarray:
    """A tensor of a file that has bfloat16 in it."""
    from safetensors.numpy import _TYPES

    if view["dtype"] == "BF16":
        bits = np.frombuffer(view["data"], "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(view["shape"])
    return np.frombuffer(view["data"], _TYPES[view["dtype"]]).reshape(view["shape"])


def directory_digest(root: Path) -> str:
    """Content digest of a model directory: tensors of every safetensors file, JSON files without framing keys, bytes of vocabularies."""
    parts: dict[str, Any] = {}
    for path in sorted(root.rglob("*.safetensors")):
        parts[path.relative_to(root).as_posix()] = tensors_digest(read_tensors(path))
    for path in sorted(root.rglob("*.json")):
        content = read_json(path, finite=False)
        if isinstance(content, dict):
            content = {k: v for k, v in content.items() if k not in _FRAMING_KEYS}
        # Not canonical_json: diffusers' own files hold infinities, which plain JSON text still orders and compares.
        parts[path.relative_to(root).as_posix()] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    for path in sorted(path for path in root.rglob("*") if path.name in VOCABULARIES):
        parts[path.relative_to(root).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digest_of(parts)
