"""Weights from a user's file: never downloaded, and never run as a program."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from gda.errors import DataError, MissingError
from gda.io.tensors import tensors_digest
from gda.runtime.disks import storage_problem

WEIGHTS_FIELD = "validate.extractor_weights"
StateDict = dict[str, torch.Tensor]


def require_weights(given: str | None, *, extractor: str, wanted: str, where_from: str) -> Path:
    """The given path, if it exists. Raises `MissingError` that names the required file and where it comes from."""
    if given is None:
        raise MissingError(
            f"{WEIGHTS_FIELD}: extractor {extractor} needs {wanted} from {where_from}; nothing is downloaded, so give its path here"
        )
    if not Path(given).exists():
        raise MissingError(f"{WEIGHTS_FIELD}: {given} does not exist; extractor {extractor} needs {wanted} from {where_from}")
    return Path(given)


def read_state(path: Path) -> StateDict:
    """Tensors by name, from safetensors or `torch.save`. Raises `DataError` for a file of anything but tensors."""
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a foreign file may raise anything
        if (problem := storage_problem(error)) is not None:
            raise problem from None
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(f"{WEIGHTS_FIELD}: {path} does not hold weights alone ({lines[0]})") from None
    if not isinstance(state, Mapping) or not state or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise DataError(f"{WEIGHTS_FIELD}: {path} does not hold a mapping of names to tensors")
    return dict(state)


def load_exactly(network: torch.nn.Module, state: StateDict, path: Path) -> None:
    """Load every tensor and no other: what is missing would stay random. Raises `DataError` naming what differs."""
    own = network.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    for what, names in (("lacks", missing), ("has besides", unexpected), ("has in another shape", sorted(shapes))):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise DataError(f"{WEIGHTS_FIELD}: {path} is not of this network: it {what} {names[0]}{more}")
    network.load_state_dict(state)


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """sha256 over the tensors, whatever file they came in."""
    return tensors_digest({name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in state.items()})
