"""A pool: more real images from elsewhere. Images that the real set holds already are left out, above all those of its test split."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from gda.artifacts.snapshot import ClassInfo
from gda.data.checks.perceptual import SKETCH_PX, Sketches, near_matches, sketch, stack_sketches
from gda.data.sources.source import ImageSource
from gda.data.store.classes import make_classes
from gda.data.store.snapshot import Snapshot
from gda.errors import DataError

PURPOSE = "pool"  # in the provenance
_KEY_PREFIX = "pool-"
_MOST_PX = 64  # largest side at which val and test are decoded for the comparison; a sketch has a side of 16
_SHOWN = 3

Where = Literal["train", "val", "test", "pool"]


@dataclass(frozen=True, kw_only=True)
class LeftOutImage:
    """An image of the pool that is left out, because `where` (a split of the real set, or the pool itself) already holds its picture.

    `other` is the image there: its key, or its name in the pool. `match` is `equal` for equal pixels and `near` for a near match;
    `distance` is 0 to 0.08, and 0 for equal pixels.
    """

    name: str
    where: Where
    other: str
    match: Literal["equal", "near"]
    distance: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PoolImage:
    """An image of the pool: digests of its pixels as read and as they would be stored, and its sketch at the screen's size."""

    key: str
    name: str
    digests: tuple[str, str]
    sketch: tuple[np.ndarray, np.ndarray]


@dataclass(kw_only=True)
class Screen:
    """Rejects images of a pool that equal an image of the real set, nearly match one of its val or test images, or are repeated.

    `known` has split and key of each image of the real set, by the digest of its pixels; `held_out` are the sketches of val and test,
    and `held_out_places` their splits and keys. Sketches are made of images resized to `size` pixels.
    """

    size: int
    known: dict[str, tuple[Where, str]]
    held_out: Sketches
    held_out_places: Sequence[tuple[Where, str]]
    left_out: list[LeftOutImage] = field(default_factory=list)
    _taken: dict[bytes, str] = field(default_factory=dict)

    def leave_out(self, candidates: Sequence[PoolImage]) -> set[str]:
        """Keys of the rejected candidates; the others are remembered, so that later repeats of them are rejected."""
        near = near_matches(stack_sketches(candidate.sketch for candidate in candidates), self.held_out)
        keys = set()
        for row, candidate in enumerate(candidates):
            found = self._equal(candidate)
            if found is None and near.reference[row] >= 0:
                where, other = self.held_out_places[near.reference[row]]
                distance = round(float(near.distance[row]), 4)
                found = LeftOutImage(name=candidate.name, where=where, other=other, match="near", distance=distance)
            found = found or self._repeated(candidate)
            if found is not None:
                self.left_out.append(found)
                keys.add(candidate.key)
        return keys

    @property
    def message(self) -> str:
        """How many images were left out, by reason, or `none`."""
        counts = Counter(
            "repeated in the pool" if item.where == "pool" else f"{'equal to' if item.match == 'equal' else 'near'} {item.where}"
            for item in self.left_out
        )
        return ", ".join(f"{count} {why}" for why, count in sorted(counts.items())) or "none"

    def table(self) -> pd.DataFrame:
        """One row per image: name, where, other, match, distance; in the order of names."""
        return pd.DataFrame([asdict(item) for item in sorted(self.left_out, key=lambda item: item.name)])

    def _equal(self, candidate: PoolImage) -> LeftOutImage | None:
        for digest in candidate.digests:
            if digest in self.known:
                where, other = self.known[digest]
                return LeftOutImage(name=candidate.name, where=where, other=other, match="equal")
        return None

    def _repeated(self, candidate: PoolImage) -> LeftOutImage | None:
        digests = [bytes.fromhex(digest) for digest in candidate.digests]
        for digest in digests:
            if digest in self._taken:
                return LeftOutImage(name=candidate.name, where="pool", other=self._taken[digest], match="equal")
        self._taken |= dict.fromkeys(digests, candidate.name)
        return None


def open_real(path: Path) -> Snapshot:
    """The real snapshot that a pool is added to. Raises `DataError` for a synthetic set and for a pool, which have no test split."""
    real = Snapshot.open(path)
    if real.index.kind == "synthetic" or real.index.provenance.get("purpose") == PURPOSE:
        what = "a synthetic set" if real.index.kind == "synthetic" else "a pool itself"
        raise DataError(f"--snapshot {path}: is {what}; accepted: the real snapshot whose classifiers the pool should improve")
    return real


def as_pool(source: ImageSource, classes: Sequence[ClassInfo]) -> ImageSource:
    """The source as training images only: without its own splits and groups, and with keys that no image of the real set has.

    Raises `DataError` for class names that cannot be used and for a class that is not one of the real set's `classes`.
    """
    ours = {info.name for info in classes}
    if foreign := [info.name for info in make_classes(source.class_names) if info.name not in ours]:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        raise DataError(
            f"the pool has class {', '.join(map(repr, foreign[:_SHOWN]))}{more}, which the real set does not have; rename it as a class of "
            f"the real set, or remove it. The real set has {', '.join(repr(info.name) for info in classes[:_SHOWN])}"
            + (f" and {len(classes) - _SHOWN} more" if len(classes) > _SHOWN else "")
        )
    records = [replace(record, key=f"{_KEY_PREFIX}{record.key}", split=None, group=None) for record in source.records]
    return replace(source, records=records)


def open_screen(real: Snapshot, *, scratch: Path | None = None) -> Screen:
    """The screen for a pool of `real`. Opens the test split, for the leak check; decoded images are mapped from a file in `scratch`.

    Raises `DataError` for damaged shards and where val or test is empty.
    """
    from gda.data.store.in_memory import ImageSet, load_images
    from gda.data.test_split.opening import open_test  # imports torch, which an ordinary snapshot does without

    rows = real.manifest()
    size = int(np.clip(rows[["width", "height"]].min(axis=1).median(), SKETCH_PX, _MOST_PX))
    known: dict[str, tuple[Where, str]] = {}
    splits: tuple[Where, ...] = ("train", "val", "test")  # a picture in two of them counts as one of the last
    for split in splits:
        part = rows[rows["split"] == split]
        known |= {digest: (split, key) for digest, key in zip(part["pixel_sha256"], part["key"], strict=True)}
    held_out: dict[Where, ImageSet] = {
        "val": load_images(real, "val", size=size, scratch=scratch),
        "test": open_test(real, "leak_check", size=size, scratch=scratch),
    }
    return Screen(
        size=size,
        known=known,
        held_out=stack_sketches(sketch(image) for images in held_out.values() for image in images.images.permute(0, 2, 3, 1).numpy()),
        held_out_places=[(split, key) for split, images in held_out.items() for key in images.keys],
    )
