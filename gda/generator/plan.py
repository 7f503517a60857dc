"""The sampling plan: a pure function of classes, quota, seed and shard size to shards of (class, index, image seed)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from gda.errors import ConfigError
from gda.recipe import digest_of


@dataclass(frozen=True, kw_only=True)
class PlannedImage:
    """One image to draw: `label` is the class index, `index` counts within the class, `seed` is the image's own."""

    key: str
    label: int
    index: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """Shard `number`; drawn in `batches`, which never cross shards, so that any worker draws the same bits."""

    number: int
    batches: tuple[tuple[PlannedImage, ...], ...]

    @property
    def name(self) -> str:
        return f"train-{self.number:06d}.tar"

    @property
    def images(self) -> tuple[PlannedImage, ...]:
        return tuple(image for batch in self.batches for image in batch)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Every shard of a synthetic set; `digest` names what was asked for, not its pixels nor how it is cut into shards."""

    shards: tuple[PlannedShard, ...]
    digest: str

    @property
    def num_images(self) -> int:
        return sum(len(shard.images) for shard in self.shards)


def make_plan(classes: Sequence[str], *, images_per_class: int, seed: int, shard_size: int, batch_size: int) -> Plan:
    """Interleave the classes, so that every shard is balanced, and cut into shards of whole batches.

    Image seeds are in [0, 2**63) and depend on (seed, class name, index) alone: asking for more images keeps the first ones.
    Raises `ConfigError` when `shard_size` is not a whole number of batches or there is nothing to draw.
    """
    if shard_size % batch_size:
        raise ConfigError(f"sample.shard_size: {shard_size} is not a whole number of batches of {batch_size}")
    if not classes or images_per_class < 1:
        raise ConfigError(f"sample.images_per_class: {images_per_class} of {len(classes)} classes leaves nothing to draw")
    images = [
        PlannedImage(key=f"s{label:04d}-{index:07d}", label=label, index=index, seed=image_seed(seed, name, index))
        for index in range(images_per_class)
        for label, name in enumerate(classes)
    ]
    shards = []
    for number, start in enumerate(range(0, len(images), shard_size)):
        inside = images[start : start + shard_size]
        batches = tuple(tuple(inside[b : b + batch_size]) for b in range(0, len(inside), batch_size))
        shards.append(PlannedShard(number=number, batches=batches))
    asked = {"classes": list(classes), "images_per_class": images_per_class, "seed": seed}
    return Plan(shards=tuple(shards), digest=digest_of(asked))


def image_seed(seed: int, class_name: str, index: int) -> int:
    """63-bit seed of an image, from sha256 of (seed, class, index)."""
    name = hashlib.sha256(f"image/{seed}/{class_name}/{index}".encode()).digest()
    return int.from_bytes(name[:8], "big") >> 1
