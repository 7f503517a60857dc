"""The parts of metrics.json about groups of classes and images, and about top-5: reported only, never read by the gate."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from gda.artifacts.evaluation import GroupResult, SetArm, SetGain
from gda.config.arm import Arm
from gda.config.load import Config
from gda.data.store.predictions import TOP_K, Predictions
from gda.data.store.snapshot import Snapshot
from gda.runtime.rng import numpy_stream
from gda.stats import groups
from gda.stats.robustness import set_gain
from gda.stats.two_way import sets_of

GROUP_COLUMN = "group"  # of the manifest
MOST_GROUPS = 20  # in the user's column: more than these are patients or cameras that the split keeps together, not kinds of images
Kind = Literal["frequency", "balanced", "worst", "given"]


def group_results(config: Config, predictions: Predictions, real: Snapshot, parts: Mapping[Arm, int]) -> dict[str, GroupResult]:
    """By name, accuracy of each arm that ran and its gain over real on each group; groups without a result are left out.

    `parts` maps each arm that ran to the number of parts of its synthetic set, of which a seed trains on one.
    """
    labels = predictions.labels.astype(np.int64)
    correct: dict[Arm, dict[int, groups.Bools]] = {}
    for arm in parts:
        seeds = predictions.seeds(arm)
        correct[arm] = dict(zip(seeds, predictions.correct(arm, seeds), strict=True))
    every = sorted({seed for by_seed in correct.values() for seed in by_seed})
    confidence = config.evaluate.confidence
    found: dict[str, GroupResult] = {}
    for name, kind, group in _groups(config, predictions, real, every):
        arms: dict[Arm, SetArm] = {}
        ids = None if kind == "given" else predictions.groups  # one group by itself is no sample of groups
        for arm, by_seed in correct.items():
            own = groups.group_arm(group, by_seed, confidence=confidence, parts=parts[arm], groups=ids)
            if arm is not Arm.REAL:
                rng = numpy_stream("stats", config.seed, "group", name, arm, Arm.REAL)
                gain = groups.group_gain(group, by_seed, correct[Arm.REAL], rng, confidence=confidence, parts=parts[arm], groups=ids)
                own = own.model_copy(update={"gain": gain})
            arms[arm] = own
        members = group.members
        found[name] = GroupResult(kind=kind, num_images=int(members.sum()), num_classes=len(np.unique(labels[members])), arms=arms)
    return found


def _groups(config: Config, predictions: Predictions, real: Snapshot, seeds: Sequence[int]) -> Iterator[tuple[str, Kind, groups.Group]]:
    labels, evaluate = predictions.labels.astype(np.int64), config.evaluate
    names = [info.name for info in real.classes]
    if (group := groups.of_classes(range(len(names)), labels, seeds)) is not None:
        yield "balanced accuracy", "balanced", group
    trained_on = [real.index.counts["train"].get(name, 0) for name in names]
    for name, chosen in groups.by_frequency(trained_on, evaluate.shot_cuts).items():
        if (group := groups.of_classes(chosen.tolist(), labels, seeds)) is not None:
            yield name, "frequency", group
    rival_seeds = predictions.seeds(Arm.REAL)
    rival = predictions.correct(Arm.REAL, rival_seeds)
    for number in sorted({1, groups.num_worst(evaluate.worst_share, len(names))}):
        if (group := groups.least_accurate_classes(rival, rival_seeds, labels, number, seeds, num_classes=len(names))) is not None:
            yield "worst class" if number == 1 else f"worst {number:,} classes", "worst", group
    yield from _given(real, len(labels), seeds)


def _given(real: Snapshot, num_images: int, seeds: Sequence[int]) -> Iterator[tuple[str, Kind, groups.Group]]:
    """The groups of test images in the manifest, if there are two to `MOST_GROUPS` of them."""
    manifest = real.manifest("test")
    if GROUP_COLUMN not in manifest.columns or len(manifest) != num_images:
        return
    of_image = manifest[GROUP_COLUMN].fillna("").astype(str)
    values = sorted(set(of_image) - {""})
    if 2 <= len(values) <= MOST_GROUPS:
        for value in values:
            yield f"group {value}", "given", groups.of_images((of_image == value).to_numpy(dtype=np.bool_), seeds)


def top5_gains(config: Config, predictions: Predictions, parts: Mapping[Arm, int]) -> dict[Arm, SetGain]:
    """Gain of each arm over real in top-5 accuracy, paired by seed and image."""
    found: dict[Arm, SetGain] = {}
    for arm in parts:
        seeds = sorted(set(predictions.seeds(arm)) & set(predictions.seeds(Arm.REAL)))
        if arm is not Arm.REAL and seeds:
            own, rival = (predictions.correct(which, seeds, within=TOP_K) for which in (arm, Arm.REAL))
            found[arm] = set_gain(
                own,
                rival,
                numpy_stream("stats", config.seed, "top5", arm, Arm.REAL),
                confidence=config.evaluate.confidence,
                sets=sets_of(parts[arm], seeds),
                groups=predictions.groups,
            )
    return found
