"""Samples the shards of a plan in whole batches, encodes each while the next is sampled, and commits shards with manifest rows."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import pandas as pd
import torch

from gda.artifacts.snapshot import ClassInfo
from gda.artifacts.tuning import SamplingSettings
from gda.data.images.codecs import Codec, Rgb
from gda.data.store.in_memory import RecordReader
from gda.data.store.snapshot import Snapshot
from gda.data.store.writer import EncodedRecord, ImageRecord, encode_record, load_rows, save_rows, write_encoded_shard
from gda.errors import DataError, MissingError, NotFiniteError
from gda.generator.families.opening import load_model
from gda.generator.families.protocol import Start
from gda.generator.planning.plan import PlannedImage, PlannedShard
from gda.generator.sampling.sampler import Sampler
from gda.generator.sampling.speed import Speed, compiler_errors, speed_up
from gda.runtime.parallel import own_device
from gda.runtime.progress import tick

_WAITING = 2  # batches that may wait for the encoder; bounds memory if it is slower than the sampler


class ShardObserver(Protocol):
    """Receives the images of one shard and stores a result computed from them."""

    def add(self, images: Sequence[Rgb]) -> None:
        """Take the next images of the shard, in record order."""

    def commit(self, rows: pd.DataFrame) -> None:
        """Store the result atomically, for the images of these manifest rows of the shard."""


class Observer(Protocol):
    """Observes images while they are sampled; a shard counts as sampled only after its result is stored."""

    def begin(self, shard: Path) -> ShardObserver:
        """Start observing a shard, given the path of its tar."""

    def holds(self, shard: Path, rows: pd.DataFrame, *, checked: bool) -> bool:
        """Whether the result of a shard with these manifest rows is stored; `checked` verifies its full content."""

    def discard(self, shard: Path) -> None:
        """Delete a shard's result."""


@dataclass(frozen=True, kw_only=True)
class SamplingContext:
    """The settings shared by all shards of a set: everything that a worker process needs in addition to the shard.

    `sources` is the real snapshot whose training images sampling starts from, None if it starts from noise. `observer` receives every
    sampled image; it is pickled to the worker processes.
    """

    generator: str
    generator_digest: str
    classes: tuple[ClassInfo, ...]
    prompts: tuple[str, ...]
    settings: SamplingSettings
    speed: Speed
    codec: Codec
    sources: Path | None
    device: str
    folder: Path
    observer: Observer | None = None


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Sample one shard of a set."""

    context: SamplingContext
    shard: PlannedShard

    @property
    def path(self) -> Path:
        """Path of the tar."""
        return self.context.folder / self.shard.name

    @property
    def sidecar(self) -> Path:
        """Path of the shard's manifest rows until the set is committed."""
        return self.context.folder.parent / "rows" / f"{self.shard.number:06d}.json"

    def rows(self, *, checked: bool = False) -> pd.DataFrame | None:
        """Manifest rows of the shard if it was sampled and observed as planned, else None; `checked` also verifies checksums."""
        rows = load_rows(self.sidecar, self.path, checked=checked)
        if rows is None or rows["key"].tolist() != [image.key for image in self.shard.images]:
            return None
        observer = self.context.observer
        return rows if observer is None or observer.holds(self.path, rows, checked=checked) else None

    def discard(self) -> None:
        """Delete the shard, so that it is sampled again."""
        self.sidecar.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        if self.context.observer is not None:
            self.context.observer.discard(self.path)


def sample_shard(job: ShardJob) -> None:
    """Sample and commit one shard with its sidecar of manifest rows; an existing shard is kept.

    Raises `DataError` with the records whose images are NaN, `MissingError` when a single image does not fit in memory.
    """
    if job.rows() is not None:
        tick(len(job.shard.images))
        return
    sampler = _sampler_of(job.context)
    observed = job.context.observer.begin(job.path) if job.context.observer is not None else None
    with Encoder(job.context.codec) as encoder:
        for batch in job.shard.batches:
            records = _sample_batch(sampler, job, batch)
            encoder.add(records)
            if observed is not None:
                observed.add([record.rgb for record in records])
            tick(len(batch))
    _commit(job, encoder.records, observed)


def resample_batch(context: SamplingContext, batch: Sequence[PlannedImage]) -> torch.Tensor:
    """One batch sampled again: uint8 NCHW in [0, 255]."""
    return _pixels(_sampler_of(context), context, batch)


