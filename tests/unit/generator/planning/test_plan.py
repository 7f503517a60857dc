"""The plan is a pure function, balanced shard by shard, and equal quotas give the plan they have always given."""

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gda.errors import ConfigError
from gda.generator.planning.plan import equal_quotas, image_seed, interleave, make_plan

QUOTAS = st.lists(st.integers(1, 40), min_size=1, max_size=7)


def _plan(per_class=10, shard=20, batch=10, classes=("a", "b", "c"), seed=0):
    return make_plan(equal_quotas(classes, per_class), seed=seed, shard_size=shard, batch_size=batch)


def _images(plan):
    return [image for shard in plan.shards for image in shard.images]


@given(quotas=QUOTAS, batch=st.integers(1, 9), batches=st.integers(1, 5))
def test_every_image_once(quotas, batch, batches):
    """Whatever the quotas and sizes, the plan holds each (class, index) exactly once, in whole batches, indices in order."""
    plan = make_plan({f"c{i}": n for i, n in enumerate(quotas)}, seed=0, shard_size=batch * batches, batch_size=batch)
    images = _images(plan)
    assert sorted((i.label, i.index) for i in images) == [(c, i) for c, n in enumerate(quotas) for i in range(n)]
    assert len({i.key for i in images}) == len(images) == plan.num_images
    assert all(len(b) == batch for shard in plan.shards[:-1] for b in shard.batches)
    for label, quota in enumerate(quotas):
        assert [i.index for i in images if i.label == label] == list(range(quota))


@given(counts=QUOTAS | st.lists(st.sampled_from([1, 2, 97]), min_size=1, max_size=60))
def test_every_prefix_is_balanced(counts):
    """After any number of images each class has its share, less than one image more or less: so shards are balanced too."""
    total, seen = sum(counts), Counter()
    for place, (kind, _) in enumerate(interleave(counts), start=1):
        seen[kind] += 1
        assert all(abs(seen[k] * total - place * count) < total for k, count in enumerate(counts))


def test_many_small_classes_are_spread_over_the_shards():
    """Next to one large class, a hundred classes of one image do not gather in one shard."""
    plan = make_plan({"large": 100} | {f"s{i}": 1 for i in range(100)}, seed=0, shard_size=20, batch_size=10)
    assert all(abs(sum(i.label == 0 for i in shard.images) - 10) <= 1 for shard in plan.shards)


def test_equal_quotas_give_the_same_plan_for_ever():
    """Order, seeds, cuts and digest of sets are frozen: the seeds since they are derived by name, the rest since the first sets."""
    plan = make_plan(equal_quotas(["cat", "dog", "eel"], 5), seed=7, shard_size=4, batch_size=2)
    assert plan.digest == "09e8e24452af66997bcd00514f4ddf199eb1f2e9174289757c7dbd7ca4a62f99"
    assert [shard.name for shard in plan.shards] == [f"train-00000{k}.tar" for k in range(4)]
    assert [[(i.key, i.seed) for i in batch] for batch in plan.shards[0].batches] == [
        [("s0000-0000000-c645d284", 7143528429409622686), ("s0001-0000000-96475841", 5414360433049098473)],
        [("s0002-0000000-d5749a44", 7690544123094854100), ("s0000-0000001-6341f24e", 3576132050685666101)],
    ]
    plan = make_plan(equal_quotas([f"c{i}" for i in range(10)], 100), seed=0, shard_size=250, batch_size=50)
    assert plan.digest == "01ae6796578d302d8b4480eb40d3f1c8febc7afb3d385c4915de357ee26900e3"
    message = repr([[(i.key[:13], i.label, i.index, i.seed) for i in b] for shard in plan.shards for b in shard.batches])
    assert hashlib.sha256(message.encode()).hexdigest() == "5aefd630b0b5312e8a86b0604a5daf334a21d3d3e475759944501d1b466739bd"


def test_unequal_quotas_keep_their_order():
    """The order decides which images share a batch, and so their last bits: frozen, for sets that are sampled over weeks."""
    order = interleave([1, 2, 4, 5])
    assert "".join("abcd"[kind] for kind, _ in order) == "cddbcdcdabcd"
    plan = make_plan({"a": 7, "b": 3, "c": 1}, seed=0, shard_size=4, batch_size=2)
    assert plan.digest == "26766cb8f0058731ce6f19dca9087130efb7d253259780d9747e5d904e4bd0dd"


@given(quotas=QUOTAS, more=QUOTAS)
def test_a_larger_quota_keeps_the_first_images(quotas, more):
    """A later request for more images of any classes replaces none of the earlier ones."""
    plans = [quotas, [n + extra for n, extra in zip(quotas, more + [0] * len(quotas), strict=False)]]
    few, many = (
        {i.key: i for i in _images(make_plan({f"c{k}": n for k, n in enumerate(counts)}, seed=0, shard_size=20, batch_size=10))}
        for counts in plans
    )
    assert few.items() <= many.items()


def test_the_digest_says_what_was_requested_not_how_it_is_cut():
    """Shard and batch size change no identity; quotas, their order, names and seed do."""
    assert _plan(shard=20).digest == _plan(shard=30).digest == _plan(batch=5).digest
    uneven = [make_plan(q, seed=0, shard_size=10, batch_size=5) for q in ({"a": 3, "b": 4}, {"a": 4, "b": 3}, {"b": 4, "a": 3})]
    others = [_plan(), _plan(per_class=11), _plan(seed=1), _plan(classes=("a", "b", "d"))]
    assert len({plan.digest for plan in uneven + others}) == 7
    assert make_plan({"a": 3, "b": 4}, seed=0, shard_size=30, batch_size=15).digest == uneven[0].digest


def test_seeds_are_63_bits_and_depend_on_each_part():
    """Seeds fit a signed 64-bit column, and no two classes or indices share one."""
    seeds = {image_seed(s, c, i) for s in range(3) for c in "abc" for i in range(20)}
    assert len(seeds) == 180
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_an_image_from_its_prompt_has_no_source_and_one_label():
    """Text mode starts from nothing, at full strength, and its label is its class alone."""
    image = _plan().shards[0].images[1]
    assert (image.source, image.source_label, image.strength, image.soft_label) == ("", None, 1.0, {1: 1.0})


def test_bad_sizes_are_refused():
    """A shard that is no whole number of batches, a plan without images and a class named twice are configuration errors."""
    with pytest.raises(ConfigError, match="shard_size: 15 is not a whole number of batches of 10"):
        _plan(shard=15, batch=10)
    for quotas in ({}, {"a": 3, "b": 0}, {"a": -1}):
        with pytest.raises(ConfigError, match=r"sample\.quota: .*nothing to generate"):
            make_plan(quotas, seed=0, shard_size=20, batch_size=10)
    with pytest.raises(ConfigError, match="1 of 3 class names"):
        _plan(classes=("a", "b", "a"))
