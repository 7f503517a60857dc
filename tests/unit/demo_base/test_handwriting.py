"""Writing by a pen: distances and stroke widths of shapes whose answers are known, and the frame that characters are brought into."""

import numpy as np
import pytest
import torch

from gda.demo_base.handwriting import LONGEST_SIDE, half_stroke, outline_distances, write

PX = 56


def bar(width: int, *, left: int = 24, top: int = 8, height: int = 40) -> np.ndarray:
    """An upright stroke, bool [112, 112], measured in pixels of the bank, which are two of the mask."""
    mask = np.zeros((2 * PX, 2 * PX), bool)
    mask[2 * top : 2 * (top + height), 2 * left : 2 * (left + width)] = True
    return mask


def distances(width: int, **place: int) -> torch.Tensor:
    return torch.from_numpy(outline_distances(bar(width, **place), 2))


def test_distances_are_those_of_a_bar() -> None:
    """Positive inside and negative outside, in pixels of the bank: what pen widths are added to."""
    row = distances(8)[PX // 2]
    assert row[23:33].tolist() == pytest.approx([-0.5, 0.5, 1.5, 2.5, 3.5, 3.5, 2.5, 1.5, 0.5, -0.5], abs=0.26)
    assert row[0] == pytest.approx(-23.5, abs=0.26)


@pytest.mark.parametrize("width", [4, 8, 12])
def test_half_stroke_is_half_the_width_of_a_bar(width: int) -> None:
    """The weight of a face is measured, so that a pen can replace it."""
    assert half_stroke(distances(width)[None]).item() == pytest.approx(width / 2, rel=0.2)


def test_a_pen_replaces_the_weight_of_a_face() -> None:
    """A bold and a light face are written with the same pens: their ink differs less than their masks, which do by two to one."""
    inks = [write(distances(w, left=28 - w // 2).expand(200, PX, PX), torch.Generator().manual_seed(0)).mean() for w in (4, 8)]
    assert 0.8 < float(inks[0] / inks[1]) < 1.25


def test_characters_are_framed_alike() -> None:
    """Wherever and however large a glyph stands in its bank, what is written has one size and stands in the middle."""
    maps = torch.cat([distances(5, left=6, top=4, height=26).expand(50, PX, PX), distances(8).expand(50, PX, PX)])
    ink = write(maps, torch.Generator().manual_seed(1))[:, 0]
    assert ink.shape == (100, 28, 28)
    assert bool(((ink >= 0) & (ink <= 1)).all())
    assert float(ink.amax((1, 2)).min()) > 0.8
    places = torch.arange(28) + 0.5
    for axis in (1, 2):
        centre = (ink.sum(axis) * places).sum(1) / ink.sum((1, 2))
        assert float((centre - 14).abs().max()) < 1.0
    spans = torch.stack([(ink.amax(axis) > 0.5).sum(1) for axis in (1, 2)]).amax(0)
    assert float((spans / 28 - LONGEST_SIDE).abs().max()) < 0.11


def test_the_same_state_writes_the_same() -> None:
    """Pre-training can be repeated; another state writes otherwise."""
    first, again, other = (write(distances(8).expand(4, PX, PX), torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
