"""Pictures that two splits share, exactly or nearly: an image that is trained on must not be tested on."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from gda.data.checks.perceptual import Sketches, near_matches
from gda.errors import DataError
from gda.io.manifest import GROUP

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


def straddling_groups(rows: pd.DataFrame) -> list[tuple[str, tuple[str, ...]]]:
    """Groups (patients, videos) with images in more than one split, and those splits; none where the rows have no column `group`."""
    if GROUP not in rows:
        return []
    splits = rows.dropna(subset=[GROUP]).groupby(GROUP)["split"].unique()
    return [(str(name), tuple(sorted(found))) for name, found in splits.items() if len(found) > 1]


def require_whole_groups(rows: pd.DataFrame) -> None:
    """Raise `DataError` with the count and the first groups that have images in more than one split."""
    if not (found := straddling_groups(rows)):
        return
    shown = "; ".join(f"{name!r} ({' and '.join(splits)})" for name, splits in found[:_SHOWN])
    more = f" (and {len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
    raise DataError(f"{len(found)} groups have images in more than one split: {shown}{more}; put each in one split, or name no splits")


def require_disjoint_splits(rows: pd.DataFrame, names: Mapping[str, str]) -> None:
    """Raise `DataError` with the count and the first pairs when splits share a picture; `names` are the file names by key."""
    pairs = cross_split_duplicates(rows)
    if not pairs:
        return
    splits = dict(zip(rows["key"], rows["split"], strict=True))
    shown = "; ".join(" = ".join(f"{names.get(key, key)} ({splits[key]})" for key in pair) for pair in pairs[:_SHOWN])
    more = f" (and {len(pairs) - _SHOWN} more)" if len(pairs) > _SHOWN else ""
    raise DataError(f"{len(pairs)} pictures are in more than one split: {shown}{more}; remove one of each, or put both in one group")


@dataclass(frozen=True, kw_only=True)
class NearLeak:
    """An image of `split` that differs from one of `other_split` only in encoding, size, mirroring or light; `distance` is 0 to 0.08."""

    split: str
    name: str
    other_split: str
    other_name: str
    distance: float


def near_leaks(rows: pd.DataFrame, sketches: Sketches, names: Mapping[str, str]) -> tuple[NearLeak, ...]:
    """Near matches of val and test images in train, and of test images in val; `sketches` are in the order of `rows`."""
    keys, splits = rows["key"].tolist(), rows["split"].to_numpy()
    places = {split: (splits == split).nonzero()[0] for split in ("train", "val", "test")}
    found = []
    for other, split in itertools.combinations(places, 2):
        own, reference = places[split], places[other]
        near = near_matches(sketches[own], sketches[reference])
        for query in near.queries:
            key, other_key = keys[own[query]], keys[reference[near.reference[query]]]
            found.append(
                NearLeak(
                    split=split,
                    name=names.get(key, key),
                    other_split=other,
                    other_name=names.get(other_key, other_key),
                    distance=round(float(near.distance[query]), 4),
                )
            )
    return tuple(sorted(found, key=lambda leak: (leak.split, leak.name, leak.other_split)))


def leak_table(leaks: Sequence[NearLeak]) -> pd.DataFrame:
    """One row per pair: split, name, other_split, other_name, distance."""
    return pd.DataFrame([asdict(leak) for leak in leaks])


def near_leak_message(leaks: Sequence[NearLeak]) -> str:
    """Count and first pairs, for a warning or an error."""
    shown = "; ".join(f"{leak.name} ({leak.split}) ~ {leak.other_name} ({leak.other_split})" for leak in leaks[:_SHOWN])
    more = f" (and {len(leaks) - _SHOWN} more)" if len(leaks) > _SHOWN else ""
    return f"{len(leaks)} pictures are in two splits but for encoding, size, mirroring or light: {shown}{more}"
