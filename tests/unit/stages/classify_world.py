"""Snapshots of squares whose colour is their class, and verdicts about them: what tests of classify share."""

from pathlib import Path

import numpy as np
import pandas as pd

from gda.artifacts.document import dump_document, read_document
from gda.artifacts.snapshot import ClassInfo, SnapshotIndex
from gda.artifacts.verdict import Verdict
from gda.data.store.snapshot import commit_snapshot
from gda.data.store.writer import ImageRecord, write_image_shard

CLASSES = tuple(ClassInfo(name=name, prompt_name=name) for name in ("blue", "green", "red"))
CHANNEL = {"red": 0, "green": 1, "blue": 2}


def write_set(
    folder: Path,
    kind: str,
    splits: dict[str, int],
    *,
    seed: int = 0,
    classes: tuple[ClassInfo, ...] = CLASSES,
    mislabelled: tuple[str, ...] = (),
    strength: float | None = None,
    pool_of: Path | None = None,
) -> Path:
    """A snapshot of noisy red, green and blue squares whose colour is their class, so that its accuracy is known to be 1.0.

    In the splits named by `mislabelled` every colour is the next class's. Given a `strength`, by the manifest every record was sampled
    at it from a real image of that next class; given `pool_of`, a snapshot, that it is a pool of more real images for that one.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    frames = []
    for split, per_class in splits.items():
        records = []
        for label, info in enumerate(classes):
            for i in range(per_class):
                rgb = rng.integers(0, 100, (16, 16, 3), dtype=np.uint8)
                rgb[..., (CHANNEL[info.name] + (split in mislabelled)) % 3] += 120
                records.append(ImageRecord(key=f"{split}-{info.name}-{i}", rgb=rgb, label=label, class_name=info.name))
        frames.append(write_image_shard(folder, name=f"{split}-000000.tar", split=split, records=records))
    rows, provenance = pd.concat(frames, ignore_index=True), {}
    if strength is not None:
        by_channel = {channel: name for name, channel in CHANNEL.items()}
        source = [by_channel[(CHANNEL[name] + 1) % 3] for name in rows["class"]]
        rows, provenance = rows.assign(source_class=source, strength=strength, source_image="k"), {"sources": "r"}
    if pool_of is not None:
        provenance["pool_of"] = read_document(pool_of / "snapshot.json", SnapshotIndex).digest
    commit_snapshot(folder, kind=kind, classes=classes, rows=rows, provenance=provenance, licence="CC0-1.0")  # type: ignore[arg-type]
    return folder


def verdict_on(real: Path, synthetic: Path, path: Path, *, reasons: tuple[str, ...] = ()) -> Path:
    """A verdict about these two snapshots; refused when there are reasons."""
    digests = [read_document(folder / "snapshot.json", SnapshotIndex).digest for folder in (synthetic, real)]
    verdict = Verdict(passed=not reasons, reasons=reasons, metrics={}, synthetic_digest=digests[0], real_digest=digests[1])
    path.write_bytes(dump_document(verdict))
    return path
