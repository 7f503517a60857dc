"""Requirements of an arm's data: snapshots that belong together, and a passed gate for arms that use the synthetic set.

This module does not import torch, so that publishing finished work stays quick.
"""

from pathlib import Path
from typing import Literal

from gda.artifacts.document import read_document
from gda.artifacts.snapshot import SnapshotIndex
from gda.artifacts.verdict import Verdict
from gda.config.arm import Arm
from gda.config.load import Config
from gda.errors import DataError, UsageError


def read_index(path: Path, kind: Literal["real", "synthetic"]) -> SnapshotIndex:
    """The index of the snapshot at `path`, without its manifest. Raises `DataError` when it is missing or of the other kind."""
    index = read_document(path / "snapshot.json", SnapshotIndex)
    if index.kind != kind:
        raise DataError(f"{path}: a {index.kind} snapshot where a {kind} one is needed")
    return index


def require_same_classes(snapshot: Path, real: SnapshotIndex, synthetic: Path, generated: SnapshotIndex) -> None:
    """Raises `DataError` unless both have the same classes in the same order, so that labels agree."""
    expected, found = [info.name for info in real.classes], [info.name for info in generated.classes]
    if expected != found:
        odd = sorted(set(expected) ^ set(found))
        raise DataError(
            f"{synthetic}: its classes are not those of {snapshot} ({'first odd one ' + repr(odd[0]) if odd else 'another order'})"
        )


def require_pool_of(snapshot: Path, real: SnapshotIndex, pool: Path, more: SnapshotIndex) -> None:
    """Raises `DataError` for a pool that was not checked against this snapshot's test images, or with a class that it lacks."""
    if more.provenance.get("pool_of") != real.digest:
        raise DataError(
            f"{pool}: is no pool for {snapshot}: images that it tests with might be in it; make one with gda snapshot SOURCE --as pool "
            f"--snapshot {snapshot}"
        )
    known = {info.name for info in real.classes}
    if odd := [info.name for info in more.classes if info.name not in known]:
        raise DataError(f"{pool}: has a class {odd[0]!r}, which is none of those of {snapshot}")


def not_compared(arm: Arm) -> str:
    """The reason why an arm, or its training data, is not made."""
    return f"classify.arms does not name {arm}"


def no_pool(config: Config) -> str | None:
    """The reason why no pool is made; None if one is made."""
    if not any(arm.data.others == "pool" for arm in config.classify.arms):
        return not_compared(Arm.RETRIEVED)
    return "snapshot.pool is null" if config.snapshot.pool is None else None


def refusal(arm: Arm, path: Path | None, real: SnapshotIndex, generated: SnapshotIndex) -> str | None:
    """The reason why the gate prevents this arm from being trained; None when it passed.

    Fails closed: raises `UsageError` without a verdict, `DataError` when the verdict is about other data.
    """
    if path is None:
        raise UsageError(f"arm {arm} needs the verdict on its synthetic images: give --verdict FILE")
    verdict = read_document(path, Verdict)
    for name, recorded, is_ in (("synthetic", verdict.synthetic_digest, generated.digest), ("real", verdict.real_digest, real.digest)):
        if recorded != is_:
            raise DataError(f"{path}: is about the {name} snapshot {recorded[:12]}, but the one given is {is_[:12]}; validate again")
    if verdict.passed:
        return None
    return f"because the synthetic set was refused: {' '.join(verdict.reasons) or 'no reason was recorded'}"
