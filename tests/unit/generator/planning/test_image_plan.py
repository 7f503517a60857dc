"""The plan of image-to-image uses its sources and strengths evenly, and is the same for any shard size, order of sources or more images."""

import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gda.errors import ConfigError
from gda.generator.planning.image_plan import make_image_plan
from gda.generator.planning.plan import image_seed

QUOTAS = {"cat": 24, "dog": 10, "eel": 5}
SOURCES = {"cat": ["c0", "c1", "c2", "c3"], "dog": ["d0", "d1", "d2"], "eel": ["e0"]}
STRENGTHS = (0.3, 0.5, 0.7)


def _plan(quotas=QUOTAS, sources=SOURCES, *, strengths=STRENGTHS, other=0.0, seed=0, shard=20, batch=5):
    return make_image_plan(quotas, sources, strengths=strengths, other_class_fraction=other, seed=seed, shard_size=shard, batch_size=batch)


def _images(plan):
    return sorted((image for shard in plan.shards for image in shard.images), key=lambda image: image.key)


def _spread(counts, kinds):
    """Largest less smallest count of `kinds`, those never used included."""
    found = [counts[kind] for kind in kinds]
    return max(found) - min(found)


def _world(num_sources):
    return {f"k{i}": [f"k{i}-{j}" for j in range(n)] for i, n in enumerate(num_sources)}


@given(quota=st.integers(1, 80), sources=st.integers(1, 7), strengths=st.integers(1, 7))
def test_sources_strengths_and_their_pairs_take_turns(quota, sources, strengths):
    """In any class, whatever the sizes have in common, each source, each strength and each pair comes equally often or once more."""
    grid = [0.1 + 0.1 * k for k in range(strengths)]
    world = _world([sources])
    images = _images(_plan({"k0": quota}, world, strengths=grid))
    assert len(images) == quota
    assert _spread(Counter(i.source for i in images), world["k0"]) <= 1
    assert _spread(Counter(i.strength for i in images), grid) <= 1
    assert _spread(Counter((i.source, i.strength) for i in images), [(s, g) for s in world["k0"] for g in grid]) <= 1


@given(
    quota=st.integers(1, 60),
    num_sources=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    strengths=st.integers(1, 5),
    other=st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.9, 1.0]),
)
def test_other_classes_take_turns_as_sources(quota, num_sources, strengths, other):
    """The share that was requested, to the image, starts from other classes, each equally often; all strengths are as frequent."""
    world, grid = _world(num_sources), [0.1 + 0.1 * k for k in range(strengths)]
    images = _images(_plan(dict.fromkeys(world, quota), world, strengths=grid, other=other))
    for label in range(len(world)):
        own = [i for i in images if i.label == label]
        foreign = [i for i in own if i.source_label != label]
        assert len(foreign) == math.floor(quota * Fraction(str(other)) + Fraction(1, 2))
        assert _spread(Counter(i.source_label for i in foreign), [k for k in range(len(world)) if k != label]) <= 1
        assert _spread(Counter(i.strength for i in own), grid) <= 1
        assert _spread(Counter(i.source for i in own if i.source_label == label), world[f"k{label}"]) <= 1
    assert all(i.source in world[f"k{i.source_label}"] for i in images)


def test_every_image_of_another_class_is_used():
    """Foreign sources too are used evenly: all of a class over all targets, and each at every strength."""
    world = _world([6, 6, 6, 6])
    images = _images(_plan(dict.fromkeys(world, 72), world, other=1.0))
    assert _spread(Counter(i.source for i in images), [key for keys in world.values() for key in keys]) <= 2
    pairs = Counter((i.source, i.strength) for i in images)
    assert _spread(pairs, [(key, s) for keys in world.values() for key in keys for s in STRENGTHS]) <= 4
    few = _images(_plan(dict.fromkeys(world, 6), world, other=1.0))
    assert all(len({i.source for i in few if i.source_label == label}) >= 5 for label in range(4))


def test_the_share_is_the_decimal_that_was_written():
    """0.29 of 50 is 14.5 and rounds up, though the binary number is a little less."""
    images = _images(_plan({"k0": 50, "k1": 1}, _world([2, 2]), other=0.29))
    assert sum(i.label == 0 and i.source_label == 1 for i in images) == 15


def test_small_quotas_use_all_strengths():
    """With an image per class, the classes differ in strength, rather than all having the first of the grid."""
    world = _world([2] * 9)
    images = _images(_plan(dict.fromkeys(world, 1), world))
    assert Counter(i.strength for i in images) == {0.3: 3, 0.5: 3, 0.7: 3}


@given(other=st.sampled_from([0.0, 0.3]), batch=st.integers(1, 7))
def test_batches_have_one_strength_and_shards_whole_batches(other, batch):
    """A batch has one strength, only the last one of a strength is short, and shards hold a fixed number of batches."""
    plan = _plan(other=other, batch=batch, shard=3 * batch)
    batches = [b for shard in plan.shards for b in shard.batches]
    assert all(len({image.strength for image in b}) == 1 for b in batches)
    for strength in STRENGTHS:
        sizes = [len(b) for b in batches if b[0].strength == strength]
        assert sizes[:-1] == [batch] * (len(sizes) - 1)
    assert [len(shard.batches) for shard in plan.shards[:-1]] == [3] * (len(plan.shards) - 1)
    assert [shard.number for shard in plan.shards] == list(range(len(plan.shards)))


