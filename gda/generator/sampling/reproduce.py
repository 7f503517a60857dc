"""Samples batches of a published set again, from the set's own records, and compares them with the pixels that it holds.

Bits are claimed on an equal device with equal libraries. On others an image may differ by `TOLERANCES` grey levels, root mean square
over its pixels: rounding that goes through all the steps stays below that, another image does not.
"""

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gda.artifacts.contents import FINGERPRINT_FILE
from gda.artifacts.fingerprint import Fingerprint, own_bits
from gda.artifacts.tuning import SamplingSettings
from gda.data.images.codecs import Codec, Rgb, decode, encode, stored_pixels, to_array
from gda.data.store.snapshot import Snapshot
from gda.errors import DataError, MissingError
from gda.generator.planning.plan import PlannedBatch, PlannedImage
from gda.generator.sampling.sample_shards import SamplingContext, provenance, resample_batch
from gda.generator.sampling.speed import Speed
from gda.generator.weights import hub
from gda.generator.weights.directory import DEMO_BASE, is_here, read_card
from gda.io.shards import read_record
from gda.io.up_to_date import read_fingerprint
from gda.runtime.parallel import device_name, sampling_device, single_threaded
from gda.runtime.rng import shuffled

TOLERANCES = {"fp32": 2.0, "bf16": 8.0}  # grey levels, by precision


@dataclass(frozen=True, kw_only=True)
class RecordedBatch:
    """A batch of a published set: its place in the shard, from 1, its images, and where their records start in the tar."""

    shard: str
    place: int
    images: PlannedBatch
    offsets: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.shard} batch {self.place}"


