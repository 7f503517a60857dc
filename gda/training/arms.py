"""The arms of the comparison: what each is trained on and how long, and the gate before those that use synthetic images.

No torch here, so that publishing finished work stays quick.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gda.artifacts import SnapshotIndex, Verdict, read_document
from gda.config import Arm
from gda.errors import DataError, UsageError


@dataclass(frozen=True, kw_only=True)
class ArmPlan:
    """What an arm is trained on and how long; `gated` arms need a verdict that passed."""

    real: bool
    synthetic: bool
    gated: bool
    long: bool
    augment: Literal["standard", "strong"] = "standard"


PLANS = {
    Arm.REAL: ArmPlan(real=True, synthetic=False, gated=False, long=False),
    Arm.REAL_LONG: ArmPlan(real=True, synthetic=False, gated=False, long=True),
    Arm.REAL_STRONG: ArmPlan(real=True, synthetic=False, gated=False, long=True, augment="strong"),
    Arm.ZERO_SHOT: ArmPlan(real=False, synthetic=True, gated=False, long=False),
    Arm.SYNTHETIC: ArmPlan(real=False, synthetic=True, gated=True, long=False),
    Arm.MIXED: ArmPlan(real=True, synthetic=True, gated=True, long=True),
}


def read_index(path: Path, kind: Literal["real", "synthetic"]) -> SnapshotIndex:
    """The index of the snapshot at `path`, without its manifest. Raises `DataError` when it is missing or of the other kind."""
    index = read_document(path / "snapshot.json", SnapshotIndex)
    if index.kind != kind:
        raise DataError(f"{path}: a {index.kind} snapshot where a {kind} one is needed")
    return index


def require_same_classes(snapshot: Path, real: SnapshotIndex, synthetic: Path, drawn: SnapshotIndex) -> None:
    """Raises `DataError` unless both have the same classes in the same order, so that labels mean the same."""
    expected, found = [info.name for info in real.classes], [info.name for info in drawn.classes]
    if expected != found:
        odd = sorted(set(expected) ^ set(found))
        raise DataError(
            f"{synthetic}: its classes are not those of {snapshot} ({'first odd one ' + repr(odd[0]) if odd else 'another order'})"
        )


def refusal(arm: Arm, path: Path | None, real: SnapshotIndex, drawn: SnapshotIndex) -> str | None:
    """Why the gate keeps this arm from being trained; None when it passed.

    Fails closed: raises `UsageError` without a verdict, `DataError` when the verdict is about other data.
    """
    if path is None:
        raise UsageError(f"arm {arm} needs the verdict on its synthetic images: give --verdict FILE")
    verdict = read_document(path, Verdict)
    for name, said, is_ in (("synthetic", verdict.synthetic_digest, drawn.digest), ("real", verdict.real_digest, real.digest)):
        if said != is_:
            raise DataError(f"{path}: is about the {name} snapshot {said[:12]}, but the one given is {is_[:12]}; validate again")
    if verdict.passed:
        return None
    return f"because the synthetic set was refused: {' '.join(verdict.reasons) or 'no reason was recorded'}"
