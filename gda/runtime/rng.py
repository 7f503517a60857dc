"""Random streams by name: the one place where a seed is derived, so that no two uses share numbers and no use changes another's.

A stream's name is a tuple, such as ("classify", seed, "augment"); the same name gives the same numbers on every machine. Streams of torch
are in `gda.runtime.torch_rng`.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    import numpy as np

STREAMS_VERSION = "1"  # of the derivation of seeds; results of another one are other work
Name: TypeAlias = str | int

_T = TypeVar("_T")


def stream_seed(*name: Name) -> int:
    """The seed of the stream `name`, in [0, 2^63): the first 63 bits of the sha256 of the name as JSON."""
    return int.from_bytes(_digest(name)[:8], "big") >> 1


def numpy_stream(*name: Name) -> "np.random.Generator":
    """A generator of numpy at the start of the stream `name`, seeded with 128 bits."""
    import numpy as np  # the commands that only compare fingerprints do without

    return np.random.default_rng(int.from_bytes(_digest(name)[:16], "big"))


def shuffled(items: Iterable[_T], *name: Name, key: Callable[[_T], Name]) -> list[_T]:
    """The items in the random order of the stream `name`.

    An item's place depends on the name and on `key(item)`, so the order given does not matter, and other items come and go around it.
    """
    return sorted(items, key=lambda item: _digest((*name, key(item))))


def _digest(name: tuple[Name, ...]) -> bytes:
    # JSON, because joined words are ambiguous: a class may be called "a/b".
    return hashlib.sha256(json.dumps(name, separators=(",", ":")).encode()).digest()
