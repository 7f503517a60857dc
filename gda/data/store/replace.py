"""Replaces some images of a synthetic set by others; the kept images keep their bytes."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd

from gda.artifacts.snapshot import SnapshotIndex
from gda.data.store.snapshot import INDEX_FILE, Snapshot, commit_snapshot
from gda.errors import DataError
from gda.io.atomic import write_bytes
from gda.io.manifest import MANIFEST_FILE
from gda.io.shards import link_shard, read_shard, sha256_of, write_shard


def replace_records(
    snapshot: Snapshot, dropped: Collection[str], added: Sequence[tuple[Path, pd.DataFrame]], folder: Path, *, provenance: Mapping[str, str]
) -> SnapshotIndex:
    """Commit into the empty `folder` the set without the records of these keys and with the shards `added`, each a tar and its rows.

    The plan digest stays that of the request; `provenance` is added to that of the set. Raises `DataError` for an unknown key, a shard
    that does not match the manifest, and as `commit_snapshot` does.
    """
    rows = snapshot.manifest()
    if unknown := sorted(set(dropped) - set(rows["key"])):
        raise DataError(f"{snapshot.path}: has no record {unknown[0]!r} to remove")
    for shard in snapshot.index.shards:
        # A new manifest and a new index would hide the damage.
        if sha256_of(snapshot.path / shard.name) != shard.sha256:
            raise DataError(f"{snapshot.path / shard.name}: checksum differs from snapshot.json")
    parts = [_without(snapshot.path / str(name), group, set(dropped), folder) for name, group in rows.groupby("shard")]
    for path, new in added:
        link_shard(path, folder / path.name)
        parts.append(new)
    return commit_snapshot(
        folder,
        kind=snapshot.index.kind,
        classes=snapshot.classes,
        rows=pd.concat([part for part in parts if len(part)], ignore_index=True),
        provenance={**snapshot.index.provenance, **provenance},
        licence=snapshot.index.licence,
        plan_digest=snapshot.index.plan_digest,
    )


def link_snapshot(snapshot: Snapshot, folder: Path) -> None:
    """Copy a snapshot into the empty `folder`: shards are hard links where the file system has them."""
    for shard in snapshot.index.shards:
        link_shard(snapshot.path / shard.name, folder / shard.name)
    for name in (MANIFEST_FILE, INDEX_FILE):
        write_bytes(folder / name, (snapshot.path / name).read_bytes())


def _without(shard: Path, rows: pd.DataFrame, dropped: set[str], folder: Path) -> pd.DataFrame:
    """Manifest rows of the records kept from a shard, in order; an unchanged shard is linked, one that loses all records is left out."""
    rows = rows.sort_values("offset", ignore_index=True)
    kept = rows[~rows["key"].isin(dropped)].reset_index(drop=True)
    if len(kept) == len(rows):
        link_shard(shard, folder / shard.name)
        return kept
    if kept.empty:
        return kept
    records = [record for record in read_shard(shard) if record.key not in dropped]
    if [record.key for record in records] != kept["key"].tolist():
        raise DataError(f"{shard}: its records are not those of the manifest; `gda verify` shows what is wrong")
    return kept.assign(offset=list(write_shard(folder / shard.name, records).offsets))
