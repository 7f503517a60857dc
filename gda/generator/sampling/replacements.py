"""Samples further images of a plan as replacements: each class continues after its last sampled image."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from gda.generator.planning.plan import ImagePlan, PlannedImage, PlannedShard, cut_batches, cut_shards, interleave
from gda.generator.sampling.sample_shards import SamplingContext, ShardJob, sample_shard
from gda.runtime.disks import storage_errors
from gda.runtime.parallel import run_parallel, workers_of


def later_shards(plan: ImagePlan, counts: Sequence[int], *, number: int, shard_size: int, batch_size: int) -> tuple[PlannedShard, ...]:
    """Shards, numbered from `number`, with the images of `plan` after the first `counts` of each class, by label.

    `plan` belongs to a larger set that begins with the images sampled before. Classes are interleaved; each batch has one strength.
    """
    images = [image for shard in plan.shards for image in shard.images if image.index >= counts[image.label]]
    batches = [
        batch
        for strength in sorted({image.strength for image in images})
        for batch in cut_batches(_interleaved([image for image in images if image.strength == strength]), batch_size)
    ]
    return tuple(replace(shard, number=number + shard.number) for shard in cut_shards(batches, shard_size // batch_size))


def sample_later(context: SamplingContext, shards: Sequence[PlannedShard], folder: Path) -> list[tuple[Path, pd.DataFrame]]:
    """Sample shards into `folder`, with as many processes as `gda sample`; returns each tar with its manifest rows.

    Existing shards are kept. Raises the errors of `sample_shard`.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    jobs = [ShardJob(context=replace(context, folder=folder, observer=None), shard=shard) for shard in shards]
    run_parallel(sample_shard, jobs, workers=workers_of(context.device))
    counts = [(job.path, job.rows()) for job in jobs]
    return [(path, rows) for path, rows in counts if rows is not None]


def _interleaved(images: Sequence[PlannedImage]) -> list[PlannedImage]:
    labels = sorted({image.label for image in images})
    classes = [sorted((image for image in images if image.label == label), key=lambda image: image.index) for label in labels]
    return [classes[kind][place] for kind, place in interleave([len(members) for members in classes])]
