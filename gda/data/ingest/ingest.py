"""From a listed source to shards: decode, resize, encode and hash in parallel, then split and write in one fixed order."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from gda.config.sections import SnapshotConfig
from gda.data.checks.leaks import NearLeak, near_leaks, require_disjoint_splits, require_whole_groups
from gda.data.checks.perceptual import sketch, stack_sketches
from gda.data.images.codecs import SYNTHETIC_MARK, Rgb, compression, decode, extent_of, pixel_digest, resize_and_crop, to_array
from gda.data.images.deep import Extent, Range, SetRange, may_be_deep, range_of
from gda.data.ingest.pool import PoolImage, Screen
from gda.data.sources.source import ImageSource, Slice, SourceRecord
from gda.data.sources.splits import Splitter, make_splitter
from gda.data.store.classes import normalise
from gda.data.store.writer import EncodedRecord, ImageRecord, encode_record, shard_name, write_encoded_shard
from gda.errors import DataError
from gda.runtime.parallel import run_parallel
from gda.runtime.progress import Bar, tick

_CHUNK = 128  # images in one task of a worker process
_WAVE = 2048  # images between two writes; bounds memory
_SHOWN = 3
_DEEP_HEAD = 32  # bytes that show whether an image may have more than 8 bits per value


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """Manifest rows of the written images, their numbers by the source's compression, and {"file", "reason"} of each one left out.

    `near_leaks` are images of two splits that differ only in encoding, size, mirroring or light; a synthetic set has none.
    """

    rows: pd.DataFrame
    near_leaks: tuple[NearLeak, ...]
    two_labels: tuple[str, ...]  # pairs of equal pictures in two classes, "a.png (cat) = b.png (dog)"
    pixel_range: SetRange | None  # of images with more than 8 bits, where there are any
    compressions: Mapping[str, int]
    quarantined: tuple[dict[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    records: tuple[SourceRecord, ...]
    labels: dict[str, int]
    image_size: int | None
    pixel_range: Range | None
    as_synthetic: bool
    screen_size: int | None  # side in pixels at which images of a pool are compared


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    """An encoded record with the pixel hash before resizing as `identity`, or the `reason` why the image was not read."""

    record: EncodedRecord | None = None
    identity: str = ""
    sketch: tuple[np.ndarray, np.ndarray] | None = None
    compression: str = "none"  # of arrays
    reason: str | None = None


def ingest(
    source: ImageSource,
    folder: Path,
    *,
    config: SnapshotConfig,
    labels: dict[str, int],
    as_synthetic: bool,
    screen: Screen | None = None,
    progress: bool,
) -> Ingested:
    """Write every usable image of `source` into shards in `folder`; `labels` map the source's class names.

    Records are in the order of a hash of their keys, so that every shard holds a mixture of classes. With a `screen` the source is a pool:
    all of it is train, and images that the screen rejects are left out. Raises `DataError` when keys collide, an image is marked synthetic
    but imported as real, too many cannot be read, a split or class is empty, splits share pictures or groups, or a pool ends up empty.
    """
    all_train = as_synthetic or screen is not None
    splitter = _splitter(source, config, all_train)
    shots = None if all_train else config.shots
    records = _in_fixed_order(source.records, few_shot_seed=None if shots is None else config.few_shot_seed)
    writer, compressions, sketches = _ShardWriter(folder, config.shard_size, shots), Counter[str](), {}
    rejected = list(source.rejected)
    found_range = measure_range(records, config.pixel_range)
    encode = partial(_encode_all, labels=labels, config=config, found_range=found_range, as_synthetic=as_synthetic, screen=screen)
    with Bar(len(records), "snapshot", unit="image", shown=progress):
        for start in range(0, len(records), _WAVE):
            wave = records[start : start + _WAVE]
            images = encode(wave)
            left_out = set() if screen is None else screen.leave_out(_candidates(wave, images))
            for record, encoded in zip(wave, images, strict=True):
                if encoded.record is None:
                    rejected.append((record.name, encoded.reason or ""))
                elif record.key not in left_out and writer.add(_split_of(splitter, record, encoded), encoded.record):
                    compressions[encoded.compression] += 1
                    if encoded.sketch is not None and screen is None:
                        sketches[record.key] = encoded.sketch
    require_few_rejected(rejected, len(records) + len(source.rejected), config.max_bad_fraction)
    if screen is not None and screen.left_out and not compressions:
        raise DataError(f"nothing is left of the pool: {screen.message}")
    rows = writer.close()
    if screen is None:
        _require_complete(rows, labels, as_synthetic, rejected)
    names = {record.key: record.name for record in records}
    rows = _with_groups(rows, records)
    _require_shots(rows, shots)
    leaks: tuple[NearLeak, ...] = ()
    if not all_train:
        require_whole_groups(rows)
        require_disjoint_splits(rows, names)
        leaks = near_leaks(rows, stack_sketches(sketches[key] for key in rows["key"]), names)
    quarantined = tuple({"file": name, "reason": reason} for name, reason in sorted(rejected))
    return Ingested(
        rows=rows,
        near_leaks=leaks,
        two_labels=_two_labels(rows, names),
        pixel_range=found_range,
        compressions=dict(sorted(compressions.items())),
        quarantined=quarantined,
    )


@dataclass
class _ShardWriter:
    """Collects records by split and writes a shard whenever one is full; takes only the first `shots` training images of each class."""

    folder: Path
    shard_size: int
    shots: int | None = None
    _taken: Counter[int] = field(default_factory=Counter)
    _waiting: dict[str, list[EncodedRecord]] = field(default_factory=dict)
    _written: dict[str, int] = field(default_factory=dict)
    _rows: list[pd.DataFrame] = field(default_factory=list)

    def add(self, split: str, record: EncodedRecord) -> bool:
        """Whether the record was taken."""
        if split == "train" and self.shots is not None:
            if self._taken[record.label] == self.shots:
                return False
            self._taken[record.label] += 1
        waiting = self._waiting.setdefault(split, [])
        waiting.append(record)
        if len(waiting) == self.shard_size:
            self._flush(split)
        return True

    def close(self) -> pd.DataFrame:
        """Write what is left and return all rows."""
        for split in [split for split, waiting in self._waiting.items() if waiting]:
            self._flush(split)
        if not self._rows:
            raise DataError("the source holds no usable images")
        return pd.concat(self._rows, ignore_index=True)

    def _flush(self, split: str) -> None:
        number = self._written.get(split, 0)
        name = shard_name(split, number)
        self._rows.append(write_encoded_shard(self.folder, name=name, split=split, records=self._waiting.pop(split)))
        self._written[split] = number + 1


def _in_fixed_order(records: Sequence[SourceRecord], *, few_shot_seed: int | None) -> list[SourceRecord]:
    by_key: dict[str, SourceRecord] = {}
    for record in records:
        if record.key in by_key:
            raise DataError(f"{by_key[record.key].name!r} and {record.name!r} give the same key {record.key!r}; rename one of them")
        by_key[record.key] = record
    prefix = "" if few_shot_seed is None else f"draw {few_shot_seed}\0"
    return sorted(records, key=lambda record: hashlib.sha256(f"{prefix}{record.key}".encode()).digest())


def measure_range(records: Sequence[SourceRecord], configured: Range | None) -> SetRange | None:
    """The range of all images with more than 8 bits per value, see `range_of`; damaged ones are ignored. None without such images."""
    chunks = [records[start : start + _CHUNK] for start in range(0, len(records), _CHUNK)]
    with Bar(len(records), "measure", unit="image", shown=False):
        return range_of((found for part in run_parallel(_extents, chunks) for found in part), configured)


def _extents(records: Sequence[SourceRecord]) -> list[Extent]:
    found = [_extent(record) for record in records]
    tick(len(records))
    return [each for each in found if each is not None]


def _extent(record: SourceRecord) -> Extent | None:
    payload = record.payload
    if not isinstance(payload, Slice):
        return None
    try:
        if not may_be_deep(replace(payload, size=_DEEP_HEAD).read()):
            return None
        return extent_of(payload.read(), record.name)
    except (OSError, DataError):
        return None  # it is counted where it is decoded


def _with_groups(rows: pd.DataFrame, records: Sequence[SourceRecord]) -> pd.DataFrame:
    groups = {record.key: record.group for record in records if record.group is not None}
    return rows.assign(group=rows["key"].map(groups)) if groups else rows


def _two_labels(rows: pd.DataFrame, names: Mapping[str, str]) -> tuple[str, ...]:
    first = rows.drop_duplicates(["pixel_sha256", "class"])
    shared = first[first.duplicated("pixel_sha256", keep=False)].sort_values("key")
    pairs = []
    for _, group in shared.groupby("pixel_sha256", sort=False):
        pairs.append(" = ".join(f"{names.get(row.key, row.key)} ({row['class']})" for _, row in group.iterrows()))
    return tuple(pairs)


def _encode_all(
    records: list[SourceRecord],
    *,
    labels: dict[str, int],
    config: SnapshotConfig,
    found_range: SetRange | None,
    as_synthetic: bool,
    screen: Screen | None,
) -> list[_Encoded]:
    chunks = [
        _Chunk(
            records=tuple(records[start : start + _CHUNK]),
            labels=labels,
            image_size=config.image_size,
            pixel_range=None if found_range is None else found_range.range,
            as_synthetic=as_synthetic,
            screen_size=None if screen is None else screen.size,
        )
        for start in range(0, len(records), _CHUNK)
    ]
    return [encoded for part in run_parallel(_encode_chunk, chunks) for encoded in part]


def _encode_chunk(chunk: _Chunk) -> list[_Encoded]:
    encoded = [_encode(record, chunk) for record in chunk.records]
    tick(len(encoded))
    return encoded


def _encode(record: SourceRecord, chunk: _Chunk) -> _Encoded:
    if not isinstance(record.payload, Slice):
        return _encode_pixels(record, record.payload, chunk, mark=None)
    try:
        data = record.payload.read()
        image = decode(data, name=record.name, pixel_range=chunk.pixel_range)
    except OSError as error:
        return _Encoded(reason=error.strerror or "cannot be read")
    except DataError as error:
        return _Encoded(reason=str(error).removeprefix(f"{record.name}: "))
    if SYNTHETIC_MARK in image.info and not chunk.as_synthetic:
        raise DataError(f"{record.name}: is marked as synthetic ({SYNTHETIC_MARK}); remove it, or import the set with --as synthetic")
    encoded = _encode_pixels(record, to_array(image), chunk, mark=image.info.get(SYNTHETIC_MARK))
    return replace(encoded, compression=compression(data))


def _candidates(records: Sequence[SourceRecord], images: Sequence[_Encoded]) -> list[PoolImage]:
    return [
        PoolImage(key=record.key, name=record.name, digests=(image.identity, image.record.pixel_sha256), sketch=image.sketch)
        for record, image in zip(records, images, strict=True)
        if image.record is not None and image.sketch is not None
    ]


def _encode_pixels(record: SourceRecord, rgb: Rgb, chunk: _Chunk, mark: str | None) -> _Encoded:
    identity = pixel_digest(rgb)
    compared = None if chunk.screen_size is None else to_array(resize_and_crop(Image.fromarray(rgb), chunk.screen_size))
    if chunk.image_size is not None:
        rgb = to_array(resize_and_crop(Image.fromarray(rgb), chunk.image_size))
    text = {SYNTHETIC_MARK: mark or "unknown"} if chunk.as_synthetic else {}
    image = ImageRecord(
        key=record.key,
        rgb=rgb,
        label=chunk.labels[record.class_name],
        class_name=normalise(record.class_name),
        meta={"source": record.name},
        text=text,
    )
    small = None if chunk.as_synthetic else sketch(rgb if compared is None else compared)
    return _Encoded(record=encode_record(image), identity=identity, sketch=small)


def _splitter(source: ImageSource, config: SnapshotConfig, all_train: bool) -> Splitter:
    given = {record.split for record in source.records}
    if not all_train:
        return make_splitter(config, given or {None})
    if not given <= {None, "train"}:
        raise DataError("a synthetic set has one split, train; import the folder of its training images alone")
    return Splitter(key=config.split_key, carved=())


def _split_of(splitter: Splitter, record: SourceRecord, encoded: _Encoded) -> str:
    identity = f"pixels:{encoded.identity}" if record.group is None else f"group:{record.group}"
    return splitter.assign(record.split, identity)


def require_few_rejected(rejected: Sequence[tuple[str, str]], total: int, limit: float) -> None:
    """Raise `DataError` with count, limit and the first files and reasons when more than `limit` of `total` images cannot be used."""
    if not rejected or len(rejected) <= limit * total:
        return
    shown = "; ".join(f"{name} ({reason})" for name, reason in sorted(rejected)[:_SHOWN])
    more = f" and {len(rejected) - _SHOWN} more" if len(rejected) > _SHOWN else ""
    raise DataError(
        f"{len(rejected)} of {total} images cannot be used, more than snapshot.max_bad_fraction {limit:g} allows: {shown}{more}"
    )


def _require_shots(rows: pd.DataFrame, shots: int | None) -> None:
    counts = rows.loc[rows["split"] == "train", "class"].value_counts()
    if shots is not None and counts.min() < shots:
        few = ", ".join(f"{name!r} {count}" for name, count in sorted(counts[counts < shots].items())[:_SHOWN])
        raise DataError(f"snapshot.shots: {shots} training images per class are required, but there are fewer of class {few}")


def _require_complete(rows: pd.DataFrame, labels: dict[str, int], as_synthetic: bool, rejected: list[tuple[str, str]]) -> None:
    splits = ("train",) if as_synthetic else ("train", "val", "test")
    for split in splits:
        if split not in set(rows["split"]):
            raise DataError(f"no image fell to split {split!r}; give more images, other fractions or splits of your own")
    present = set(rows.loc[rows["split"] == "train", "class"])
    absent = [name for name in labels if normalise(name) not in present]
    if not absent:
        return
    others = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
    counts = rows.loc[rows["class"] == normalise(absent[0]), "split"].value_counts().sort_index()
    went = " and ".join(f"{count} fell to {split}" for split, count in counts.items())
    where = f": of its {counts.sum()} image{'s' if counts.sum() > 1 else ''} {went}" if went else ""
    lost = f" ({len(rejected)} images could not be used)" if rejected else ""
    remedy = "; give such a class more images, name the splits yourself, or remove it" if went else ""
    raise DataError(f"class {absent[0]!r}{others} has no training images{where}{lost}{remedy}")
