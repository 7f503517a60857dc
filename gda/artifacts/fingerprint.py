"""A Recipe names a piece of work: stage, configuration, input digests and what fixes the bits; its sha256 is its identity."""

import hashlib
import importlib.metadata
import json
from dataclasses import asdict, dataclass, field
from typing import Any

from gda.errors import DataError
from gda.runtime.rng import STREAMS_VERSION


def canonical_json(value: Any) -> bytes:
    """Bytes that are equal for equal values: sorted keys, no spaces, ASCII, no NaN. Raises `ValueError` on NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def digest_of(value: Any) -> str:
    """sha256 (64 hex digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What a stage has to do. `inputs` are content digests by role; `environment` fixes the bits (versions, device, threads)."""

    stage: str
    config: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """sha256 (64 hex digits) of the whole fingerprint."""
        return digest_of(asdict(self))

    def difference(self, other: "Fingerprint") -> list[str]:
        """One line for each field that differs, e.g. `config.learning_rate: 0.0005 -> 0.001`."""
        old, new = _flatten(asdict(self)), _flatten(asdict(other))
        return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]


def parse_fingerprint(content: Any, where: object) -> Fingerprint:
    """The fingerprint that JSON content holds. Raises `DataError` that names `where` and the field where it holds none."""
    accepted = {"stage": str, "config": dict, "inputs": dict, "environment": dict}
    if not isinstance(content, dict) or not {"stage", "config"} <= content.keys() <= accepted.keys():
        raise DataError(f"{where}: not a fingerprint; accepted: an object of {', '.join(accepted)}")
    for name, value in content.items():
        if not isinstance(value, accepted[name]):
            raise DataError(f"{where}: not a fingerprint ({name} is {type(value).__name__}; accepted: {accepted[name].__name__})")
        if name in ("inputs", "environment") and (wrong := [key for key, text in value.items() if not isinstance(text, str)]):
            raise DataError(f"{where}: not a fingerprint ({name}.{wrong[0]} is no text)")
    return Fingerprint(**content)


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for name, child in value.items() for k, v in _flatten(child, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): value}


def bits_environment(*packages: str, device: str = "cpu") -> dict[str, str]:
    """What fixes a network's output besides its inputs: versions of torch, numpy and `packages`, device, threads of a
    process, and the derivation of seeds.

    Reads package metadata only, so that it costs no import.
    """
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "torch", *packages)}
    return versions | own_bits(device)


def own_bits(device: str) -> dict[str, str]:
    """The part of `bits_environment` that is no package: device, threads of a process, and the derivation of seeds."""
    return {"device": device, "threads": "1", "random_streams": STREAMS_VERSION}