class Encoder:
    """Encodes and hashes images in its own thread while the next batch is sampled; `records` are complete after the `with` block."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.records: list[EncodedRecord] = []
        self._waiting: list[Future[list[EncodedRecord]]] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="encode")

    def add(self, records: list[ImageRecord]) -> None:
        """Queue a batch; blocks while the queue is full."""
        self._waiting.append(self._pool.submit(_encode_all, records, self._codec))
        while len(self._waiting) > _WAITING:
            self._take()

    def _take(self) -> None:
        self.records += self._waiting.pop(0).result()

    def __enter__(self) -> "Encoder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            while kind is None and self._waiting:
                self._take()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _encode_all(records: list[ImageRecord], codec: Codec) -> list[EncodedRecord]:
    return [encode_record(record, codec) for record in records]


def _sampler_of(context: SamplingContext) -> Sampler:
    return _sampler(context.generator, context.generator_digest, context.prompts, context.speed, context.device)


@lru_cache(maxsize=1)
def _sampler(generator: str, digest: str, prompts: tuple[str, ...], speed: Speed, device: str) -> Sampler:
    """The loaded generator with its prompts encoded, cached for the next shard of this process; `digest` is part of the cache key."""
    model = load_model(generator)
    model.to(own_device(device))
    speed_up(model, speed)
    return Sampler(model, prompts)


def _sample_batch(sampler: Sampler, job: ShardJob, batch: Sequence[PlannedImage]) -> list[ImageRecord]:
    context = job.context
    try:
        parts = _within_memory(sampler, context, batch)
    except NotFiniteError as error:
        keys = ", ".join(batch[row].key for row in error.rows[:3]) + (", ..." if len(error.rows) > 3 else "")
        raise DataError(f"{job.shard.name}: {error} ({keys}); the shard is not written") from None
    return [
        ImageRecord(
            key=image.key,
            rgb=rgb,
            label=image.label,
            class_name=context.classes[image.label].name,
            meta=provenance(context, image) | ({} if len(pixels) == len(batch) else {"batch_size": len(pixels)}),
        )
        for part, pixels in parts
        for image, rgb in zip(part, pixels.permute(0, 2, 3, 1).numpy(), strict=True)
    ]


def _within_memory(
    sampler: Sampler, context: SamplingContext, batch: Sequence[PlannedImage]
) -> list[tuple[Sequence[PlannedImage], torch.Tensor]]:
    """The batch sampled at once, or in halves if it does not fit in the device's memory; the last bits may then differ."""
    try:
        return [(batch, _pixels(sampler, context, batch))]
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise MissingError(
                f"sample: one image does not fit in the memory of {context.device}; set sample.precision=bf16 or take a larger device"
            ) from None
    torch.cuda.empty_cache()
    middle = len(batch) // 2
    return [found for half in (batch[:middle], batch[middle:]) for found in _within_memory(sampler, context, half)]


def _pixels(sampler: Sampler, context: SamplingContext, batch: Sequence[PlannedImage]) -> torch.Tensor:
    prompts, seeds = [context.prompts[image.label] for image in batch], [image.seed for image in batch]
    start = None
    if context.sources is not None:
        images = _sources(context.sources).load([image.source for image in batch], size=sampler.model.image_size)
        start = Start(images=images, strength=batch[0].strength)
    with compiler_errors(context.speed):
        return sampler.sample(prompts, seeds, context.settings, start)


@lru_cache(maxsize=1)
def _sources(snapshot: Path) -> RecordReader:
    return RecordReader(Snapshot.open(snapshot), "train")


def _commit(job: ShardJob, records: list[EncodedRecord], observed: ShardObserver | None) -> None:
    """Write the tar, then the observer's result, then the manifest rows: a shard counts as sampled only with all three."""
    job.sidecar.parent.mkdir(parents=True, exist_ok=True)
    if job.sidecar.is_file() and job.rows(checked=True) is None:
        job.discard()  # committed before, but damaged since
    rows = write_encoded_shard(job.context.folder, name=job.shard.name, split="train", records=records)
    if observed is not None:
        observed.commit(rows)
    save_rows(job.sidecar, job.path, rows)


def provenance(context: SamplingContext, image: PlannedImage) -> dict[str, Any]:
    """The provenance in an image's own JSON; includes the columns of the synthetic manifest."""
    metadata = context.settings.model_dump(mode="json") | {
        "seed": image.seed,
        "prompt": context.prompts[image.label],
        "negative_prompt": "",
        "source_image": image.source,
        "generator_digest": context.generator_digest,
        "precision": context.speed.precision,
        "compiled": context.speed.compile,
    }
    if image.source_label is None:
        return metadata
    names = [info.name for info in context.classes]
    soft = {names[label]: weight for label, weight in image.soft_label.items()}
    return metadata | {"strength": image.strength, "source_class": names[image.source_label], "soft_label": soft}
