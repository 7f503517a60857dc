"""The images that a set was refused for, where single images are at fault."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from gda.artifacts.verdict import Measure, Verdict
from gda.gate.checks.duplicates import duplicates
from gda.gate.inspection import Inspection

# By failed metric: why images are removed, and their positions among those that decode. Of several reasons the first is recorded.
_Finder = Callable[[Inspection, Measure], Iterable[int]]
_FINDERS: Mapping[str, tuple[str, _Finder]] = {
    "exact_train": ("is a training image", lambda found, _: _leaked(found, "train", exact=True)),
    "near_train": ("is nearly a training image", lambda found, _: _leaked(found, "train", exact=False)),
    "exact_val": ("is a validation image", lambda found, _: _leaked(found, "val", exact=True)),
    "near_val": ("is nearly a validation image", lambda found, _: _leaked(found, "val", exact=False)),
    "duplicate_fraction": ("repeats another image", lambda found, _: duplicates(found.subjects.hashes)),
    "near_duplicate_fraction": ("nearly repeats another image", lambda found, _: [row for rows in found.repeated for row in rows[1:]]),
    "copy_fraction": ("copies a training image", lambda found, _: [] if found.copies is None else np.flatnonzero(found.copies.flagged)),
    "label_agreement": ("label not confirmed", lambda found, _: _disputed(found, in_low_classes=False)),
    "label_agreement_worst_class": ("label not confirmed", lambda found, _: _disputed(found, in_low_classes=True)),
}
# A match with the test split refuses a set and never selects images: a set selected by it would not be independent of it.
_NEVER_REPLACED = ("exact_test", "near_test")


def flagged_images(found: Inspection, verdict: Verdict) -> dict[str, str]:
    """Reason by key of the images that failed checks flag; empty where no single image is at fault, or any matches the test split."""
    failed = {name: measure for name, measure in verdict.metrics.items() if measure.passed is False}
    if any(name in failed for name in _NEVER_REPLACED):
        return {}
    audit = found.subjects.audit
    keys = audit.table["key"].tolist()
    flagged = {keys[row]: "does not decode" for row in np.flatnonzero(audit.table["decoded"] == 0)} if "undecodable" in failed else {}
    for name, (why, finder) in _FINDERS.items():
        if name in failed:
            flagged = {keys[audit.rows[position]]: why for position in finder(found, failed[name])} | flagged
    return dict(sorted(flagged.items()))


def _leaked(found: Inspection, split: str, *, exact: bool) -> list[int]:
    return [leak.query for leak in found.leaks if leak.split == split and (leak.exact or not exact)]


def _disputed(found: Inspection, *, in_low_classes: bool) -> list[int]:
    return [] if found.labels is None else found.labels.disputed(in_low_classes=in_low_classes)
