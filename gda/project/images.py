"""The images: what they are, and which of them are suspicious."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gda.config.sections import SnapshotConfig
from gda.data.checks.perceptual import near_matches, sketch, stack_sketches
from gda.data.images.codecs import decode, to_array
from gda.data.images.looks import looks_of
from gda.data.sources.readers import open_source
from gda.data.sources.source import ImageSource, Slice, SourceRecord
from gda.errors import DataError
from gda.project.columns import recognised_columns
from gda.project.summaries import ImageSummary
from gda.project.suspects import SuspectImage, find_suspects
from gda.runtime.parallel import run_parallel
from gda.runtime.progress import Bar, tick
from gda.runtime.rng import shuffled

MOST_LOOKED_AT = 5000  # images: enough for every figure here, minutes on one core
THUMBNAIL = 32
_CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class Looked:
    """A readable image: its `record`, shorter side in pixels, thumbnail and sketch."""

    record: SourceRecord
    side: int
    thumbnail: np.ndarray  # uint8 [32, 32, 3]
    sketch: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Look:
    """The result: a summary of the whole set, and suspicious images among those looked at."""

    summary: ImageSummary
    suspects: tuple[SuspectImage, ...]


def look_at_images(source: str, *, progress: bool = False, audit: bool = True) -> Look:
    """Read the listing of `source` and up to `MOST_LOOKED_AT` images of it, chosen by a hash.

    Raises as `open_source` does, and `DataError` where no image can be read.
    """
    columns = recognised_columns(source)
    found = open_source(source, SnapshotConfig(source=source), columns.used, progress=progress)
    chosen = shuffled(found.records, "look", key=lambda record: record.key)[:MOST_LOOKED_AT]
    images = _read(chosen, progress=progress)
    if not images:
        raise DataError(f"{source}: none of {len(found.records):,} images can be read")
    sketches = stack_sketches(image.sketch for image in images)
    repeated = near_matches(sketches, sketches, same_set=True)
    suspects = find_suspects(images, repeated) if audit else ()
    num_unreadable = round((len(chosen) - len(images)) * len(found.records) / len(chosen)) + len(found.rejected)
    return Look(
        summary=_summary(source, found, images, columns.by_use, num_unreadable, len(repeated.queries)),
        suspects=suspects,
    )


def _summary(
    source: str, found: ImageSource, images: Sequence[Looked], columns: dict[str, str], num_unreadable: int, num_repeated: int
) -> ImageSummary:
    sides = np.array([image.side for image in images])
    low, median, high = (int(value) for value in np.percentile(sides, [10, 50, 90], method="nearest"))
    splits = Counter(record.split for record in found.records if record.split is not None)
    classes = Counter(record.class_name for record in found.records)
    return ImageSummary(
        source=source if "://" in source else str(Path(source)),
        classes={name: classes[name] for name in found.class_names},
        side=(low, median, high),
        coloured=looks_of(image.thumbnail for image in images).coloured,
        splits=dict(sorted((str(split), count) for split, count in splits.items())),
        columns=columns,
        num_unreadable=num_unreadable,
        num_near_duplicates=num_repeated,
        looked_at=len(images),
    )


def _read(records: Sequence[SourceRecord], *, progress: bool) -> list[Looked]:
    chunks = [records[start : start + _CHUNK] for start in range(0, len(records), _CHUNK)]
    with Bar(len(records), "init", unit="image", shown=progress):
        return [image for part in run_parallel(_read_chunk, chunks) for image in part]


def _read_chunk(records: Sequence[SourceRecord]) -> list[Looked]:
    images = [image for record in records if (image := _read_one(record)) is not None]
    tick(len(records))
    return images


def _read_one(record: SourceRecord) -> Looked | None:
    """None for an image that cannot be read, and for one of more than 8 bits, whose range is not known yet."""
    try:
        rgb = to_array(decode(record.payload.read(), name=record.name)) if isinstance(record.payload, Slice) else record.payload
    except (OSError, DataError):
        return None
    small = np.asarray(Image.fromarray(rgb).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
    return Looked(record=record, side=min(rgb.shape[:2]), thumbnail=small, sketch=sketch(rgb))
