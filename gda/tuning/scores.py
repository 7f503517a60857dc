"""FID and CAS of sampled batches against a validation split, each score cached as a small file under the digest of all its inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gda.artifacts.fingerprint import bits_environment, digest_of
from gda.data.store.in_memory import ImageSet, load_images
from gda.data.store.snapshot import Snapshot
from gda.errors import DataError
from gda.fidelity.compare import fid_to
from gda.fidelity.extractors import get_extractor
from gda.fidelity.frechet import Statistics
from gda.io.checked import read_checked_json, write_checked_json
from gda.runtime.disks import storage_errors
from gda.training.loop.classifier import TrainingSource, TrainRecipe, predict_logits, top1, train_classifier
from gda.tuning.batches import SampledBatch, read_batches


@dataclass(frozen=True, kw_only=True)
class ScoredSplit:
    """The validation split of a snapshot as squares of `side` pixels."""

    path: Path
    digest: str
    side: int


@dataclass(frozen=True, kw_only=True)
class FidJob:
    """Measure FID of the images at `paths` against the reference; the score is written to `keep`."""

    paths: tuple[Path, ...]
    extractor: str
    weights: str | None
    reference: Statistics
    seed: int
    keep: Path


@dataclass(frozen=True, kw_only=True)
class CasJob:
    """Train one classifier on the first images at `paths`, one per entry of `labels`, and score it on the validation split."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    val: ScoredSplit
    recipe: TrainRecipe
    seed: int
    keep: Path


def score_fid(job: FidJob) -> str | None:
    """Write FID with its interval to `job.keep`; if it is not finite, returns the reason instead."""
    features = get_extractor(job.extractor, job.weights).features(read_batches(job.paths))
    try:
        found = fid_to(job.reference, features, seed=job.seed)
    except (DataError, np.linalg.LinAlgError) as error:
        return f"its FID cannot be measured ({error})"
    ends = {"value": found.value, "low": found.low, "high": found.high}
    if not np.isfinite(list(ends.values())).all():
        return f"its FID is {found.value}"
    write_score(job.keep, ends)
    return None


def score_cas(job: CasJob) -> None:
    """Write top-1 in [0, 1] on validation images, of a classifier trained on synthetic images alone, to `job.keep`."""
    import torch

    val = validation_images(job.val)
    images = read_batches(job.paths)[: len(job.labels)]
    source = TrainingSource(images=images, labels=torch.tensor(job.labels), share=1.0)
    model, _ = train_classifier([source], job.recipe, num_classes=len(val.classes), seed=job.seed)
    write_score(job.keep, {"value": top1(predict_logits(model, val.images, image_size=job.recipe.image_size), val.labels)})


@lru_cache(maxsize=1)
def validation_images(split: ScoredSplit) -> ImageSet:
    """The images of a split, decoded once per process; forked processes inherit them."""
    return load_images(Snapshot.open(split.path), "val", size=split.side)


def score_file(folder: Path, kind: str, batches: Sequence[SampledBatch], measured: Mapping[str, Any]) -> Path:
    """Path of a score, named by the digest of the sampled images and of how it is `measured`."""
    name = digest_of({"batches": [batch.path.name for batch in batches], kind: measured, "environment": bits_environment("timm")})
    return folder / f"{name[:32]}.{kind}.json"


def write_score(path: Path, score: dict[str, float]) -> None:
    """Write a score atomically. Raises `MissingError` if the disk is full or failing."""
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_checked_json(path, score)


def read_score(path: Path) -> dict[str, float] | None:
    """A cached score; None if it is missing or damaged."""
    content = read_checked_json(path)
    whole = content is not None and "value" in content and all(isinstance(value, float) for value in content.values())
    return content if whole else None


def require_score(path: Path) -> dict[str, float]:
    """A score that must exist. Raises `DataError` if it is missing."""
    score = read_score(path)
    if score is None:
        raise DataError(f"{path}: a score that was kept a moment ago is gone; run the same command, which measures it again")
    return score
