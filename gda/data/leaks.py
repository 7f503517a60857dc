"""Exact pixel duplicates across splits: an image that is trained on must not be tested on."""

from collections.abc import Mapping

import pandas as pd

from gda.errors import DataError

_SHOWN = 3


def cross_split_duplicates(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Pairs of keys with equal pixels in different splits: each such picture's first image against the first of every other split."""
    first = rows.drop_duplicates(["pixel_sha256", "split"])
    shared = first[first.duplicated("pixel_sha256", keep=False)]
    pairs = []
    for _, group in shared.groupby("pixel_sha256", sort=False):
        keys = group["key"].tolist()
        pairs += [(keys[0], other) for other in keys[1:]]
    return pairs


def require_disjoint_splits(rows: pd.DataFrame, names: Mapping[str, str]) -> None:
    """Raise `DataError` with the count and the first pairs when splits share a picture; `names` say what to call a key."""
    pairs = cross_split_duplicates(rows)
    if not pairs:
        return
    splits = dict(zip(rows["key"], rows["split"], strict=True))
    shown = "; ".join(" = ".join(f"{names.get(key, key)} ({splits[key]})" for key in pair) for pair in pairs[:_SHOWN])
    more = f" (and {len(pairs) - _SHOWN} more)" if len(pairs) > _SHOWN else ""
    raise DataError(f"{len(pairs)} pictures are in more than one split: {shown}{more}; remove one of each, or put both in one group")
