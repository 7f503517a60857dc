"""The plan is a pure function and balanced shard by shard."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gda.errors import ConfigError
from gda.generator.plan import image_seed, make_plan


def _plan(per_class=10, shard=20, batch=10, classes=("a", "b", "c"), seed=0):
    return make_plan(classes, images_per_class=per_class, seed=seed, shard_size=shard, batch_size=batch)


@given(per_class=st.integers(1, 40), batch=st.integers(1, 9), batches=st.integers(1, 5), num_classes=st.integers(1, 6))
def test_every_image_once(per_class, batch, batches, num_classes):
    """Whatever the sizes, the plan holds each (class, index) exactly once, in whole batches."""
    classes = [f"c{i}" for i in range(num_classes)]
    plan = _plan(per_class, batch * batches, batch, classes)
    images = [image for shard in plan.shards for image in shard.images]
    assert sorted((i.label, i.index) for i in images) == sorted((c, i) for c in range(num_classes) for i in range(per_class))
    assert len({i.key for i in images}) == len(images)
    assert all(len(b) == batch for shard in plan.shards[:-1] for b in shard.batches)


def test_a_larger_quota_keeps_the_first_images():
    """Asking for more images later redraws none of the earlier ones."""
    few = {i.key: i.seed for shard in _plan(5).shards for i in shard.images}
    many = {i.key: i.seed for shard in _plan(9).shards for i in shard.images}
    assert few.items() <= many.items()


def test_the_digest_says_what_was_asked_not_how_it_is_cut():
    """Shard size changes no identity; quota and seed do."""
    assert _plan(shard=20).digest == _plan(shard=30).digest
    assert len({_plan().digest, _plan(per_class=11).digest, _plan(seed=1).digest}) == 3


def test_seeds_are_63_bits_and_depend_on_each_part():
    """Seeds fit a signed 64-bit column, and no two classes or indices share one."""
    seeds = {image_seed(s, c, i) for s in range(3) for c in "abc" for i in range(20)}
    assert len(seeds) == 180
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_bad_sizes_are_refused():
    """A shard that is no whole number of batches, and a plan without images, are configuration errors."""
    with pytest.raises(ConfigError, match="shard_size"):
        _plan(shard=15, batch=10)
    with pytest.raises(ConfigError, match="nothing to draw"):
        _plan(classes=())
