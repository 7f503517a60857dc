"""Soft labels: a record sampled from a real image of another class belongs to that class too, by the share that the strength kept."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gda.artifacts.fingerprint import digest_of
from gda.artifacts.snapshot import SnapshotIndex
from gda.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

NOBODY = -1  # an unknown class, or no second class
_COLUMNS = ("source_class", "strength")

Shared = tuple[NDArray[np.int64], NDArray[np.float64]]  # second labels and shares of the first, each [n]


def names_to_labels(names: Sequence[str], known: Sequence[str]) -> NDArray[np.int64]:
    """Index of each class name among the `known`, int64 [n]; -1 for an unknown or missing name."""
    index = {name: label for label, name in enumerate(known)}
    return np.array([index.get(name, NOBODY) for name in names], np.int64)


def second_labels(rows: "pd.DataFrame", labels: NDArray[np.int64], known: Sequence[str]) -> Shared:
    """Second labels int64 [n], -1 for none, and the share in [0, 1] of each first label, 1 where there is no second.

    `rows` of a synthetic manifest name the class of the source image of each of the `labels` [n], and the strength, which is the share.
    """
    second = names_to_labels(rows["source_class"].tolist(), known)
    strength = rows["strength"].to_numpy(float)
    shared = (second != NOBODY) & (second != labels) & (strength < 1.0)
    return np.where(shared, second, NOBODY), np.where(shared, strength, 1.0)


def soft_labels(rows: "pd.DataFrame", known: Sequence[str]) -> Shared | None:
    """The result of `second_labels`, for training; None where no record has a second label, as in real sets.

    Raises `DataError` for a record that shares its label with a class that is none of the `known`, or whose strength is not in [0, 1].
    """
    if not set(_COLUMNS) <= set(rows.columns):
        return None
    strength = rows["strength"].to_numpy(float)
    partly = rows["source_class"].notna().to_numpy(bool) & (strength < 1.0)
    wrong = partly & (~rows["source_class"].isin(list(known)).to_numpy(bool) | (strength < 0.0))
    if wrong.any():
        row = rows.iloc[int(wrong.argmax())]
        raise DataError(
            f"record {row['key']!r}: sampled from an image of class {row['source_class']!r} at strength {row['strength']:g}; a label is "
            "shared with a class of the set, at a strength from 0 to 1"
        )
    second, share = second_labels(rows, rows["label"].to_numpy(np.int64), known)
    return (second, share) if (second != NOBODY).any() else None


def soft_labels_input(path: Path, index: SnapshotIndex) -> dict[str, str]:
    """Fingerprint input for the soft labels of the set at `path`, whose content digest covers only the first labels.

    Empty for a set without soft labels. Only sets whose provenance names sources are opened, so that all others cost nothing.
    """
    found = _soft_labels_digest(path, index.manifest_sha256) if "sources" in index.provenance else None
    return {} if found is None else {"soft_labels": found}


@lru_cache(maxsize=8)
def _soft_labels_digest(path: Path, manifest_sha256: str) -> str | None:
    from gda.io.manifest import read_manifest

    rows = read_manifest(path, manifest_sha256)
    if not set(_COLUMNS) <= set(rows.columns):
        return None
    shared = rows[rows["source_class"].notna() & (rows["source_class"] != rows["class"]) & (rows["strength"].astype(float) < 1.0)]
    return digest_of(shared.sort_values("key")[["key", *_COLUMNS]].to_numpy().tolist()) if len(shared) else None
