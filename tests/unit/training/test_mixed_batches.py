"""Composition of batches and epochs."""

from dataclasses import replace

import pytest
import torch

from gda.errors import ConfigError, DataError
from gda.runtime.torch_rng import torch_stream
from gda.training.loop.mixed_batches import Epochs, MixedBatches, TrainingSource, batch_counts


def source(value: int, count: int, share: float) -> TrainingSource:
    """A source whose every pixel is `value` and whose labels number its images from 100 * value."""
    return TrainingSource(
        images=torch.full((count, 3, 2, 2), value, dtype=torch.uint8), labels=100 * value + torch.arange(count), share=share
    )


@pytest.mark.parametrize(
    ("shares", "size", "counts"),
    [
        ([1.0], 64, [64]),
        ([0.5, 0.5], 64, [32, 32]),
        ([0.25, 0.75], 64, [16, 48]),
        ([1 / 3, 2 / 3], 64, [21, 43]),
        ([0.1, 0.2, 0.7], 10, [1, 2, 7]),
    ],
)
def test_batch_counts_are_the_shares(shares: list[float], size: int, counts: list[int]) -> None:
    """Counts match the shares exactly if possible, else the nearest split, and always fill the batch."""
    assert batch_counts(shares, size) == counts


def test_a_source_without_room_in_the_batch_is_an_error() -> None:
    """A ratio that leaves a source without images must not silently turn into an arm without that source."""
    with pytest.raises(ConfigError, match=r"classify\.ratio.*batch of 4.*classify\.batch_size"):
        batch_counts([0.01, 0.99], 4)


def test_every_batch_has_the_exact_composition() -> None:
    """Each batch holds 5 images of the small source and 15 of the large one, for many epochs of both."""
    batches = MixedBatches([source(1, 7, 0.25), source(2, 31, 0.75)], 20, seed=3)
    for _ in range(40):
        batch = batches.next()
        values = batch.images[:, 0, 0, 0]
        assert (int((values == 1).sum()), int((values == 2).sum())) == (5, 15)
        assert torch.equal(batch.labels // 100, values.long())


def test_epochs_visit_every_image_equally_often() -> None:
    """Every epoch takes each image once, in a new order, for any batch size."""
    epochs = Epochs(11, torch_stream(0, "test"))
    taken = torch.cat([epochs.take(4) for _ in range(22)]).view(8, 11)
    assert torch.equal(taken.sort(dim=1).values, torch.arange(11).expand(8, 11))
    assert not torch.equal(taken[0], taken[1])


def test_batches_continue_from_a_state() -> None:
    """A restored traversal continues with the same batches, also in the middle of an epoch."""
    sources = [source(1, 7, 0.5), source(2, 9, 0.5)]
    first = MixedBatches(sources, 6, seed=1)
    for _ in range(5):
        first.next()
    second = MixedBatches(sources, 6, seed=999)
    second.restore({name: value.clone() for name, value in first.state().items()})
    for _ in range(10):
        assert torch.equal(first.next().labels, second.next().labels)


def test_a_source_needs_uint8_images_and_as_many_labels() -> None:
    """Float images (already normalised) or missing labels are refused before anything is trained."""
    with pytest.raises(DataError, match="uint8 NCHW"):
        TrainingSource(images=torch.zeros(2, 3, 4, 4), labels=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(DataError, match="2 images with 3 labels"):
        TrainingSource(images=torch.zeros(2, 3, 4, 4, dtype=torch.uint8), labels=torch.zeros(3, dtype=torch.int64))


def test_shares_come_with_their_images() -> None:
    """A soft label must stay with its image through reshuffled epochs; images of a source without soft labels get whole labels."""
    soft = replace(source(2, 8, 0.5), second=torch.arange(8), first_share=(torch.arange(8) + 1) / 10)
    batches = MixedBatches([source(1, 7, 0.5), soft], 6, seed=1)
    for _ in range(8):
        batch = batches.next()
        assert batch.second is not None
        assert batch.first_share is not None
        assert (batch.second[:3].tolist(), batch.first_share[:3].tolist()) == ([-1] * 3, [1.0] * 3)
        assert torch.equal(batch.second[3:], batch.labels[3:] - 200)
        torch.testing.assert_close(batch.first_share[3:], (batch.labels[3:] - 199) / 10)
    assert batches.per_image([0.5, 3.0]).tolist() == [0.5] * 3 + [3.0] * 3
