"""The sampling plan of image-to-image: the source image of each synthetic image, and the strength of the noise added to it."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

from gda.artifacts.fingerprint import digest_of
from gda.errors import ConfigError
from gda.generator.planning.plan import (
    ImagePlan,
    PlannedBatch,
    PlannedImage,
    check_quotas,
    check_sizes,
    counts_summary,
    cut_batches,
    cut_shards,
    image_key,
    image_seed,
    interleave,
)
from gda.runtime.rng import shuffled


def make_image_plan(
    quotas: Mapping[str, int],
    sources: Mapping[str, Sequence[str]],
    *,
    strengths: Sequence[float],
    other_class_fraction: float = 0.0,
    seed: int,
    shard_size: int,
    batch_size: int,
) -> ImagePlan:
    """Plan `quotas` images per class, in label order, that start from `sources`: keys of real training images by class.

    Within a class, the counts of any two sources differ by at most one, and so do those of strengths and of (source, strength) pairs.
    The fraction `other_class_fraction` of a class's images, rounded, starts from images of the other classes, which take turns. All
    choices depend only on the seed and the image's class and index: a larger request keeps the earlier images, and the order of
    `sources` and `strengths` does not matter. All images of a batch have one strength, so the last batch of a strength may be short.
    Shards hold whole batches, with strengths in proportion; a shard with short batches has fewer than `shard_size` images. Raises
    `ConfigError` for sizes that do not fit, a class without image or source, and a repeated strength.
    """
    check_sizes(shard_size, batch_size)
    check_quotas(quotas)
    grid = _checked_grid(strengths)
    assert sources.keys() <= quotas.keys(), "sources of classes that are not planned"
    starts = _Starts(
        classes=tuple(quotas),
        orders=tuple(tuple(shuffled(sources.get(name, ()), "source", seed, name, key=str)) for name in quotas),
        num_strengths=len(grid),
        share=Fraction(str(other_class_fraction)),
    )
    images = [[starts.image(label, index, seed=seed, grid=grid) for index in range(count)] for label, count in enumerate(quotas.values())]
    batches = _mixed([_batches_of(strength, images, batch_size) for strength in grid])
    request = {
        "mode": "image_to_image",
        "classes": list(quotas),
        "seed": seed,
        "strengths": list(grid),
        "other_class_fraction": other_class_fraction,
        "sources": {name: sorted(sources.get(name, ())) for name in quotas},
    }
    return ImagePlan(
        classes=tuple(quotas),
        shards=cut_shards(batches, shard_size // batch_size),
        digest=digest_of(request | counts_summary(list(quotas.values()))),
    )


@dataclass(frozen=True, kw_only=True)
class _Starts:
    """Picks the source of each image: `orders` are the shuffled sources by label, `share` is the fraction from another class."""

    classes: tuple[str, ...]
    orders: tuple[tuple[str, ...], ...]
    num_strengths: int
    share: Fraction

    @cached_property
    def present(self) -> tuple[int, ...]:
        """Labels of the classes that have sources."""
        return tuple(label for label, order in enumerate(self.orders) if order)

    def image(self, label: int, index: int, *, seed: int, grid: tuple[float, ...]) -> PlannedImage:
        source_label, source, strength = self._start(label, index)
        own = image_seed(seed, self.classes[label], index)
        return PlannedImage(
            key=image_key("i", label, index, own),
            label=label,
            index=index,
            seed=own,
            source=source,
            source_label=source_label,
            strength=grid[strength],
        )

    def _start(self, label: int, index: int) -> tuple[int, str, int]:
        """Source label, source and strength index. Each class begins at another strength, so that small quotas use all strengths."""
        before, after = (math.floor(count * self.share + Fraction(1, 2)) for count in (index, index + 1))
        if after > before:
            source_label, source = self._other(label, before)
            # Strengths run backwards from the own-class images' first, so that the remainders of both counts overlap as little as possible.
            return source_label, source, (label - 1 - before) % self.num_strengths
        own = self.orders[label]
        if not own:
            raise ConfigError(
                f"sample.mode: image_to_image: class {self.classes[label]!r} has no training image to start from; accepted: at least one, "
                "or sample.mode text_to_image"
            )
        turn = index - before
        return label, own[_position(turn, len(own), self.num_strengths)], (label + turn) % self.num_strengths

    def _other(self, label: int, turn: int) -> tuple[int, str]:
        """The source for the `turn`-th image that starts from another class; the classes after `label` take turns."""
        present = self.present
        # A round begins after `label`, so `label` itself comes last and is excluded by the count.
        count = len(present) - bool(self.orders[label])
        if not count:
            raise ConfigError(
                f"sample.other_class_fraction: {float(self.share):g}, but no class besides {self.classes[label]!r} has a training image; "
                "accepted: 0"
            )
        first = bisect_right(present, label)
        source_label = present[(first + _position(turn, count, self.num_strengths)) % len(present)]
        order = self.orders[source_label]
        # Each target class begins at another offset, so that all images are used.
        place = _position(turn // count, len(order), self.num_strengths) + label * len(order) // len(self.orders)
        return source_label, order[place % len(order)]


def _position(turn: int, count: int, num_strengths: int) -> int:
    """The item, out of `count`, for `turn`: each once per round, and over count x num_strengths turns each with every strength once.

    After `turn` modulo both numbers has run through every reachable pair (their lcm), the items shift by one against the strengths.
    """
    return (turn + turn // math.lcm(count, num_strengths)) % count


def _checked_grid(strengths: Sequence[float]) -> tuple[float, ...]:
    grid = tuple(sorted(strengths))
    twice = [low for low, high in pairwise(grid) if low == high]
    if twice:
        raise ConfigError(f"sample.strengths: {twice[0]:g} is given twice; accepted: different numbers above 0 and at most 1")
    return grid


def _batches_of(strength: float, images: Sequence[Sequence[PlannedImage]], batch_size: int) -> list[PlannedBatch]:
    """Batches of the images of one strength, classes interleaved; `images` by label."""
    chosen = [here for of_class in images if (here := [image for image in of_class if image.strength == strength])]
    ordered = [chosen[kind][place] for kind, place in interleave([len(here) for here in chosen])] if chosen else []
    return cut_batches(ordered, batch_size)


def _mixed(lists: Sequence[list[PlannedBatch]]) -> list[PlannedBatch]:
    """The batches of all strengths, interleaved."""
    used = [batches for batches in lists if batches]
    return [used[kind][place] for kind, place in interleave([len(batches) for batches in used])]
