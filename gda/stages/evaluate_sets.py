"""The robustness sets of evaluate: every classifier on images from elsewhere, which decide nothing."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gda.artifacts.evaluation import SetArm, SetResult
from gda.artifacts.fingerprint import digest_of
from gda.config.arm import Arm
from gda.config.load import Config
from gda.data.images.codecs import LANCZOS, Interpolation
from gda.data.ingest.held_out_sets import HeldOutSet, load_held_out, open_held_out, read_class_map
from gda.data.store.snapshot import Snapshot
from gda.data.test_split.ledger import record_test_opening
from gda.errors import DataError
from gda.runtime.disks import storage_errors
from gda.runtime.parallel import run_parallel
from gda.runtime.progress import Bar, tick
from gda.runtime.rng import numpy_stream
from gda.stats.robustness import set_arm, set_gain
from gda.stats.two_way import sets_of
from gda.training.loop.classifier import load_classifier, predict_logits

FIELDS = frozenset({"sets", "class_map", "set_labels", "restrict"})  # of section evaluate; `identities` stands for them in a fingerprint

_PART = 256  # images decoded and predicted at a time

_CorrectByRun = Mapping[tuple[Arm, int], NDArray[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class DecodeJob:
    """Decode `files` into the .npy file `out`, uint8 NCHW, by way of `sides` (pixels), with `interpolation` to the last."""

    files: tuple[Path, ...]
    sides: tuple[int, ...]
    interpolation: Interpolation
    pixel_range: tuple[float, float] | None = None  # of images with more than 8 bits
    out: Path


@dataclass(frozen=True, kw_only=True)
class Seen:
    """How the classifiers take images: squares of `size` pixels, scaled with `interpolation`."""

    size: int
    interpolation: Interpolation = LANCZOS


@dataclass(frozen=True, kw_only=True)
class SetJob:
    """Predict the images of `parts` with the classifier in `folder`, choosing among `among` (all classes where None)."""

    folder: Path
    parts: tuple[Path, ...]
    image_size: int
    among: tuple[int, ...] | None


def open_sets(config: Config, classes: Sequence[str], *, progress: bool = False) -> tuple[HeldOutSet, ...]:
    """The sets that `config.evaluate` names, listed and digested but not decoded. Raises `DataError`."""
    section = config.evaluate
    class_map = read_class_map(Path(section.class_map)) if section.class_map is not None and section.sets else None
    return tuple(
        open_held_out(
            name,
            Path(folder),
            classes,
            class_map=class_map,
            labels=Path(section.set_labels[name]) if name in section.set_labels else None,
            pixel_range=config.snapshot.pixel_range,
            progress=progress,
        )
        for name, folder in sorted(section.sets.items())
    )


def identities(config: Config, sets: Sequence[HeldOutSet]) -> dict[str, str]:
    """Inputs of a fingerprint, by role: what each set holds and how it is measured, wherever it lies."""
    return {f"set {one.name}": digest_of([one.digest, _is_restricted(config, one)]) for one in sets}


def measure_sets(
    config: Config,
    sets: Sequence[HeldOutSet],
    folders: Mapping[tuple[Arm, int], Path],
    real: Snapshot,
    seen: Seen,
    *,
    parts: Mapping[Arm, int],
    scratch: Path,
    progress: bool = False,
) -> dict[str, SetResult]:
    """Results a set and an arm of the classifiers in `folders`, which take images as `seen` says.

    `parts` says in how many parts, one per seed, the images next to the real ones were given to each arm.
    Each opening is noted in the ledger. Decoded images are kept in `scratch` meanwhile. Raises as `decode_set` does.
    """
    results = {}
    for one in sets:
        record_test_opening(one.digest, "evaluate")
        decoded = decode_set(one, real, seen, folder=scratch / "sets" / one.name, progress=progress)
        among = one.classes if _is_restricted(config, one) else None
        jobs = [SetJob(folder=folder, parts=decoded, image_size=seen.size, among=among) for folder in folders.values()]
        with Bar(len(jobs), f"evaluate {one.name}", unit="classifier", shown=progress):
            predicted = run_parallel(predict_set, jobs)
        shutil.rmtree(scratch / "sets")
        correct = {key: one.correct(found) for key, found in zip(folders, predicted, strict=True)}
        results[one.name] = set_result(config, one, correct, parts)
    return results


def set_result(config: Config, one: HeldOutSet, correct: _CorrectByRun, parts: Mapping[Arm, int]) -> SetResult:
    """What is stated of a set from `correct`, bool [images], of every classifier that ran. Raises `DataError` where arms share no seed."""
    seeds = {arm: sorted(seed for name, seed in correct if name is arm) for arm in dict.fromkeys(arm for arm, _ in correct)}
    return SetResult(
        num_images=len(one.files),
        left_out=one.left_out,
        num_classes=len(one.classes),
        restricted=_is_restricted(config, one),
        several_labels=one.name in config.evaluate.set_labels,
        digest=one.digest,
        arms={arm: _arm(config, one.name, arm, seeds, correct, parts[arm]) for arm in seeds},
    )


def _arm(config: Config, name: str, arm: Arm, seeds: Mapping[Arm, Sequence[int]], correct: _CorrectByRun, parts: int) -> SetArm:
    confidence = config.evaluate.confidence
    hits = np.stack([correct[arm, seed] for seed in seeds[arm]])
    result = set_arm(hits, seeds=seeds[arm], confidence=confidence, sets=sets_of(parts, seeds[arm]))
    if arm is Arm.REAL:
        return result
    shared = sorted(set(seeds[arm]) & set(seeds[Arm.REAL]))
    if not shared:
        raise DataError(f"arms {arm} and {Arm.REAL} share no seed; classify.seeds and classify.control_seeds need some in common")
    own, rival = (np.stack([correct[which, seed] for seed in shared]) for which in (arm, Arm.REAL))
    rng = numpy_stream("stats", config.seed, "set", name, arm, Arm.REAL)
    gain = set_gain(own, rival, rng, confidence=confidence, sets=sets_of(parts, shared))
    return result.model_copy(update={"gain": gain})


def _is_restricted(config: Config, one: HeldOutSet) -> bool:
    return one.name in config.evaluate.restrict


def decode_set(one: HeldOutSet, real: Snapshot, seen: Seen, *, folder: Path, progress: bool = False) -> tuple[Path, ...]:
    """Write the images as .npy files of `_PART` each, uint8 NCHW as `seen`, into `folder`, which is emptied first.

    They are brought to the size of `real` before where all of its test images have one, as these were. Raises `DataError` for an image
    that cannot be decoded, `MissingError` where there is no room.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with storage_errors(folder):
        folder.mkdir(parents=True)
    sides = (*_stored_side(real), seen.size)
    starts = range(0, len(one.files), _PART)
    jobs = [
        DecodeJob(
            files=one.files[at : at + _PART],
            sides=sides,
            interpolation=seen.interpolation,
            pixel_range=one.pixel_range,
            out=folder / f"{at:09d}.npy",
        )
        for at in starts
    ]
    with Bar(len(one.files), f"decode {one.name}", unit="image", shown=progress):
        run_parallel(decode_part, jobs)
    return tuple(job.out for job in jobs)


def _stored_side(real: Snapshot) -> tuple[int, ...]:
    rows = real.manifest("test")
    sides = set(rows["width"]) | set(rows["height"])
    return (int(sides.pop()),) if len(sides) == 1 else ()


def decode_part(job: DecodeJob) -> None:
    """Do a `DecodeJob`."""
    images = load_held_out(job.files, sides=job.sides, interpolation=job.interpolation, pixel_range=job.pixel_range)
    with storage_errors(job.out):
        np.save(job.out, images)
    tick(len(images))


def predict_set(job: SetJob) -> NDArray[np.int32]:
    """The most likely class of every image, int32 [images], ties going to the lower class."""
    model = load_classifier(job.folder)
    predicted = []
    for part in job.parts:
        logits = predict_logits(model, torch.from_numpy(np.load(part)), image_size=job.image_size).numpy()
        among = np.arange(logits.shape[1]) if job.among is None else np.array(job.among)
        predicted.append(among[logits[:, among].argmax(axis=1)])
    tick()
    return np.concatenate(predicted).astype(np.int32)