@dataclass(frozen=True, kw_only=True)
class BatchComparison:
    """By image of a batch, how far the new pixels are from the stored ones in grey levels: the largest difference, the root mean square.

    `limit` is the highest root mean square that is accepted; None where bits are claimed.
    """

    batch: RecordedBatch
    largest: tuple[int, ...]
    rms: tuple[float, ...]
    limit: float | None

    @property
    def equal(self) -> bool:
        """Bit for bit."""
        return max(self.largest) == 0

    @property
    def differing(self) -> dict[str, int]:
        """Largest difference by key of the images that differ by more than is accepted."""
        keys = (image.key for image in self.batch.images)
        found = zip(keys, self.largest, self.rms, strict=True)
        return {key: largest for key, largest, rms in found if (largest > 0 if self.limit is None else rms > self.limit)}


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A set that `gda sample` published, with the fingerprint that it carries."""

    snapshot: Snapshot
    fingerprint: Fingerprint

    @classmethod
    def open(cls, path: Path) -> "Recorded":
        """Raises `DataError` for a set that was not sampled by `gda sample`, which says nothing of how to sample it again."""
        snapshot, file = Snapshot.open(path), path / FINGERPRINT_FILE
        stage = read_fingerprint(path).stage if file.is_file() else None
        if stage != "sample":
            made = f"was made by {stage}" if stage else f"has no {FINGERPRINT_FILE}"
            raise DataError(f"{path}: {made}; only a set of gda sample can be reproduced, of a merged one its parts")
        return cls(snapshot=snapshot, fingerprint=read_fingerprint(path))

    @property
    def generator(self) -> str:
        """Digest of the generator."""
        return self._input("generator")

    @property
    def sources(self) -> str | None:
        """Digest of the real snapshot whose images sampling started from; None where it started from noise."""
        return self._input("snapshot") if "snapshot" in self.fingerprint.inputs else None

    @property
    def device(self) -> str:
        """The kind of device to sample on: the recorded one where this machine has it."""
        return "cpu" if self.fingerprint.environment.get("device") == "cpu" else sampling_device()

    def differences(self) -> list[str]:
        """What of the environment that fixes bits is not as it was, a phrase each; empty where bits are claimed."""
        recorded_value = self.fingerprint.environment
        here = own_bits(device_name(self.device))
        here |= {name: _installed(name) for name in recorded_value if name not in here}
        return [
            f"{name} {recorded_value.get(name, 'unknown')} then, {here[name]} now"
            for name in sorted(here)
            if here[name] != recorded_value.get(name)
        ]

    def batches(self) -> list[RecordedBatch]:
        """Every batch of the set, in the order of its shards. Raises `DataError` for rows that no plan could have given."""
        size = self._config("batch_size")
        found = []
        for shard, rows in self.snapshot.manifest("train").groupby("shard"):
            ordered = rows.sort_values("offset")
            images = [self._image(row) for row in ordered.to_dict("records")]
            offsets = [int(offset) for offset in ordered["offset"]]
            for place, cut in enumerate(_cuts(images, size), start=1):
                found.append(RecordedBatch(shard=str(shard), place=place, images=tuple(images[cut]), offsets=tuple(offsets[cut])))
        return found

    def context(self, generator: str, sources: Path | None) -> SamplingContext:
        """What sampling needs, from `generator` and the real snapshot at `sources`, which must be the recorded ones."""
        try:
            return SamplingContext(
                generator=generator,
                generator_digest=self.generator,
                classes=self.snapshot.classes,
                prompts=tuple(self._config("prompts")),
                settings=SamplingSettings.model_validate(self._config("settings")),
                speed=Speed(precision=self._config("precision"), compile=self._config("compile")),
                codec=Codec(**self._config("codec")),
                sources=sources,
                device=self.device,
                folder=self.snapshot.path,
            )
        except (TypeError, ValueError) as error:
            raise DataError(f"{self.snapshot.path / FINGERPRINT_FILE}: says no usable settings ({str(error).splitlines()[0]})") from None

    def _image(self, row: Mapping[str, Any]) -> PlannedImage:
        labels = {info.name: label for label, info in enumerate(self.snapshot.classes)}
        start: dict[str, Any] = {}
        try:
            if row["source_image"]:
                label = labels[row["source_class"]]
                start = {"source": row["source_image"], "source_label": label, "strength": float(row["strength"])}
            return PlannedImage(key=row["key"], label=int(row["label"]), index=0, seed=int(row["seed"]), **start)
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{self.snapshot.path}: record {row['key']!r}: the manifest does not record how it was sampled") from None

    def _config(self, name: str) -> Any:
        return self._recorded(self.fingerprint.config, "config", name)

    def _input(self, role: str) -> str:
        return str(self._recorded(self.fingerprint.inputs, "inputs", role))

    def _recorded(self, part: Mapping[str, Any], part_name: str, name: str) -> Any:
        if name not in part:
            raise DataError(f"{self.snapshot.path / FINGERPRINT_FILE}: {part_name}.{name} is missing, so that nothing can be reproduced")
        return part[name]


def choose_batches(recorded: Recorded, count: int, *, seed: int = 0) -> list[RecordedBatch]:
    """`count` batches of the set, or all where it has fewer, in shard order; which ones, its digest and `seed` decide alone."""
    batches = recorded.batches()
    picks = shuffled(range(len(batches)), "reproduce", recorded.snapshot.digest, seed, key=int)[:count]
    return [batches[pick] for pick in sorted(picks)]


def compare_batches(recorded: Recorded, context: SamplingContext, batches: Sequence[RecordedBatch]) -> Iterator[BatchComparison]:
    """Sample each batch again, in the parts that it was sampled in, and compare it with the stored pixels.

    After jpeg it is what a reader sees that is compared. Raises `DataError` where a record contradicts the manifest, `MissingError`
    where a batch does not fit in memory.
    """
    single_threaded()
    limit = TOLERANCES[context.speed.precision] if recorded.differences() else None
    for batch in batches:
        stored, parts = _stored(context, batch)
        sampled = [rgb for part in parts for rgb in _sampled(context, batch.images[part])]
        distances = [_apart(old, new) for old, new in zip(stored, sampled, strict=True)]
        yield BatchComparison(
            batch=batch,
            largest=tuple(int(difference.max()) for difference in distances),
            rms=tuple(float(np.sqrt((difference**2).mean())) for difference in distances),
            limit=limit,
        )


def describe_batch(compared: BatchComparison) -> str:
    """One line of what a comparison found."""
    batch, count = compared.batch, len(compared.batch.images)
    keys = f"{batch.images[0].key} to {batch.images[-1].key}" if count > 1 else batch.images[0].key
    if compared.equal:
        return f"{batch} sampled again, {count} images bit-equal ({keys})"
    furthest = max(range(count), key=lambda place: compared.rms[place])
    far = f"{batch.images[furthest].key} most, by {compared.rms[furthest]:.2f} grey levels rms, at most {max(compared.largest)}"
    return f"{batch} sampled again, {sum(map(bool, compared.largest))} of {count} images differ: {far}"


def find_generator(recorded: Recorded, given: str | None, nearby: Sequence[Path]) -> str:
    """The recorded generator: the one `given`, else where the set says that it comes from, else of that digest in the folders `nearby`.

    Nothing is downloaded for it. Raises `DataError` when the one given is another, `MissingError` when it is found nowhere.
    """
    wanted = recorded.generator
    if given is not None:
        if (digest := read_card(given).digest) != wanted:
            raise DataError(f"{given}: is generator {digest[:12]}, but {recorded.snapshot.path} was sampled with {wanted[:12]}")
        return given
    recorded_value = recorded.snapshot.index.provenance
    source = recorded_value.get("generator_source", "")
    known = source == DEMO_BASE or hub.parse(source) is not None
    if known and is_here(source) and read_card(source).digest == wanted:
        return source
    if nearby:
        return str(nearby[0])
    origin = recorded_value.get("generator_averaged_from")
    width = recorded_value.get("ema_sigma_rel", "X")
    average = f", an average that `gda ema --sigma-rel {width}` makes of generator {origin[:12]}," if origin else ""
    raise MissingError(f"{recorded.snapshot.path}: generator {wanted[:12]}{average} is not next to it; give --generator")


def find_sources(recorded: Recorded, given: Path | None, nearby: Sequence[Path]) -> Path | None:
    """The real snapshot of the images that sampling started from, as `find_generator` finds its own; None where it started from noise."""
    wanted = recorded.sources
    if wanted is None:
        return None
    if given is not None:
        if (digest := Snapshot.open(given).digest) != wanted:
            raise DataError(f"{given}: is snapshot {digest[:12]}, but {recorded.snapshot.path} was sampled from images of {wanted[:12]}")
        return given
    if nearby:
        return nearby[0]
    raise MissingError(f"{recorded.snapshot.path}: snapshot {wanted[:12]}, whose images it starts from, is not next to it; give --snapshot")


def _cuts(images: Sequence[PlannedImage], size: int) -> Iterator[slice]:
    """Batches as the plan cut them: `size` images, fewer where the strength changes, for a batch has one."""
    start = 0
    while start < len(images):
        stop = start + 1
        while stop < min(start + size, len(images)) and images[stop].strength == images[start].strength:
            stop += 1
        yield slice(start, stop)
        start = stop


def _stored(context: SamplingContext, batch: RecordedBatch) -> tuple[list[Rgb], list[slice]]:
    """Pixels of the batch's records, and the parts that it was sampled in."""
    pixels, sizes = [], []
    for image, offset in zip(batch.images, batch.offsets, strict=True):
        record = read_record(context.folder / batch.shard, offset)
        _require_agreement(context, batch, image, record.meta)
        pixels.append(to_array(decode(record.image, name=f"{batch.shard}: {record.key}")))
        sizes.append(record.meta.get("batch_size", len(batch.images)))
    parts, start = [], 0
    while start < len(sizes):
        size = sizes[start]
        if not isinstance(size, int) or size < 1 or sizes[start : start + size] != [size] * size:
            raise DataError(
                f"{batch.shard}: record {batch.images[start].key!r}: records that it was sampled in a batch of {size}, which is not there"
            )
        parts.append(slice(start, start + size))
        start += size
    return pixels, parts


