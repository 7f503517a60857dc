"""Accuracy and paired gain of groups of classes or images: many to few training images, worst classes, balanced, user-defined groups.

Tables are [seeds, images] of right and wrong, or of differences of two arms. A group is a weight for each stratum of the images - mostly a
class - which may differ by seed; its mean and interval come from the two-way standard error, like those of the whole test split.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gda.artifacts.evaluation import SetArm, SetGain
from gda.stats.intervals import crossed_interval
from gda.stats.paired import Floats, sign_flip_test
from gda.stats.two_way import Ids, flipped, sets_of

_Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Group:
    """`strata` int64 [images] numbers the strata from 0; `shares` [seeds, strata] are their weights for each of `seeds`, with sum 1."""

    strata: _Ints
    seeds: tuple[int, ...]
    shares: Floats

    @property
    def members(self) -> Bools:
        """Which images count for some seed, [images]."""
        largest: Floats = self.shares.max(axis=0)
        return largest[self.strata] > 0

    def ids_of(self, ids: Ids | None) -> Ids | None:
        """Those of the members, from `ids` [images]."""
        return None if ids is None else ids[self.members]

    def of(self, values: Floats, seeds: Sequence[int]) -> Floats:
        """A table [seeds, members] whose row means are those of each seed's strata, with the spread of that estimate.

        `values` [seeds, images]. Entry (s, i) of stratum c is mean_s + n w_c / n_c (value - mean_c): the estimate linearised, so that
        the number of images of each class does not count as random (Davison and Hinkley 1997, section 2.7.2).
        """
        rows = self.shares[[self.seeds.index(seed) for seed in seeds]]
        kept = self.members
        if np.unique(self.strata[kept]).size == 1:
            plain: Floats = np.asarray(values, dtype=np.float64)[:, kept]
            return plain
        strata, table = self.strata[kept], np.asarray(values, dtype=np.float64)[:, kept]
        sizes = np.maximum(np.bincount(strata, minlength=rows.shape[1]), 1)
        means = np.bincount(strata, weights=table.mean(axis=0), minlength=rows.shape[1]) / sizes
        centre = (rows @ means)[:, None]
        found: Floats = centre + table.shape[1] * (rows / sizes)[:, strata] * (table - means[strata])
        return found


def of_classes(chosen: Sequence[int], labels: _Ints, seeds: Sequence[int]) -> Group | None:
    """The mean accuracy of the classes `chosen`, each with equal weight; those without an image in `labels` are left out, None if all are.

    Where they have equally many images this is the mean over their images, as top-1 is over all, and has the interval of one.
    """
    present = sorted(set(chosen) & set(np.unique(labels).tolist()))
    if not present:
        return None
    if np.unique(np.bincount(labels)[present]).size == 1:
        return of_images(np.isin(labels, present), seeds)
    shares = np.zeros((len(seeds), int(labels.max()) + 1))
    shares[:, present] = 1 / len(present)
    return Group(strata=labels, seeds=tuple(seeds), shares=shares)


def of_images(members: Bools, seeds: Sequence[int]) -> Group:
    """The mean over the images that are `members` [images], each with equal weight."""
    return Group(strata=members.astype(np.int64), seeds=tuple(seeds), shares=np.tile([0.0, 1.0], (len(seeds), 1)))


def by_frequency(counts: Sequence[int], cuts: tuple[int, int]) -> dict[str, _Ints]:
    """Classes of many, medium and few training images, from `counts` of each class; empty where all fall into one.

    Many is above the upper cut, few below the lower: above 100 and below 20 in Liu et al. (2019, OLTR).
    """
    few, many = cuts
    numbers = np.asarray(counts)
    parts = {
        f"many-shot (over {many:,})": numbers > many,
        f"medium-shot ({few:,} to {many:,})": (numbers >= few) & (numbers <= many),
        f"few-shot (under {few:,})": numbers < few,
    }
    found = {name: np.flatnonzero(inside) for name, inside in parts.items() if inside.any()}
    return found if len(found) > 1 else {}


def least_accurate_classes(
    rival: Bools, rival_seeds: Sequence[int], labels: _Ints, num_worst: int, seeds: Sequence[int], *, num_classes: int
) -> Group | None:
    """The classes that the rival gets wrong most, chosen on other images and other seeds than they are measured on.

    The lowest accuracies of a table are low by bad luck too, so that measured again, by any arm, they rise. Here the images of each class
    are halved: the `num_worst` classes that are lowest in one half count in the other, and a seed has no part in its own choice. `rival` is
    [seeds, images]. None with a single seed, or where no more than `num_worst` classes have two images to halve.
    """
    halves = _halves(labels, num_classes)
    strata = 2 * labels + halves
    sizes = np.bincount(strata, minlength=2 * num_classes).reshape(num_classes, 2)
    able = np.flatnonzero(sizes.min(axis=1) > 0)
    if len(able) <= num_worst or len(rival) < 2:
        return None
    right = np.stack([np.bincount(strata, weights=row, minlength=2 * num_classes) for row in rival])  # [seeds, strata]
    accuracies = right.reshape(len(rival), num_classes, 2)[:, able] / sizes[able]
    shares = np.zeros((len(seeds), 2 * num_classes))
    for row, seed in enumerate(seeds):
        others = [place for place, other in enumerate(rival_seeds) if other != seed]
        for half in (0, 1):
            lowest = able[np.argsort(accuracies[others, :, half].mean(axis=0), kind="stable")[:num_worst]]
            shares[row, 2 * lowest + 1 - half] = 1 / (2 * num_worst)
    return Group(strata=strata, seeds=tuple(seeds), shares=shares)


def _halves(labels: _Ints, num_classes: int) -> _Ints:
    """0 and 1 in turn within each class, [images]."""
    order = np.argsort(labels, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=num_classes))[:-1]])
    halves = np.empty(len(labels), dtype=np.int64)
    halves[order] = (np.arange(len(labels)) - starts[labels[order]]) % 2
    return halves


def num_worst(share: float, num_classes: int) -> int:
    """How many classes a share of them is, rounded up; at least one."""
    return max(1, math.ceil(round(share * num_classes, 9)))


def group_arm(group: Group, correct: Mapping[int, Bools], *, confidence: float = 0.95, parts: int = 1, groups: Ids | None = None) -> SetArm:
    """Accuracy on a group from whether images are right, [images] by seed, with its interval over seeds and images.

    Seeds of one of so many `parts` of the synthetic images count as one, and images of one of `groups` [images].
    """
    table, ids = group.of(np.stack(list(correct.values())), list(correct)), group.ids_of(groups)
    low, high = crossed_interval(table, confidence=confidence, sets=sets_of(parts, list(correct)), groups=ids)
    by_seed = np.clip(table.mean(axis=1), 0.0, 1.0)
    return SetArm(
        seeds=tuple(correct),
        top1=tuple(float(share) for share in by_seed),
        mean=float(by_seed.mean()),
        ci95=(max(0.0, low), min(1.0, high)),
    )


def group_gain(
    group: Group,
    correct: Mapping[int, Bools],
    rival: Mapping[int, Bools],
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
    parts: int = 1,
    groups: Ids | None = None,
) -> SetGain:
    """Gain on a group, paired by image and by the seeds that both have; `rng` flips the signs of many, else as `group_arm`.

    Raises `ValueError` where they share none.
    """
    seeds = [seed for seed in correct if seed in rival]
    if not seeds:
        raise ValueError("a paired gain needs a seed that both arms have")
    differences = np.stack([correct[seed].astype(np.float64) - rival[seed] for seed in seeds])
    table = group.of(differences, seeds)
    by_seed, sets = table.mean(axis=1), sets_of(parts, seeds)
    return SetGain(
        mean=float(by_seed.mean()),
        ci95=crossed_interval(table, confidence=confidence, sets=sets, groups=group.ids_of(groups)),
        p_value=sign_flip_test(flipped(by_seed, sets), rng),
        seeds=len(seeds),
    )
