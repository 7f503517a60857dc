"""Exactly equal pictures, by the hash of their decoded pixels: inside a set, and between sets."""

from collections.abc import Sequence


def duplicates(hashes: Sequence[str]) -> list[int]:
    """Positions of images that repeat an earlier one."""
    seen: set[str] = set()
    repeated = []
    for position, value in enumerate(hashes):
        if value in seen:
            repeated.append(position)
        seen.add(value)
    return repeated


def exact_matches(hashes: Sequence[str], others: Sequence[str]) -> list[tuple[int, int]]:
    """(position here, first position there) of every image here that is also there."""
    places: dict[str, int] = {}
    for position, value in enumerate(others):
        places.setdefault(value, position)
    return [(position, places[value]) for position, value in enumerate(hashes) if value in places]
