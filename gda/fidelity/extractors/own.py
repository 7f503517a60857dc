"""A user's own extractor, named `module:attribute`.

The attribute is a function of one argument, `validate.extractor_weights` (a path or None), that returns an `Extractor`.
Its `name` must be none of the built-in ones, and its `digest`, 64 hex digits, must change whenever weights or preprocessing do: it
distinguishes fingerprints, references and kept features. Equal images must give equal features, in every process.
"""

import importlib
import re
from collections.abc import Callable, Collection

from gda.errors import ConfigError, GdaError
from gda.fidelity.extractors.base import BATCH, Extractor

EXTRACTOR_FIELD = "validate.extractor"


def load_own(name: str, weights: str | None, *, taken: Collection[str]) -> Extractor:
    """Call the named function. Raises `ConfigError` when it cannot be imported, fails, or returns no sound `Extractor`."""
    try:
        found = _function(name)(weights)
    except GdaError:
        raise
    except Exception as error:
        raise ConfigError(f"{EXTRACTOR_FIELD}: {name}({weights!r}) failed ({type(error).__name__}: {error})") from error
    if not isinstance(found, Extractor):
        raise ConfigError(f"{EXTRACTOR_FIELD}: {name} returned {type(found).__name__}; expected a gda.fidelity.extractors.Extractor")
    for wrong, why in (
        (not found.name or found.name in taken, f"name {found.name!r}; expected one that no built-in extractor has"),
        (re.fullmatch("[0-9a-f]{64}", found.digest) is None, f"digest {found.digest!r}; expected 64 lower-case hex digits"),
        (found.dim < 1, f"dim {found.dim}; expected at least 1"),
        (found.input_px < 1, f"input_px {found.input_px}; expected at least 1"),
        (found.batch < 1 or BATCH % found.batch != 0, f"batch {found.batch}; expected a divisor of {BATCH}"),
    ):
        if wrong:
            raise ConfigError(f"{EXTRACTOR_FIELD}: {name} returned an extractor with {why}")
    return found


def _function(name: str) -> Callable[[str | None], object]:
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise ConfigError(
            f"{EXTRACTOR_FIELD}: {name!r}: cannot import {module!r} ({type(error).__name__}: {error}); is it on PYTHONPATH?"
        ) from error
    function = getattr(found, attribute, None)
    if not callable(function):
        raise ConfigError(f"{EXTRACTOR_FIELD}: {name!r}: {module} has no function {attribute!r}")
    return function
