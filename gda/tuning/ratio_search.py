"""Search for the most helpful number of synthetic images: nested sets, and successive halving with more seeds for the best ratios."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from gda.artifacts.fingerprint import bits_environment, digest_of
from gda.config.sections import RatioConfig
from gda.data.store.in_memory import ImageSet
from gda.errors import DataError
from gda.io.checked import is_whole, write_checked
from gda.runtime.disks import storage_errors
from gda.runtime.parallel import run_parallel
from gda.runtime.progress import tick
from gda.runtime.reading import parser
from gda.training.loop.classifier import TrainingSource, TrainRecipe, predict_logits, train_classifier

REAL_ALONE = 0.0  # ratio of the baseline
# Seeds of the search, separate from the configured seeds, on which the chosen ratio is compared later.
_FIRST_SEED = 1000

_Correct = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Sets:
    """The images to train and validate on, and the sets' digests by name; `synthetic` is in the order of `nested_order`."""

    real: ImageSet
    synthetic: ImageSet
    val: ImageSet
    digests: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Job:
    count: int  # synthetic images
    share: float  # synthetic fraction of a batch
    seed: int
    keep: Path


# Set before forking, so that worker processes inherit the images instead of receiving copies.
_sets: list[tuple[Sets, TrainRecipe]] = []


def nested_order(labels: torch.Tensor) -> torch.Tensor:
    """Indices int64 [n], ordered so that every prefix has the class proportions of `labels` [n]; each class keeps its given order."""
    values = labels.numpy()
    place = np.empty(len(values))
    for label in np.unique(values):
        own = np.flatnonzero(values == label)
        place[own] = (np.arange(len(own)) + 0.5) / len(own)
    return torch.from_numpy(np.lexsort((values, place)))


def rungs(config: RatioConfig, num_ratios: int) -> list[tuple[int, int]]:
    """(ratios, seeds of each) of every round: seeds double and ratios are cut (successive halving, Jamieson and Talwalkar 2016)."""
    found, kept, seeds = [], num_ratios, config.first_seeds
    while True:
        found.append((kept, seeds))
        if seeds == config.seeds:
            return found
        kept, seeds = min(kept, max(2, math.ceil(kept * config.keep_fraction))), min(config.seeds, 2 * seeds)


def num_classifiers(config: RatioConfig, num_ratios: int) -> int:
    """Number of classifiers that the search trains, including those on real images alone."""
    done, total = 0, 0
    for kept, seeds in rungs(config, num_ratios):
        total, done = total + (kept + 1) * (seeds - done), seeds
    return total


class RatioSearch:
    """Trains and scores on validation; each classifier's predictions are cached in `folder` under the digest of all their inputs."""

    def __init__(self, sets: Sets, recipe: TrainRecipe, config: RatioConfig, *, batch_share: float, folder: Path) -> None:
        self._sets, self._recipe, self._config, self._folder = sets, recipe, config, folder
        self._batch_share = batch_share

    def run(self, ratios: Sequence[float]) -> dict[float, _Correct]:
        """Whether each validation image is classified correctly, [seeds, images], by ratio; ratios dropped early have fewer seeds."""
        found: dict[float, _Correct] = {}
        alive = sorted(ratios)
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        for kept, seeds in rungs(self._config, len(ratios)):
            if found:
                # Ties go to the smaller ratio, which costs less.
                alive = sorted(sorted(alive, key=lambda ratio: (-float(found[ratio].mean()), ratio))[:kept])
            found |= self._scored([REAL_ALONE, *alive], seeds)
        return found

    def _scored(self, ratios: Sequence[float], seeds: int) -> dict[float, _Correct]:
        jobs = {(ratio, seed): self._job(ratio, _FIRST_SEED + seed) for ratio in ratios for seed in range(seeds)}
        fresh = [job for job in jobs.values() if _read(job.keep, len(self._sets.val.labels)) is None]
        _sets.append((self._sets, self._recipe))
        try:
            run_parallel(_train, fresh)
        finally:
            _sets.clear()
        return {ratio: np.stack([_require(jobs[ratio, seed].keep, self._sets.val) for seed in range(seeds)]) for ratio in ratios}

    def _job(self, ratio: float, seed: int) -> _Job:
        count = images_of(ratio, len(self._sets.real.labels))
        share = 0.0 if not count else ratio / (1 + ratio) if self._config.batch_share == "count" else self._batch_share
        decides = {
            "count": count,
            "share": share,
            "seed": seed,
            "recipe": (self._recipe if count else self._recipe.of_one_origin()).identity(),
            "sets": dict(self._sets.digests),
            "environment": bits_environment("timm", "torchvision"),
        }
        return _Job(count=count, share=share, seed=seed, keep=self._folder / f"{digest_of(decides)[:32]}.safetensors")


def images_of(ratio: float, num_real: int) -> int:
    """Number of synthetic images for a ratio to `num_real` real ones, rounded; at least one for any ratio above 0."""
    return max(1, math.floor(ratio * num_real + 0.5)) if ratio > 0 else 0


def _train(job: _Job) -> None:
    sets, recipe = _sets[0]
    sources = [TrainingSource.of(sets.real, share=1.0 - job.share)]
    if job.count:
        sources.append(TrainingSource.of(sets.synthetic.take(slice(job.count)), share=job.share, synthetic=True))
    model, _ = train_classifier(sources, recipe, num_classes=len(sets.val.classes), seed=job.seed)
    logits = predict_logits(model, sets.val.images, image_size=recipe.test_image_size or recipe.image_size)
    correct = (logits.argmax(dim=1) == sets.val.labels).numpy()
    write_checked(job.keep, save({"correct": correct.astype(np.uint8)}))
    tick()


def _read(path: Path, images: int) -> _Correct | None:
    if not is_whole(path):
        return None
    with suppress(DataError), parser(path, "a whole safetensors file"):
        correct = load_file(path).get("correct")
        return correct.astype(np.bool_) if correct is not None and correct.shape == (images,) else None
    return None


def _require(path: Path, val: ImageSet) -> _Correct:
    correct = _read(path, len(val.labels))
    if correct is None:
        raise DataError(f"{path}: answers that were kept a moment ago are gone; run the same command, which trains that classifier again")
    return correct
