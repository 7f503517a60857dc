"""Everything measured about a synthetic set, and the verdict on it. What cannot be measured counts against the set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pandas as pd

from gda.artifacts.snapshot import SnapshotIndex
from gda.artifacts.verdict import Measure, Verdict
from gda.config.load import Config
from gda.config.sections import ValidateConfig
from gda.data.checks.perceptual import Sketches, distinct, joined, near_groups, near_matches
from gda.data.store.in_memory import ImageSet, load_images
from gda.data.store.snapshot import Snapshot
from gda.data.store.soft_labels import names_to_labels, second_labels
from gda.data.test_split.opening import open_test
from gda.errors import MissingError, TryAgainError
from gda.fidelity.accumulated import extract_by_shard, has_rows, read_rows, require_honest
from gda.fidelity.compare import FeatureSet
from gda.fidelity.extractors import Extractor, comparison_size, configured_extractor
from gda.fidelity.extractors.sscd import load_sscd
from gda.fidelity.frechet import Statistics
from gda.fidelity.intervals import share
from gda.fidelity.statistics_file import read_statistics_file, statistics_digest
from gda.gate.checks.audit import Audit, audit_images
from gda.gate.checks.copies import CopyCheck, aligned_space, check_copies, feature_space
from gda.gate.checks.duplicates import duplicates
from gda.gate.checks.labels import LabelCheckResult
from gda.gate.checks.leaks import Leak, find_leaks, real_rate, sketches_of
from gda.gate.checks.prompt_match import cosines, mean_of
from gda.gate.closeness import Closeness, closeness, to_statistics
from gda.gate.expectations import ExpectedSet, Structure, check_structure
from gda.gate.label_check import LabelCheck, check_labels
from gda.gate.measures import MeasuredWith, compared, estimated, finite, measure
from gda.gate.reference import LabelReference
from gda.gate.verdict import apply_limits, assess, assess_each
from gda.gate.worst_class import worst_classes
from gda.runtime.disks import storage_problem
from gda.runtime.interruption import require_not_stopped

_T = TypeVar("_T")
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Subjects:
    """The images compared: all decodable synthetic ones, and the real splits, at one size."""

    audit: Audit
    labels: np.ndarray  # int64 [n], by the real set's classes; -1 for a class it does not have
    features: np.ndarray  # float32 [n, d]
    sketches: Sketches
    real: Mapping[str, ImageSet]
    real_sketches: Mapping[str, Sketches]
    real_hashes: Mapping[str, list[str]]

    @property
    def hashes(self) -> list[str]:
        """Pixel hashes of the synthetic images as decoded, not as recorded."""
        return self.audit.table["decoded_pixel_sha256"].iloc[self.audit.rows].tolist()

    @property
    def stated_labels(self) -> LabelCheckResult:
        """The labels with their soft parts: an image made from a real one of another class keeps a share of that class, by its strength."""
        second, weights = second_labels(self.audit.table.iloc[self.audit.rows], self.labels, self.real["train"].classes)
        return LabelCheckResult(classes=self.labels, second=second, weights=weights)


@dataclass(kw_only=True)
class Inspection:
    """What was found; a part is None when it could not be computed, with the cause in `failures`."""

    subjects: Subjects
    structure: Structure | None = None
    labels: LabelCheck | None = None
    closeness: Closeness | None = None
    copies: CopyCheck | None = None
    leaks: list[Leak] = field(default_factory=list)
    repeated: list[list[int]] = field(default_factory=list)  # images that show one picture, largest group first
    measures: dict[str, Measure] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def attempt(self, what: str, compute: Callable[[], _T]) -> _T | None:
        """The result, or None with the exception recorded: a check that fails to run counts as failed."""
        try:
            return compute()
        except (MissingError, TryAgainError, MemoryError):  # nothing to do with the set
            raise
        except Exception as error:
            require_not_stopped()
            if (problem := storage_problem(error)) is not None:
                raise problem from None  # a full disk is not the set's fault either
            self.failures.append(f"{what} could not be measured ({type(error).__name__}: {error})")
            return None

    def verdict(self, config: Config, *, synthetic_digest: str, real_digest: str) -> Verdict:
        """Apply the limits; the set is also refused for what could not be measured."""
        passed, reasons = assess(self.measures, config.validate_)
        details = self.structure.failures if self.structure is not None else ()
        if passed and self.structure is not None:  # else it only repeats the reasons
            details += tuple(f"Great Expectations finds among the metrics: {failure}" for failure in self.structure.metric_failures)
        return Verdict(
            passed=passed and not details and not self.failures,
            reasons=(*reasons, *details, *self.failures),
            metrics=apply_limits(self.measures, config.validate_),
            synthetic_digest=synthetic_digest,
            real_digest=real_digest,
        )


def inspect_set(
    config: Config, *, synthetic: Snapshot, real: Snapshot, reference: LabelReference, plan: ExpectedSet, scratch: Path | None = None
) -> Inspection:
    """Measure everything about `synthetic`; given the folder `scratch`, decoded images are mapped from files there.

    Raises `DataError` only for snapshots that are damaged or do not belong to the reference, and as `given_statistics` does.
    """
    extractor = configured_extractor(config)
    size = comparison_size(config, extractor)
    reference.require(real, extractor, size=size)
    given = given_statistics(config, extractor)
    found = Inspection(subjects=gather_subjects(synthetic, real, extractor, size=size, scratch=scratch))
    found.attempt("the counts of images", lambda: _counts(found, plan))
    found.attempt("agreement of labels", lambda: _labels(found, reference, config.validate_))
    found.attempt("fidelity", lambda: _fidelity(found, reference, extractor, config))
    if extractor.text is not None and _prompted(found.subjects.audit.table):
        found.attempt("the match with prompts", lambda: _prompts(found, reference, extractor))
    if given is not None:
        found.attempt("distance to the given statistics", partial(_to_given, found, reference, extractor, given, seed=config.seed))
    found.attempt("duplicates", lambda: _duplicates(found))
    found.attempt("leaks", lambda: _leaks(found))
    found.attempt("copies", lambda: _copies(found, reference, extractor, config.validate_))
    # Last, because it checks all measures against their limits once more.
    found.attempt("the structure", lambda: _structure(found, replace(plan, origin=origin_of(synthetic.index)), config.validate_))
    return found


def given_statistics(config: Config, extractor: Extractor) -> Statistics | None:
    """The statistics in `validate.reference_statistics`, if set. Raises `ConfigError` or `DataError` for a file that cannot be used."""
    path = config.validate_.reference_statistics
    return None if path is None else read_statistics_file(Path(path), dim=extractor.dim, extractor=extractor.name)


def gather_subjects(synthetic: Snapshot, real: Snapshot, extractor: Extractor, *, size: int, scratch: Path | None = None) -> Subjects:
    """Decode everything. The test split is opened by `open_test`, for the leak check alone."""
    audit = audit_images(synthetic, size=size, scratch=scratch)
    sets = {
        "train": load_images(real, "train", size=size, scratch=scratch),
        "val": load_images(real, "val", size=size, scratch=scratch),
        "test": open_test(real, "leak_check", size=size, scratch=scratch),
    }
    return Subjects(
        audit=audit,
        labels=names_to_labels(audit.table["class"].iloc[audit.rows].tolist(), [info.name for info in real.classes]),
        features=_features(synthetic, audit, extractor, size),
        sketches=sketches_of(audit.images),
        real=sets,
        real_sketches={split: sketches_of(images.images) for split, images in sets.items()},
        real_hashes={split: real.manifest(split)["pixel_sha256"].tolist() for split in _SPLITS},
    )


def _features(synthetic: Snapshot, audit: Audit, extractor: Extractor, size: int) -> np.ndarray:
    """Features of the images that decode: those stored by the sampler if they fit and the pixels are unchanged, else computed."""
    if audit.table["as_recorded"].all() and has_rows(synthetic, extractor, size=size):
        kept = read_rows(synthetic, extractor, size=size)
        require_honest(synthetic, kept, audit.images, extractor)
        return kept
    return extract_by_shard(audit.images, audit.table["shard"].iloc[audit.rows].tolist(), extractor)


def _prompted(table: pd.DataFrame) -> bool:
    """Whether every record has its prompt; imported records need not."""
    return bool(table["prompt"].notna().all()) and bool((table["prompt"] != "").all())


def origin_of(index: SnapshotIndex) -> Literal["generated", "merged", "imported"]:
    """The recorded origin of a synthetic set; without one it must meet the expectations of a generated set, the strictest."""
    if "source_digest" in index.provenance:
        return "imported"
    return "merged" if "merged" in index.provenance else "generated"


def _counts(found: Inspection, plan: ExpectedSet) -> None:
    table = found.subjects.audit.table
    n, by_class = len(table), table["class"].value_counts()
    counts = [int(by_class.get(name, 0)) for name in plan.classes]
    ratio = max(counts) / min(counts) if counts and min(counts) > 0 else float("nan")
    found.measures["images"] = measure(n, n=n)
    found.measures["class_ratio"] = measure(ratio, n=n)
    found.measures["undecodable"] = measure(len(found.subjects.audit.failures), n=n)


def _structure(found: Inspection, plan: ExpectedSet, config: ValidateConfig) -> None:
    found.structure = check_structure(found.subjects.audit.table, plan, found.measures, assess_each(found.measures, config))
    found.measures["failed_expectations"] = measure(len(found.structure.failures), n=len(found.subjects.audit.table))


def _labels(found: Inspection, reference: LabelReference, config: ValidateConfig) -> None:
    subjects = found.subjects
    # Of train alone: images are dropped by the result, and val must stay independent to measure training on the rest.
    unseen, truth = reference.probabilities["train"], subjects.real["train"].labels.numpy()
    seen = reference.predict(subjects.audit.images)
    measured = MeasuredWith(reference_digest=reference.index.digest)
    names = subjects.real["train"].classes
    found.labels = check_labels(seen, subjects.stated_labels, unseen, truth, config, names=names, measured=measured)
    found.measures |= found.labels.measures


def _fidelity(found: Inspection, reference: LabelReference, extractor: Extractor, config: Config) -> None:
    subjects = found.subjects
    synthetic = FeatureSet(features=subjects.features, probabilities=reference.predict_alone(subjects.audit.images))
    real = {s: FeatureSet(features=reference.features[s], probabilities=reference.probabilities[s]) for s in reference.features}
    labels = {split: subjects.real[split].labels.numpy() for split in real}
    names = subjects.real["train"].classes
    found.closeness = closeness(synthetic, subjects.labels, real, labels, classes=len(names), seed=config.seed)
    measured = MeasuredWith(extractor=extractor.identity, reference_digest=reference.index.digest)
    seen_by = replace(measured, extractor=reference.classifiers)
    for name, result in found.closeness.overall.items():
        found.measures[name] = compared(result, seen_by if name.startswith("inception_score") else measured)
    found.measures |= worst_classes(found.closeness.by_class, names, config.validate_, measured=measured)


def _prompts(found: Inspection, reference: LabelReference, extractor: Extractor) -> None:
    """How well images match their prompts; the floor is that of real images with the prompts of their classes."""
    assert extractor.text is not None
    subjects = found.subjects
    prompts = subjects.audit.table["prompt"].iloc[subjects.audit.rows].tolist()
    by_label = {int(label): prompt for label, prompt in zip(subjects.labels, prompts, strict=True)}
    real = {split: subjects.real[split].labels.tolist() for split in reference.features}
    pairs = [(split, i, by_label[label]) for split, labels in real.items() for i, label in enumerate(labels) if label in by_label]
    floor = cosines(np.stack([reference.features[split][i] for split, i, _ in pairs]), [text for *_, text in pairs], extractor.text.embed)
    measured = MeasuredWith(
        extractor=f"{extractor.identity} with texts@{extractor.text.digest[:8]}", reference_digest=reference.index.digest
    )
    matched = mean_of(cosines(subjects.features, prompts, extractor.text.embed))
    found.measures["text_alignment"] = estimated(matched, floor=float(floor.mean()), n=len(prompts), measured=measured)


def _to_given(found: Inspection, reference: LabelReference, extractor: Extractor, given: Statistics, *, seed: int) -> None:
    measured = MeasuredWith(extractor=extractor.identity, reference_digest=statistics_digest(given))
    found.measures["fid_reference"] = compared(to_statistics(found.subjects.features, reference.pooled, given, seed=seed), measured)


def _duplicates(found: Inspection) -> None:
    subjects, n = found.subjects, len(found.subjects.hashes)
    found.measures["duplicate_fraction"] = measure(share(len(duplicates(subjects.hashes)), n).value, n=n)
    real = joined(subjects.real_sketches["train"], subjects.real_sketches["val"])
    found.repeated = near_groups(subjects.sketches)
    near, floor = (len(near_matches(one, one, same_set=True).queries) / len(one) for one in (subjects.sketches, real))
    found.measures["near_duplicate_fraction"] = measure(near, n=n).model_copy(update={"floor": finite(floor)})


def _leaks(found: Inspection) -> None:
    subjects, n = found.subjects, len(found.subjects.hashes)
    real = subjects.real_sketches
    # Real images of other splits lie no nearer to a split than any new image does.
    probes = {"train": real["val"], "val": real["train"], "test": joined(real["train"], real["val"])}
    for split in _SPLITS:
        leaks = find_leaks(
            split,
            hashes=subjects.hashes,
            sketches=subjects.sketches,
            real_hashes=subjects.real_hashes[split],
            real_sketches=real[split],
        )
        found.measures[f"exact_{split}"] = measure(sum(leak.exact for leak in leaks), n=n)
        found.measures[f"near_{split}"] = estimated(share(len(leaks), n), floor=real_rate(probes[split], real[split]), n=n)
        found.leaks += leaks


def _copies(found: Inspection, reference: LabelReference, extractor: Extractor, config: ValidateConfig) -> None:
    subjects = found.subjects
    train, val = subjects.real["train"].images, subjects.real["val"].images
    # A picture that train holds several times would be its own neighbourhood; one that val holds too would count as new.
    kept = distinct(subjects.real_sketches["train"])
    unseen = np.flatnonzero(near_matches(subjects.real_sketches["val"], subjects.real_sketches["train"]).reference < 0)
    features = {"synthetic": subjects.features, "holdout": reference.features["val"][unseen], "train": reference.features["train"][kept]}
    spaces = [aligned_space(synthetic=subjects.audit.images, holdout=val[unseen], train=train[kept]), feature_space("features", **features)]
    measured = ["aligned", extractor.identity]
    if config.sscd_weights is not None:
        sscd = load_sscd(config.sscd_weights)
        parts = {"synthetic": subjects.audit.images, "holdout": val[unseen], "train": train[kept]}
        spaces.append(feature_space("sscd", **{name: sscd.features(images) for name, images in parts.items()}))
        measured.append(sscd.identity)
    copies = check_copies(spaces, quantile=config.copy_quantile)
    found.copies = replace(copies, neighbour=kept[copies.neighbour])
    flagged, n = share(int(copies.flagged.sum()), len(copies.flagged)), len(copies.flagged)
    found.measures["copy_fraction"] = estimated(
        flagged, floor=float(copies.holdout_flagged.mean()), n=n, measured=MeasuredWith(extractor=" + ".join(measured))
    )
