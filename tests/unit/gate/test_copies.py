"""Copies of training images, whatever was done to them, on pictures whose relations are known."""

import numpy as np
import pytest
import torch
from pictures import CHANGES, changed, digits, patches

from gda.errors import DataError
from gda.fidelity.extractors import get_extractor
from gda.fidelity.neighbours import nearest
from gda.gate.checks.alignment import VIEWS, nearest_aligned
from gda.gate.checks.copies import CopyCheck, Space, aligned_space, check_copies, feature_space, relative_distance

COPIES = 40
QUANTILE = 0.01
# Copies that must be found of 40 planted by each transformation, a little below what was measured; those not named: 37.
MOST = 37
FOUND = {
    "digits": {"jpeg 30": 35, "crop 83%": 22},
    "photographs": {"brighter 1.3": 32, "noise 15": 31, "turned 5, brighter": 35, "crop 87%": 35, "crop 83%": 29},
}


def world(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training, held-out and new pictures."""
    if name == "digits":
        return digits()[:200], digits()[200:700], digits()[700:1300]
    return patches()[:85], patches()[85:170], patches()[170:]


def check(synthetic: torch.Tensor, holdout: torch.Tensor, train: torch.Tensor) -> CopyCheck:
    """The check as validation makes it, without a network made for copies."""
    features = {"synthetic": synthetic, "holdout": holdout, "train": train}
    glyph = feature_space("features", **{part: get_extractor("glyph").features(images) for part, images in features.items()})
    return check_copies([aligned_space(synthetic=synthetic, holdout=holdout, train=train), glyph], quantile=QUANTILE)


@pytest.mark.parametrize("name", ["digits", "photographs"])
def test_planted_copies_are_found_whatever_was_done_to_them(name: str) -> None:
    """Recall of every transformation is printed and held to what was measured; new pictures are flagged about as often as held-out ones."""
    train, holdout, new = world(name)
    planted = torch.cat([changed(train[:COPIES], change) for change in CHANGES.values()])
    found = check(torch.cat([new, planted]), holdout, train)
    right = found.neighbour[len(new) :].reshape(-1, COPIES) == np.arange(COPIES)
    recall = (found.flagged[len(new) :].reshape(-1, COPIES) & right).sum(1)
    false = found.flagged[: len(new)].mean()
    print(f"\n{name}: {false:.1%} of {len(new)} new pictures flagged")
    for change, count in zip(CHANGES, recall, strict=True):
        print(f"  {change:28} {count / COPIES:6.1%}")
    missed = {change: count for change, count in zip(CHANGES, recall, strict=True) if count < FOUND[name].get(change, MOST)}
    assert missed == {}
    assert false <= 3 * QUANTILE
    assert found.holdout_flagged.mean() <= QUANTILE


def test_blocks_and_views_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by looking at a block of queries and one view at a time; the nearest must be the nearest of all the same."""
    train, queries = digits()[:30], digits()[100:140]
    whole = nearest_aligned(queries, train, k=5)
    monkeypatch.setattr("gda.gate.checks.alignment._ROWS", 7)
    blocked = nearest_aligned(queries, train, k=5)
    assert (whole[1] == blocked[1]).all()
    assert whole[0] == pytest.approx(blocked[0], abs=1e-6)
    assert all(len(set(row)) == 5 for row in whole[1].tolist())
    assert (np.diff(whole[0], axis=1) >= 0).all()
    assert VIEWS == 76
    assert [part.shape for part in nearest_aligned(queries[:0], train, k=5)] == [(0, 5), (0, 5)]


def _space(synthetic: np.ndarray, holdout: np.ndarray, train: np.ndarray) -> Space:
    return feature_space("x", synthetic=synthetic, holdout=holdout, train=train)


def test_copies_are_flagged_and_new_images_only_at_the_stated_rate() -> None:
    """Planted copies are all found, with the image they copy; new images are flagged about as often as held-out ones."""
    rng = np.random.default_rng(0)
    train, holdout, new = rng.normal(size=(200, 6)), rng.normal(size=(400, 6)), rng.normal(size=(1000, 6))
    copies = train[:50] + rng.normal(scale=0.01, size=(50, 6))
    found = check_copies([_space(np.concatenate([copies, new]), holdout, train)], quantile=0.02)
    assert found.flagged[:50].all()
    assert (found.neighbour[:50] == np.arange(50)).all()
    assert found.flagged[50:].mean() < 0.05
    assert 0 < found.holdout_flagged.mean() <= 0.02


def test_nearness_is_relative_to_the_neighbourhood() -> None:
    """In a dense class everything is near everything without being a copy; in a sparse one a copy may be farther away than that."""
    rng = np.random.default_rng(0)
    dense, wide = (lambda n: rng.normal(scale=0.01, size=(n, 6))), (lambda n: rng.normal(size=(n, 6)) + 20)
    train, holdout = np.concatenate([dense(100), wide(100)]), np.concatenate([dense(200), wide(200)])
    found = check_copies([_space(dense(300), holdout, train)], quantile=0.01)
    assert found.flagged.mean() < 0.05
    copies = train[100:] + rng.normal(scale=0.05, size=(100, 6))
    assert nearest(copies, train)[0].min() > nearest(dense(300), train)[0].max()  # no absolute distance separates them
    assert check_copies([_space(copies, holdout, train)], quantile=0.01).flagged.all()


def test_a_copy_in_either_space_is_flagged() -> None:
    """A copy may be far in one space and near in another; one space must be enough, and it names the image."""
    rng = np.random.default_rng(0)
    train, holdout = rng.normal(size=(100, 6)), rng.normal(size=(200, 6))
    far, near = _space(rng.normal(size=(100, 6)), holdout, train), _space(train.copy(), holdout, train)
    found = check_copies([far, near], quantile=0.02)
    assert found.flagged.all()
    assert (found.neighbour == np.arange(100)).all()


def test_what_cannot_be_compared_is_an_error() -> None:
    """Where held-out images coincide with training images no copy could stand out, and silence would be a pass."""
    same, some = np.zeros((20, 3)), np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(DataError, match="by x, held-out images coincide with training images"):
        check_copies([_space(some, some, some)], quantile=0.01)
    with pytest.raises(DataError, match="coincide"):
        check_copies([_space(same, same, same)], quantile=0.01)
    for holdout, train in ((some[:0], some), (some, some[:1])):
        with pytest.raises(DataError, match="need a held-out image and two different training images"):
            _space(some, holdout, train)
    assert relative_distance(np.zeros((1, 3))) == [0.0]
