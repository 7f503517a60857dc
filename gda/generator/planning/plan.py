"""The sampling plan: a pure function from quotas, seed and shard size to shards of (class, index, image seed)."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from gda.artifacts.fingerprint import digest_of
from gda.errors import ConfigError
from gda.runtime.rng import stream_seed


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedImage:
    """One image to sample: `label` is the class index, `index` counts within the class, `seed` is the image's own.

    For an image that starts from a real one, `source` is the real image's key, `source_label` its class index, and `strength` in (0, 1]
    the noise added to it; an image sampled from its prompt alone has the defaults.
    """

    key: str
    label: int
    index: int
    seed: int
    source: str = ""
    source_label: int | None = None
    strength: float = 1.0

    @property
    def soft_label(self) -> dict[int, float]:
        """Weight of each class index, summing to 1: `strength` for the target class, and the rest for a source of another class.

        The linear weight is a convention: Diff-Mix (Wang et al. 2024) raises strength to a tuned power.
        """
        if self.source_label is None or self.source_label == self.label or self.strength == 1.0:
            return {self.label: 1.0}
        return {self.label: self.strength, self.source_label: 1.0 - self.strength}


PlannedBatch = tuple[PlannedImage, ...]


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """Shard `number`, sampled in `batches`; batches never cross shards, so that every worker samples the same bits."""

    number: int
    batches: tuple[PlannedBatch, ...]

    @property
    def name(self) -> str:
        return f"train-{self.number:06d}.tar"

    @property
    def images(self) -> tuple[PlannedImage, ...]:
        return tuple(image for batch in self.batches for image in batch)


@dataclass(frozen=True, kw_only=True)
class ImagePlan:
    """Every shard of a synthetic set; `digest` identifies the planned images, independently of their pixels and of the cut into shards."""

    classes: tuple[str, ...]
    shards: tuple[PlannedShard, ...]
    digest: str

    @property
    def num_images(self) -> int:
        return sum(len(batch) for shard in self.shards for batch in shard.batches)


def make_plan(quotas: Mapping[str, int], *, seed: int, shard_size: int, batch_size: int) -> ImagePlan:
    """Plan `quotas` images per class, in label order, cut into shards of whole batches.

    Classes are interleaved as evenly as whole images allow (see `interleave`), so that every shard has the set's class balance.
    Image seeds are in [0, 2**63) and depend only on (seed, class name, index): a larger request keeps the earlier images. Raises
    `ConfigError` when `shard_size` is not a whole number of batches, or a class has no images.
    """
    check_sizes(shard_size, batch_size)
    check_quotas(quotas)
    classes, counts = tuple(quotas), list(quotas.values())
    images = []
    for label, index in interleave(counts):
        own = image_seed(seed, classes[label], index)
        images.append(PlannedImage(key=image_key("s", label, index, own), label=label, index=index, seed=own))
    return ImagePlan(
        classes=classes,
        shards=cut_shards(cut_batches(images, batch_size), shard_size // batch_size),
        digest=digest_of({"classes": list(classes), "seed": seed} | counts_summary(counts)),
    )


def equal_quotas(classes: Sequence[str], images_per_class: int) -> dict[str, int]:
    """The same quota for every class. Raises `ConfigError` for a repeated class, whose quota would be lost."""
    quotas = dict.fromkeys(classes, images_per_class)
    if len(quotas) != len(classes):
        raise ConfigError(f"sample: {len(classes) - len(quotas)} of {len(classes)} class names are given twice")
    return quotas


def image_seed(seed: int, class_name: str, index: int) -> int:
    """The seed of an image, in [0, 2^63), also of one that replaces a rejected image: by the seed of the set, class and index."""
    return stream_seed("image", seed, class_name, index)


def image_key(kind: str, label: int, index: int, seed: int) -> str:
    """The key of an image: class and index, and 32 bits of the image's seed to distinguish runs."""
    return f"{kind}{label:04d}-{index:07d}-{seed >> 31:08x}"


def interleave(counts: Sequence[int]) -> list[tuple[int, int]]:
    """(kind, index within the kind) for `counts` items of each kind, in an order with every prefix balanced; `counts` are positive.

    With N items in total, each prefix of m items holds kind i more than m * counts[i] / N - 1 and less than m * counts[i] / N + 1
    times: item j may stand from place floor(j * N / count) on and before ceil((j + 1) * N / count), and the earliest deadline comes
    first (Steiner & Yeomans 1993), ties by kind. Equal counts give one of each kind in turn.
    """
    # Windows do not cross the ends of N / gcd places, so the order repeats.
    turns = math.gcd(*counts)
    each = [count // turns for count in counts]
    return [(kind, turn * each[kind] + index) for turn in range(turns) for kind, index in _urgent_first(each)]


def _urgent_first(counts: Sequence[int]) -> list[tuple[int, int]]:
    total = sum(counts)
    # Keyed by the first place where the items may stand.
    waiting: defaultdict[int, list[tuple[int, int]]] = defaultdict(list, {0: [(kind, 0) for kind in range(len(counts))]})
    ready: list[tuple[int, int, int]] = []
    order = []
    for place in range(total):
        for kind, index in waiting.pop(place, ()):
            heappush(ready, (-(-(index + 1) * total // counts[kind]), kind, index))
        _, kind, index = heappop(ready)
        order.append((kind, index))
        if index + 1 < counts[kind]:
            # The windows of neighbouring items share a place if N / count is not a whole number.
            waiting[max(place + 1, (index + 1) * total // counts[kind])].append((kind, index + 1))
    return order


def cut_batches(images: Sequence[PlannedImage], batch_size: int) -> list[PlannedBatch]:
    """Batches of `batch_size`; the last one may be shorter."""
    return [tuple(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]


def cut_shards(batches: Sequence[PlannedBatch], size: int) -> tuple[PlannedShard, ...]:
    """Shards of `size` batches; the last one may have fewer."""
    cuts = range(0, len(batches), size)
    return tuple(PlannedShard(number=number, batches=tuple(batches[start : start + size])) for number, start in enumerate(cuts))


def check_sizes(shard_size: int, batch_size: int) -> None:
    """Raises `ConfigError` when a shard would not hold whole batches only."""
    if shard_size % batch_size:
        raise ConfigError(f"sample.shard_size: {shard_size} is not a whole number of batches of {batch_size}")


def check_quotas(quotas: Mapping[str, int]) -> None:
    """Raises `ConfigError` if there are no classes, or a class has no images."""
    if not quotas:
        raise ConfigError("sample.quota: there are no classes, which leaves nothing to generate")
    for name, count in quotas.items():
        if count < 1:
            raise ConfigError(f"sample.quota: class {name!r}: {count} images, which leaves nothing to generate; accepted: 1 or more")


def counts_summary(counts: Sequence[int]) -> dict[str, Any]:
    """The quotas as part of a plan's digest: equal quotas as one number, so that the digests of older sets stay valid."""
    if len(set(counts)) == 1:
        return {"images_per_class": counts[0]}
    return {"images": list(counts)}
