"""The arm `targeted`: the classes that need synthetic images most. Heavy imports happen only on use."""

import math
from pathlib import Path

import numpy as np

from gda.artifacts.contents import require_whole
from gda.artifacts.document import read_document
from gda.artifacts.reference import REFERENCE_FILE, REFERENCE_PROBABILITIES, ReferenceIndex
from gda.artifacts.snapshot import SnapshotIndex
from gda.config.sections import ClassifyConfig
from gda.errors import ConfigError, DataError, UsageError
from gda.io.tensors import read_tensors


def target_labels(config: ClassifyConfig, snapshot: Path, real: SnapshotIndex, reference: Path | None) -> tuple[int, ...]:
    """Labels, ascending, of the classes that get synthetic images: those configured, or else the hardest ones.

    The hardest are the `target_fraction` of the classes, rounded up, whose training images the cross-fitted classifiers of `reference`
    recognise least often; the first among equals. Raises `ConfigError` for a class that the snapshot lacks, `UsageError` without a
    reference where one is needed, and `DataError` for one of another snapshot.
    """
    names = [info.name for info in real.classes]
    if unknown := [name for name in config.target_classes if name not in names]:
        raise ConfigError(f"classify.target_classes: no class {unknown[0]!r} in {snapshot}; it has {', '.join(names)}")
    if config.target_classes:
        return tuple(sorted(names.index(name) for name in config.target_classes))
    if reference is None:
        raise UsageError("arm targeted needs to know which classes are hard: give --reference DIR, or name them in classify.target_classes")
    accuracy = cross_fitted_accuracy(snapshot, real, reference)
    wanted = math.ceil(config.target_fraction * len(names) - 1e-9)
    return tuple(sorted(int(label) for label in np.argsort(accuracy, kind="stable")[:wanted]))


def cross_fitted_accuracy(snapshot: Path, real: SnapshotIndex, reference: Path) -> np.ndarray:
    """Share in [0, 1] of each class's training images that a classifier recognises without having seen them, float64 [classes].

    Validation images are not used: they measure the effect later. Raises `DataError` where `reference` is of another snapshot, damaged
    or of an earlier version, whose classifiers have seen them.
    """
    from gda.data.store.snapshot import Snapshot

    require_whole(reference, only=[REFERENCE_PROBABILITIES], advice=f"remove {reference} and compute it again")
    index = read_document(reference / REFERENCE_FILE, ReferenceIndex)
    if index.snapshot_digest != real.digest:
        raise DataError(f"{reference}: is the reference of snapshot {index.snapshot_digest[:12]}, not of {real.digest[:12]}")
    index.require_without_val(reference)
    labels = Snapshot.open(snapshot).manifest("train")["label"].to_numpy(np.int64)
    rows = read_tensors(reference / REFERENCE_PROBABILITIES)["train"]
    if rows.shape != (len(labels), len(real.classes)):
        raise DataError(f"{reference}: has {len(rows)} rows for the {len(labels)} images of split train; compute it again")
    right, seen = (np.bincount(part, minlength=len(real.classes)) for part in (labels[rows.argmax(axis=1) == labels], labels))
    return right / np.maximum(seen, 1)
