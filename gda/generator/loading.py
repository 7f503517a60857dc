"""How every part of a base is opened: its own files alone, no pickles, no code, and failures of the libraries in one line."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from gda.errors import DataError
from gda.generator.layout import Files

OWN_FILES_ALONE: dict[str, Any] = {
    "use_safetensors": True,
    "trust_remote_code": False,
    "local_files_only": True,
    "low_cpu_mem_usage": False,
}


@contextmanager
def loading(files: Files, what: str) -> Iterator[None]:
    """Around the libraries' loading alone: what they raise for files that do not fit is a `DataError` naming the generator."""
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


def check_vocabularies(files: Files, components: Mapping[str, Any]) -> None:
    """Raises `DataError` where a tokenizer has more entries than its text encoder has rows: some prompts would have no embedding."""
    for role, encoder in components.items():
        tokenizer = components.get(role.replace("text_encoder", "tokenizer"))
        if not role.startswith("text_encoder") or encoder is None or tokenizer is None:
            continue
        rows = encoder.get_input_embeddings().num_embeddings
        if len(tokenizer) > rows:
            raise DataError(
                f"{files.name}: the tokenizer of {role} has {len(tokenizer)} entries; accepted: at most the {rows} rows of {role}"
            )
