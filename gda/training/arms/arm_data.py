"""The training data of an arm, in memory: real images, and in addition or instead synthetic images or those of a pool."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gda.data.images.codecs import Interpolation
from gda.errors import ConfigError, DataError
from gda.runtime.rng import shuffled

if TYPE_CHECKING:
    from torch import Tensor

    from gda.data.store.in_memory import ImageSet
    from gda.data.store.snapshot import Snapshot
    from gda.training.loop.mixed_batches import TrainingSource

_Origin = Literal["synthetic", "pool"]


@dataclass(frozen=True, kw_only=True)
class LoadedOthers:
    """Images used with or instead of the real ones: `labels` restricts them to some classes, and a seed trains on one of `parts` parts.

    The digest makes two contents of one path two cache keys.
    """

    path: Path
    digest: str
    origin: _Origin
    labels: tuple[int, ...] | None = None
    parts: int = 1


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What to load. Sizes are sides in pixels."""

    snapshot: Path
    snapshot_digest: str
    others: LoadedOthers | None
    use_real: bool
    image_size: int
    test_image_size: int
    interpolation: Interpolation


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The sets of a `TrainingData`; `kept` in (0, 1] is the used share of the other images, and `synthetic` whether these are synthetic.

    `part` int64 [n] is the part of each other image where a seed trains on one of `num_parts`.
    """

    real: "ImageSet | None"
    others: "ImageSet | None"
    kept: float
    val: "ImageSet"
    synthetic: bool
    part: "Tensor | None" = None
    num_parts: int = 1

    def sources(self, ratio: float, *, seed: int = 0) -> "list[TrainingSource]":
        """The sources of batches: a single set fills them; with two sets a batch has `ratio` other images per real one.

        If only some classes of the others are used, their share shrinks accordingly, so that no image is seen more often. Of several parts,
        the one of number `seed` modulo their number is used. Raises `DataError` for a part without images.
        """
        from gda.training.loop.mixed_batches import TrainingSource

        ratio *= self.kept
        mixed = self.real is not None and self.others is not None
        shares = (1 / (1 + ratio), ratio / (1 + ratio)) if mixed else (1.0, 1.0)
        origins = ((self.real, shares[0], False), (self._others_of(seed), shares[1], self.synthetic))
        return [TrainingSource.of(images, share=share, synthetic=generated) for images, share, generated in origins if images is not None]

    def _others_of(self, seed: int) -> "ImageSet | None":
        if self.others is None or self.part is None:
            return self.others
        places = (self.part == seed % self.num_parts).nonzero().flatten()
        if not len(places):
            raise DataError(
                f"classify.synthetic_parts: {len(self.part)} images leave none for part {seed % self.num_parts}; use fewer parts"
            )
        return self.others.take(places)

    @property
    def real_source(self) -> "TrainingSource":
        """The real images alone."""
        from gda.training.loop.mixed_batches import TrainingSource

        assert self.real is not None
        return TrainingSource.of(self.real)


@lru_cache(maxsize=1)
def load_data(data: TrainingData) -> Loaded:
    """Training images by origin, and the validation split; cached, so that forked processes share them in memory.

    Raises `DataError` as `load_images` does, and if there is no image of the wanted classes.
    """
    from gda.data.store.in_memory import load_images
    from gda.data.store.snapshot import Snapshot

    real = Snapshot.open(data.snapshot)
    train = load_images(real, "train", size=data.image_size, interpolation=data.interpolation) if data.use_real else None
    val = load_images(real, "val", size=data.test_image_size, interpolation=data.interpolation)
    if data.others is None:
        return Loaded(real=train, others=None, kept=1.0, val=val, synthetic=False)
    opened = Snapshot.open(data.others.path)
    found = load_images(opened, "train", size=data.image_size, interpolation=data.interpolation)
    used = _chosen(_relabelled(found, val.classes), data.others)
    return Loaded(
        real=train,
        others=used,
        kept=len(used.keys) / len(found.keys),
        val=val,
        synthetic=data.others.origin == "synthetic",
        part=_parts(opened, used.keys, data.others.parts) if data.others.parts > 1 else None,
        num_parts=data.others.parts,
    )


def _parts(opened: "Snapshot", keys: Sequence[str], count: int) -> "Tensor":
    import torch

    rows = opened.manifest("train").set_index("key").loc[list(keys)]
    generators = rows["generator_digest"].fillna("").tolist() if "generator_digest" in rows else [""] * len(rows)
    return torch.tensor(parts_by_label(keys, rows["label"].tolist(), generators, count))


def parts_by_label(keys: Sequence[str], labels: Sequence[int], generators: Sequence[str], count: int) -> list[int]:
    """The part, 0 to `count` - 1, of each image: one part per generator, or with one generator each class divided evenly over the parts.

    The division depends on the keys alone. Raises `ConfigError` if there are several generators and `count` is another number.
    """
    known = sorted(set(generators))
    if len(known) > 1:
        if len(known) != count:
            raise ConfigError(
                f"classify.synthetic_parts: the set was sampled by {len(known)} generators and cannot be cut into {count}; accepted: 1 "
                f"or {len(known)}, a generator each"
            )
        return [known.index(generator) for generator in generators]
    found, dealt = [0] * len(keys), dict.fromkeys(labels, 0)
    for place in shuffled(range(len(keys)), "part", key=lambda i: keys[i]):
        found[place] = dealt[labels[place]] % count
        dealt[labels[place]] += 1
    return found


def _relabelled(images: "ImageSet", classes: tuple[str, ...]) -> "ImageSet":
    """The images with labels by the order of `classes`; a pool may lack some of these."""
    import torch

    if images.classes == classes:
        return images
    labels = torch.tensor([classes.index(name) for name in images.classes])
    return replace(images, labels=labels[images.labels], classes=classes)


def _chosen(images: "ImageSet", others: LoadedOthers) -> "ImageSet":
    import torch

    if others.labels is None:
        return images
    places = torch.isin(images.labels, torch.tensor(others.labels)).nonzero().flatten()
    if not len(places):
        raise DataError(f"{others.path}: holds no image of the classes {', '.join(images.classes[label] for label in others.labels)}")
    return images.take(places)
