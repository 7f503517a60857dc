"""Merges snapshots without rewriting a byte of their shards."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from gda.artifacts.fingerprint import Fingerprint, digest_of
from gda.artifacts.outcome import Outcome
from gda.artifacts.snapshot import SnapshotIndex
from gda.data.checks.leaks import require_disjoint_splits, require_whole_groups
from gda.data.store.snapshot import Snapshot, commit_snapshot
from gda.data.store.writer import shard_name
from gda.errors import DataError, UsageError
from gda.io.publish import publish_once
from gda.io.shards import link_shard
from gda.io.up_to_date import Workspace

_SETTINGS = ("guidance_scale", "num_inference_steps", "scheduler")


def merge_snapshots(paths: Sequence[Path], out: Path) -> Outcome:
    """Publish the union of snapshots at `out`; shards are hard-linked (copied across file systems) under new numbers.

    All must be of one kind with the same classes; plans, settings, generators and image formats may differ, and the provenance then
    lists the value of each part. Groups with the same name are one group, also across parts. Raises `DataError` for other kinds or
    classes, when keys repeat, or when splits of real snapshots share a picture or a group; `UsageError` for fewer than two.
    """
    snapshots = [Snapshot.open(path) for path in paths]
    _require_mergeable(snapshots)
    fingerprint = Fingerprint(
        stage="merge", config={}, inputs={f"part{number:04d}": snapshot.digest for number, snapshot in enumerate(snapshots)}
    )
    reused = publish_once(fingerprint, out, partial(_build, snapshots))
    index = Snapshot.open(out).index
    count = sum(sum(classes.values()) for classes in index.counts.values())
    summary = f"{out} is up to date" if reused else f"wrote {out}: {count} images of {len(snapshots)} snapshots, digest {index.digest[:12]}"
    return Outcome(output=out, digest=index.digest, summary=summary, reused=reused)


def _require_mergeable(snapshots: Sequence[Snapshot]) -> None:
    if len(snapshots) < 2:
        raise UsageError("merge: give at least two snapshots")
    first = snapshots[0]
    for other in snapshots[1:]:
        if other.index.kind != first.index.kind:
            raise DataError(f"{other.path}: is {other.index.kind}, but {first.path} is {first.index.kind}; only one kind can be merged")
        if other.classes != first.classes:
            difference = sorted({info.name for info in other.classes} ^ {info.name for info in first.classes})[:3]
            raise DataError(f"{other.path}: classes or prompt names differ from {first.path} ({', '.join(difference) or 'prompt names'})")
    keys = pd.concat([snapshot.manifest()[["key"]].assign(path=str(snapshot.path)) for snapshot in snapshots])
    if (repeated := keys[keys["key"].duplicated(keep=False)]).size:
        where = " and ".join(repeated[repeated["key"] == repeated["key"].iloc[0]]["path"])
        raise DataError(f"key {repeated['key'].iloc[0]!r} is in {where}; the same image cannot be merged twice")


def _build(snapshots: Sequence[Snapshot], workspace: Workspace) -> SnapshotIndex:
    folder, numbers, parts = workspace.fresh_staging(), {"train": 0, "val": 0, "test": 0}, []
    for snapshot in snapshots:
        renamed = {}
        for shard in snapshot.index.shards:
            renamed[shard.name] = shard_name(shard.split, numbers[shard.split])
            numbers[shard.split] += 1
            link_shard(snapshot.path / shard.name, folder / renamed[shard.name])
        parts.append(snapshot.manifest().assign(shard=lambda rows, renamed=renamed: rows["shard"].map(renamed)))
    rows = pd.concat(parts, ignore_index=True)
    if snapshots[0].index.kind == "real":
        require_whole_groups(rows)
        require_disjoint_splits(rows, {})
    index = commit_snapshot(
        folder,
        kind=snapshots[0].index.kind,
        classes=snapshots[0].classes,
        rows=rows,
        provenance=_joint_provenance(snapshots),
        licence=" AND ".join(sorted({snapshot.index.licence for snapshot in snapshots})),
        plan_digest=_plan_digest(snapshots),
        quarantined=[item for snapshot in snapshots for item in snapshot.index.quarantined],
    )
    _require_same_bytes(snapshots, index)
    return index


def _require_same_bytes(snapshots: Sequence[Snapshot], index: SnapshotIndex) -> None:
    expected = sorted(shard.sha256 for snapshot in snapshots for shard in snapshot.index.shards)
    if sorted(shard.sha256 for shard in index.shards) != expected:
        raise DataError(f"a shard of {', '.join(str(snapshot.path) for snapshot in snapshots)} is damaged; `gda verify` names it")


def _joint_provenance(snapshots: Sequence[Snapshot]) -> dict[str, str]:
    """The provenance of all parts: one value where they agree, else by part (`a | - | b`, where the second has none); and their digests."""
    parts = [snapshot.index.provenance for snapshot in snapshots]
    recorded = {key: [part.get(key, "-") for part in parts] for key in sorted(set().union(*parts))}
    joint = {key: values[0] if len(set(values)) == 1 else " | ".join(values) for key, values in recorded.items()}
    joint |= _differing_settings(snapshots)
    return joint | {"merged": " ".join(snapshot.digest for snapshot in snapshots)}


def _differing_settings(snapshots: Sequence[Snapshot]) -> dict[str, str]:
    """Sampling settings, from the manifests, that differ between parts, with the values by part."""
    found = {}
    for name in _SETTINGS:
        values = [_values(snapshot.manifest(), name) for snapshot in snapshots]
        if len(set(values)) > 1:
            found[name] = " | ".join(values)
    return found


def _values(rows: pd.DataFrame, name: str) -> str:
    values = rows[name].dropna().unique().tolist() if name in rows.columns else []
    return ", ".join(sorted(map(str, values))) or "-"


def _plan_digest(snapshots: Sequence[Snapshot]) -> str | None:
    plans = [snapshot.index.plan_digest for snapshot in snapshots]
    return digest_of(plans) if all(plans) else None