def _require_agreement(context: SamplingContext, batch: RecordedBatch, image: PlannedImage, meta: Mapping[str, Any]) -> None:
    """A record's own JSON must say what manifest and fingerprint say."""
    for name, expected in provenance(context, image).items():
        if name in meta and meta[name] != expected:
            recorded_value = f"{name} {meta[name]!r}, manifest and fingerprint {expected!r}"
            raise DataError(f"{context.folder / batch.shard}: record {image.key!r}: its JSON says {recorded_value}")


def _sampled(context: SamplingContext, images: PlannedBatch) -> list[Rgb]:
    """Pixels of one part, as a reader of the set sees them."""
    try:
        pixels = resample_batch(context, images).permute(0, 2, 3, 1).contiguous().numpy()
    except torch.OutOfMemoryError:
        raise MissingError(f"a batch of {len(images)} images does not fit in the memory of {context.device} as it did") from None
    codec = context.codec
    return [rgb if codec.lossless else stored_pixels(rgb, encode(rgb, codec), codec) for rgb in pixels]


def _apart(old: Rgb, new: Rgb) -> npt.NDArray[np.int64]:
    """Grey levels between two images by pixel and channel; images of unequal size are as far apart as can be."""
    return np.abs(old.astype(np.int64) - new) if old.shape == new.shape else np.full(1, 255)


def _installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