def test_shards_mix_classes_and_strengths():
    """Every shard of a long plan holds every strength and every class about as often as the set does."""
    world = _world([3, 4])
    plan = _plan({"k0": 300, "k1": 600}, world, shard=90, batch=10)
    for shard in plan.shards:
        assert _spread(Counter(b[0].strength for b in shard.batches), STRENGTHS) <= 1
        assert abs(sum(i.label == 0 for i in shard.images) - 30) <= 6


def test_the_same_images_for_any_shard_and_batch_size_and_order_of_sources():
    """How the plan is cut, and in which order sources and strengths are listed, changes neither an image nor the digest."""
    plan = _plan(other=0.3)
    turned = {name: SOURCES[name][::-1] for name in reversed(SOURCES)}
    for same in (
        _plan(other=0.3, shard=100),
        _plan(other=0.3, shard=3, batch=3),
        _plan(QUOTAS, turned, strengths=STRENGTHS[::-1], other=0.3),
    ):
        assert _images(same) == _images(plan)
        assert same.digest == plan.digest


def test_the_digest_names_all_that_decides_the_images():
    """Quotas, seed, strengths, share, sources and mode each have their part in it."""
    changed = [
        _plan(),
        _plan(seed=1),
        _plan(strengths=(0.3, 0.5)),
        _plan(other=0.1),
        _plan(QUOTAS | {"eel": 6}),
        _plan(sources=SOURCES | {"eel": ["e1"]}),
        _plan(sources=SOURCES | {"eel": ["e0", "e1"]}),
        _plan(dict.fromkeys(QUOTAS, 5)),
    ]
    assert len({plan.digest for plan in changed}) == len(changed)


@given(quotas=st.tuples(*[st.integers(1, 30)] * 3), more=st.tuples(*[st.integers(0, 30)] * 3), other=st.sampled_from([0.0, 0.4, 1.0]))
def test_more_images_keep_the_first_ones(quotas, more, other):
    """A larger quota keeps every earlier image with its seed, source and strength."""
    few, many = (
        {image.key: image for image in _images(_plan(dict(zip(QUOTAS, counts, strict=True)), other=other))}
        for counts in (quotas, [n + extra for n, extra in zip(quotas, more, strict=True)])
    )
    assert few.items() <= many.items()


def test_seeds_are_those_of_the_image_and_keys_differ_from_text_mode():
    """Seeds depend on (seed, class, index) alone; keys of the two modes never meet, so that their sets can be merged."""
    for image in _images(_plan(seed=3)):
        assert image.seed == image_seed(3, list(QUOTAS)[image.label], image.index)
        assert image.key == f"i{image.label:04d}-{image.index:07d}-{image.seed >> 31:08x}"


def test_the_seed_shuffles_the_sources():
    """Another seed begins with other sources: few images do not always come from the first ones of the set."""
    first = {_images(_plan({"k0": 1}, _world([50]), seed=seed))[0].source for seed in range(20)}
    assert len(first) > 10


def test_soft_labels_are_mixtures_by_strength():
    """The target's weight is the strength, the source class has the rest; one class, or full strength, has one label."""
    for image in _images(_plan(other=0.5, strengths=(0.3, 1.0))):
        if image.source_label == image.label or image.strength == 1.0:
            assert image.soft_label == {image.label: 1.0}
        else:
            assert image.soft_label == {image.label: 0.3, image.source_label: 0.7}
    assert {len(image.soft_label) for image in _images(_plan(other=0.5))} == {1, 2}


def test_what_cannot_be_planned_is_refused():
    """A class without source, no other class, a strength twice and sizes that do not fit are errors that say what is accepted."""
    with pytest.raises(ConfigError, match=r"sample\.mode: .*class 'eel' has no training image.*; accepted: at least one"):
        _plan(sources={"cat": ["c"], "dog": ["d"]})
    with pytest.raises(ConfigError, match=r"sample\.other_class_fraction: 0\.5, but no class besides 'cat' has a training image"):
        _plan({"cat": 4}, {"cat": ["c"]}, other=0.5)
    with pytest.raises(ConfigError, match=r"sample\.strengths: 0\.5 is given twice"):
        _plan(strengths=(0.5, 0.3, 0.5))
    with pytest.raises(ConfigError, match=r"sample\.shard_size"):
        _plan(shard=7)
    with pytest.raises(ConfigError, match=r"sample\.quota: class 'cat': 0 images"):
        _plan({"cat": 0}, {"cat": ["c"]})


def test_a_class_without_images_may_start_from_others_alone():
    """With every image from another class, a class that has no training image of its own can be sampled next to one that has."""
    world = {"cat": ["c0", "c1"], "dog": ["d0"], "new": []}
    images = _images(_plan(dict.fromkeys(world, 6), world, other=1.0))
    assert {i.source_label for i in images if i.label == 2} == {0, 1}
    assert {i.source_label for i in images} == {0, 1}
