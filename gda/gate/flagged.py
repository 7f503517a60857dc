"""Which images a refused set was refused for, where single images are at fault at all."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from gda.artifacts.verdict import Measure, Verdict
from gda.gate.checks.duplicates import duplicates
from gda.gate.inspection import Inspection

# By metric that failed: why images are taken out, and their positions among those that decode. Of several reasons the first is said.
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
# What is known of the test split refuses a set and never mends it: a set chosen by it would no longer be new to it.
_BEYOND_MENDING = ("exact_test", "near_test")


def flagged_images(found: Inspection, verdict: Verdict) -> dict[str, str]:
    """Why by key, of the images that the failed checks blame; empty where no single image is at fault, or the test split was met."""
    failed = {name: measure for name, measure in verdict.metrics.items() if measure.passed is False}
    if any(name in failed for name in _BEYOND_MENDING):
        return {}
    audit = found.subjects.audit
    keys = audit.table["key"].tolist()
    blamed = {keys[row]: "does not decode" for row in np.flatnonzero(audit.table["decoded"] == 0)} if "undecodable" in failed else {}
    for name, (why, finder) in _FINDERS.items():
        if name in failed:
            blamed = {keys[audit.rows[position]]: why for position in finder(found, failed[name])} | blamed
    return dict(sorted(blamed.items()))


def _leaked(found: Inspection, split: str, *, exact: bool) -> list[int]:
    return [leak.query for leak in found.leaks if leak.split == split and (leak.exact or not exact)]


def _disputed(found: Inspection, *, in_low_classes: bool) -> list[int]:
    return [] if found.labels is None else found.labels.disputed(in_low_classes=in_low_classes)
