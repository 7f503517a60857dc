"""Opens every part of a base from its own files only: no pickles, no code, and one-line errors for failures of the libraries."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from gda.errors import DataError
from gda.generator.weights.json_files import read_config_object
from gda.generator.weights.layout import INDEX, NETWORKS, Files

OWN_FILES_ALONE: dict[str, Any] = {
    "use_safetensors": True,
    "trust_remote_code": False,
    "local_files_only": True,
    "low_cpu_mem_usage": False,
}
# The options among them that the classes of each library accept.
_TAKEN = {
    "diffusers": ("use_safetensors", "local_files_only", "low_cpu_mem_usage"),
    "transformers": ("use_safetensors", "local_files_only", "trust_remote_code"),
}


@contextmanager
def loading(files: Files, what: str) -> Iterator[None]:
    """Wraps calls of the libraries: their errors for unsuitable files become a `DataError` naming the generator."""
    try:
        yield
    except (
        OSError,
        ValueError,
        LookupError,
        RuntimeError,
        AttributeError,
        TypeError,
        ArithmeticError,
        ImportError,
        AssertionError,
        StrictDataclassError,  # of transformers' configurations
    ) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise DataError(f"{files.name}: cannot be loaded as {what} ({lines[0]})") from None


def load_networks(folder: Path) -> dict[str, Any]:
    """The networks that the index in a pipeline's `folder` names, float32, by part.

    Raises `DataError` if weights lack tensors, which the libraries would leave random without an error. The libraries' own errors pass
    through.
    """
    named = {part: entry for part, entry in read_config_object(folder / INDEX).items() if part in NETWORKS and (folder / part).is_dir()}
    return {part: load_network(folder / part, library, kind) for part, (library, kind) in named.items()}


def load_network(folder: Path, library: str, kind: str) -> Any:
    """One network in float32, of class `kind` of diffusers or transformers. Raises as `load_networks`."""
    known: Any = getattr(importlib.import_module(library), kind)
    own = {name: value for name, value in OWN_FILES_ALONE.items() if name in _TAKEN[library]}
    network, info = known.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **own)
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise DataError(f"{folder}: its weights lack the tensor {missing[0]}{more}, which would stay random")
    return network


def check_vocabularies(files: Files, components: Mapping[str, Any]) -> None:
    """Raises `DataError` if a tokenizer has more entries than its text encoder has rows: some tokens would have no embedding."""
    for role, encoder in components.items():
        tokenizer = components.get(role.replace("text_encoder", "tokenizer"))
        if not role.startswith("text_encoder") or encoder is None or tokenizer is None:
            continue
        rows = encoder.get_input_embeddings().num_embeddings
        if len(tokenizer) > rows:
            raise DataError(
                f"{files.name}: the tokenizer of {role} has {len(tokenizer)} entries; accepted: at most the {rows} rows of {role}"
            )
