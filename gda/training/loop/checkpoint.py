"""Resumable training state as safetensors: atomic, checked, the newest two kept, never unpickled."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from gda.errors import DataError, UsageError
from gda.io.atomic import write_bytes
from gda.io.tensors import tensors_digest
from gda.runtime.reading import parser

_KEPT = 2

_log = logging.getLogger(__name__)


def save_checkpoint(folder: Path, update: int, state: Mapping[str, Tensor], *, identity: str) -> Path:
    """Write the state after `update` steps and delete all but the newest two; `identity` names the training that it belongs to."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    path = folder / f"state-{update:09d}.safetensors"
    write_bytes(path, save(tensors, metadata={"identity": identity, "digest": _digest(tensors)}))
    for old in sorted(folder.glob("state-*.safetensors"))[:-_KEPT]:
        old.unlink()
    return path


def load_checkpoint(folder: Path, *, identity: str) -> dict[str, Tensor] | None:
    """The newest undamaged state in `folder`, or None; a damaged file is reported and the one before it is used.

    Raises `UsageError` when that state belongs to another training.
    """
    for path in sorted(folder.glob("state-*.safetensors"), reverse=True):
        try:
            state, found = _read(path)
        except DataError as error:
            _log.warning("%s; going back to the checkpoint before it", error)
            continue
        if found != identity:
            raise UsageError(f"{path}: belongs to another recipe, seed or data set; remove {folder} to start again")
        return state
    return None


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    with parser(path, "a whole checkpoint"), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    if metadata.get("digest") != _digest(state):
        raise DataError(f"{path}: not a whole checkpoint (checksum differs)")
    if "identity" not in metadata:
        raise DataError(f"{path}: not a whole checkpoint (its identity is missing)")
    return state, metadata["identity"]


def _digest(state: Mapping[str, Tensor]) -> str:
    # bfloat16 has no numpy type, so tensors are viewed as bytes.
    return tensors_digest({f"{name}:{value.dtype}": value.reshape(-1).view(torch.uint8).numpy() for name, value in state.items()})
