"""Images that stand in for dropped ones are those that a larger plan would have sampled next."""

import pytest

from gda.generator.planning.image_plan import make_image_plan
from gda.generator.planning.plan import ImagePlan, make_plan
from gda.generator.sampling.replacements import later_shards

SIZES = {"shard_size": 6, "batch_size": 3}
SOURCES = {"a": [f"a{i}" for i in range(5)], "b": [f"b{i}" for i in range(4)]}


def text(a: int, b: int) -> ImagePlan:
    return make_plan({"a": a, "b": b}, seed=3, **SIZES)


def image(a: int, b: int) -> ImagePlan:
    return make_image_plan({"a": a, "b": b}, SOURCES, strengths=[0.25, 0.5], other_class_fraction=0.25, seed=3, **SIZES)


def images(shards):
    return {image.key: image for shard in shards for image in shard.images}


@pytest.mark.parametrize("plan", [text, image])
def test_later_images_are_those_of_the_larger_plan(plan):
    """Together with what was sampled they are the larger plan, image by image, in whole shards numbered on."""
    before, larger = plan(8, 5), plan(12, 13)
    later = later_shards(larger, [8, 5], number=7, **SIZES)
    assert images(before.shards) | images(later) == images(larger.shards)
    assert not images(before.shards).keys() & images(later).keys()
    assert [shard.number for shard in later] == [7 + place for place in range(len(later))]
    batches = [batch for shard in later for batch in shard.batches]
    assert all(1 <= len(batch) <= 3 and len({image.strength for image in batch}) == 1 for batch in batches)
    assert all(len(shard.batches) <= 2 for shard in later)


def test_a_class_that_needs_none_gets_none():
    """Quotas are refilled class by class."""
    later = later_shards(text(8, 9), [8, 5], number=2, **SIZES)
    assert [(image.label, image.index) for image in images(later).values()] == [(1, index) for index in (5, 6, 7, 8)]
    assert later_shards(text(8, 5), [8, 5], number=2, **SIZES) == ()
