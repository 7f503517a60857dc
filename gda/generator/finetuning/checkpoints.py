"""Resumable training state: safetensors and JSON, committed by rename, checked by sha256 when read."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gda.io.atomic import sync
from gda.runtime.disks import storage_errors

_INDEX_CHECKSUM = "index_sha256"  # in state.json: of all its other fields


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """State after `step` optimizer updates: `tensors` by prefixed name, `losses` by step, and `extra` of plain JSON types."""

    step: int
    tensors: dict[str, torch.Tensor]
    losses: tuple[float, ...]
    extra: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The newest `limit` checkpoints under `folder`, one directory each; a half-written one is never seen under its final name."""

    def __init__(self, folder: Path, *, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    def save(self, state: TrainingState) -> Path:
        """Write, fsync and rename; then drop the oldest beyond `limit`. Raises `MissingError` when the disk is full or failing."""
        final = self.folder / _name(state.step)
        with storage_errors(final):
            temporary = self._write(final, state)
            if final.exists():
                shutil.rmtree(final)
            os.rename(temporary, final)
            sync(self.folder)
        for old in self._all()[self.limit :]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def _write(self, final: Path, state: TrainingState) -> Path:
        for left in self.folder.glob(".checkpoint-*"):  # of a killed writer
            shutil.rmtree(left, ignore_errors=True)
        temporary = self.folder / f".{final.name}.{os.getpid()}"
        temporary.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in state.tensors.items()}, temporary / "state.safetensors")
        index = {"step": state.step, "losses": list(state.losses), "extra": state.extra, "sha256": _sha256(temporary / "state.safetensors")}
        (temporary / "state.json").write_text(json.dumps(index | {_INDEX_CHECKSUM: _text_digest(index)}))
        for path in temporary.iterdir():
            sync(path)
        return temporary

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, newest first."""
        return [int(folder.name.rsplit("-", 1)[1]) for folder in self._all()]

    def load_newest(self, *, at_most: int | None = None) -> tuple[TrainingState | None, list[str]]:
        """The newest whole checkpoint (of step `at_most` or before), or None, with a line for each newer one that is damaged."""
        damaged: list[str] = []
        for step, folder in zip(self.steps(), self._all(), strict=True):
            if at_most is not None and step > at_most:
                continue
            try:
                return _read(folder), damaged
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
                damaged.append(f"{folder.name} is damaged ({error}); falling back to the one before")
        return None, damaged

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*"), reverse=True)


def _read(folder: Path) -> TrainingState:
    index = json.loads((folder / "state.json").read_text())
    path = folder / "state.safetensors"
    if index.pop(_INDEX_CHECKSUM) != _text_digest(index) or folder.name != _name(index["step"]):
        raise ValueError("state.json: checksum differs")
    if _sha256(path) != index["sha256"]:
        raise ValueError("state.safetensors: checksum differs")
    return TrainingState(step=index["step"], tensors=load_file(path), losses=tuple(index["losses"]), extra=index["extra"])


def _name(step: int) -> str:
    return f"checkpoint-{step:08d}"


def _text_digest(index: dict[str, Any]) -> str:
    """sha256 of an index as JSON text, which may hold NaN."""
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
