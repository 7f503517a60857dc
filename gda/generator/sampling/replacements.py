"""More images of a plan, to stand where others were taken out: each class goes on where its sampling stopped."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from gda.generator.planning.plan import ImagePlan, PlannedImage, PlannedShard, cut_batches, cut_shards, interleave
from gda.generator.sampling.sample_shards import SamplingContext, ShardJob, sample_shard
from gda.io.publish import storage_errors
from gda.runtime.parallel import run_parallel, workers_of


def later_shards(plan: ImagePlan, counts: Sequence[int], *, number: int, shard_size: int, batch_size: int) -> tuple[PlannedShard, ...]:
    """Shards from `number` on with the images of `plan` that come after the first `counts` of their class, by label.

    `plan` is that of a larger set, whose first images are those sampled before. Classes are interleaved, and a batch has one strength.
    """
    images = [image for shard in plan.shards for image in shard.images if image.index >= counts[image.label]]
    batches = [
        batch
        for strength in sorted({image.strength for image in images})
        for batch in cut_batches(_interleaved([image for image in images if image.strength == strength]), batch_size)
    ]
    return tuple(replace(shard, number=number + shard.number) for shard in cut_shards(batches, shard_size // batch_size))


def sample_later(context: SamplingContext, shards: Sequence[PlannedShard], folder: Path) -> list[tuple[Path, pd.DataFrame]]:
    """Sample shards into `folder`, by as many processes as `gda sample` would; each tar with its manifest rows.

    Shards that are there already are left alone. Raises as `sample_shard` does.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    jobs = [ShardJob(context=replace(context, folder=folder, observer=None), shard=shard) for shard in shards]
    run_parallel(sample_shard, jobs, workers=workers_of(context.device))
    counts = [(job.path, job.rows()) for job in jobs]
    return [(path, rows) for path, rows in counts if rows is not None]


def _interleaved(images: Sequence[PlannedImage]) -> list[PlannedImage]:
    by_label = {label: sorted(_of(images, label), key=lambda image: image.index) for label in sorted({image.label for image in images})}
    classes = list(by_label.values())
    return [classes[kind][place] for kind, place in interleave([len(members) for members in classes])]


def _of(images: Sequence[PlannedImage], label: int) -> list[PlannedImage]:
    return [image for image in images if image.label == label]
