"""The order of training images: every epoch whole, balanced where requested, independent of batch size and process count."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from gda.generator.finetuning.order import Order
from gda.generator.finetuning.train import step_streams

LABELS = torch.tensor([0] * 7 + [1] * 2 + [2])


def test_every_epoch_visits_every_image_once():
    """Batches run across epoch ends without repeating or skipping an image within an epoch."""
    order = Order(LABELS, seed=0)
    seen = order.indices(0, 20)
    assert sorted(seen[:10].tolist()) == list(range(10))
    assert sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert Order(LABELS, seed=1).indices(0, 10).tolist() != seen[:10].tolist()


def test_balanced_order_shows_classes_equally_often():
    """Each round holds every class once, and a class repeats none of its images before it has shown them all."""
    chosen = Order(LABELS, seed=0, balanced=True).indices(0, 3 * 14)
    labels = LABELS[chosen]
    assert labels.bincount().tolist() == [14, 14, 14]
    assert all(sorted(labels[i : i + 3].tolist()) == [0, 1, 2] for i in range(0, 42, 3))
    large = chosen[labels == 0]
    assert sorted(large[:7].tolist()) == sorted(large[7:].tolist()) == list(range(7))


@given(first=st.integers(0, 100), cut=st.integers(0, 30), balanced=st.booleans())
def test_a_batch_is_the_same_in_parts(first, cut, balanced):
    """A process that requests any positions gets what the whole batch holds there."""
    order = Order(LABELS, seed=3, balanced=balanced)
    whole = order.indices(first, 30)
    assert torch.equal(torch.cat([order.indices(first, cut), order.indices(first + cut, 30 - cut)]), whole)


def test_an_image_has_the_same_noise_in_any_part_of_a_batch():
    """Noise depends on seed, stage, step and position alone: a process that samples rows 2 and 3 samples what the whole batch has there."""
    whole, part = step_streams(0, "unet", 5, slice(0, 4)), step_streams(0, "unet", 5, slice(2, 4))
    assert torch.equal(whole.normal(3, 2)[2:], part.normal(3, 2))
    assert torch.equal(whole.uniform()[2:], part.uniform())
    assert torch.equal(whole.integers(1000)[2:], part.integers(1000))
    for other in ((1, "unet", 5), (0, "transformer", 5), (0, "unet", 6)):
        assert not torch.equal(step_streams(*other, slice(0, 4)).normal(3), step_streams(0, "unet", 5, slice(0, 4)).normal(3))
