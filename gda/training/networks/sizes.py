"""Limits on the sizes in a network's arguments: absurd ones take minutes or all memory before timm refuses them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gda.errors import ConfigError, DataError

# Larger than in any architecture of timm: a width or side of an image, and a number of consecutive layers.
LARGEST_WIDTH, MOST_LAYERS = 65_536, 2_048
_COUNTS_LAYERS = re.compile(r"layer|depth|block|stage|repeat|num_(?!classes|heads|features)")
_LONGEST_LIST = 256


def require_sane_sizes(arguments: Mapping[str, Any], where: str) -> None:
    """Raises `ConfigError`, which begins with `where`, for an argument of `timm.create_model` beyond any existing network."""
    for name, value in _sizes(arguments):
        limit = MOST_LAYERS if _COUNTS_LAYERS.search(name) else LARGEST_WIDTH
        if value > limit:
            raise ConfigError(f"{where}: {name} {value} is larger than the {limit} that are accepted")


def require_sizes_of(arguments: Mapping[str, Any], shapes: Sequence[Sequence[int]], path: Path) -> None:
    """Raises `DataError` that names `path` if arguments request more layers than there are tensors, or a width above the widest one."""
    widest = max((side for shape in shapes for side in shape), default=0)
    for name, value in _sizes(arguments):
        limit = max(len(shapes), 64) if _COUNTS_LAYERS.search(name) else max(widest, 4096)
        if value > limit:
            raise DataError(f"{path}: {name} {value} does not fit weights of {len(shapes)} tensors, the widest of {widest}")


def _sizes(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number with its name; lists of layers also as their sum, and long lists as their length."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _sizes(child, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        if _COUNTS_LAYERS.search(name):
            yield name, sum(abs(int(item)) for item in value if isinstance(item, int | float) and abs(item) < 1e30)
        if len(value) > _LONGEST_LIST:
            yield f"length of {name}", max(len(value), 1 << 40)
        for child in value:
            yield from _sizes(child, name)
    elif isinstance(value, int | float) and abs(value) > 1:
        yield name, abs(int(value)) if abs(value) < 1e30 else 1 << 100
