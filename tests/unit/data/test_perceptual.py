"""Near matches: the same picture in other bytes is found, other pictures are not, and nothing depends on blocks."""

import numpy as np
import pytest
import torch
from pictures import CHANGES, changed, digits, patches
from PIL import Image

from gda.data.checks import perceptual
from gda.data.checks.perceptual import Sketches, distinct, joined, near_groups, near_matches, perceptual_hashes, sketch, stack_sketches

COUNT = 60
# Images that must be matched of 60 after each change, a little below what was measured; changes not named are beyond near matches.
FOUND = {
    "digits": {"none": 60, "jpeg 90": 60, "jpeg 60": 59, "jpeg 30": 56, "webp 50": 59, "mirrored": 60, "brighter 1.3": 58, "darker 0.7": 59}
    | {"contrast 0.6": 59, "contrast 1.4": 57, "noise 6": 60, "noise 15": 58},
    "photographs": {"none": 60, "jpeg 90": 60, "jpeg 60": 58, "jpeg 30": 55, "webp 50": 55, "half size and back": 58, "mirrored": 60}
    | {"brighter 1.3": 38, "darker 0.7": 52, "contrast 0.6": 57, "contrast 1.4": 53, "noise 6": 60, "noise 15": 58},
}


def sketches(images: torch.Tensor) -> Sketches:
    return stack_sketches(sketch(image) for image in images.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("name", ["digits", "photographs"])
def test_a_picture_in_other_bytes_is_matched(name: str) -> None:
    """Recall of every change is printed and held to what was measured, and each match names the right picture."""
    images = digits()[:COUNT] if name == "digits" else patches(64)[:COUNT]
    originals, missed = sketches(images), {}
    for change, least in FOUND[name].items():
        found = near_matches(sketches(changed(images, CHANGES[change])), originals)
        count = int((found.reference == np.arange(COUNT)).sum())
        print(f"{name} {change:20} {count / COUNT:6.1%}")
        if count < least:
            missed[change] = count
    assert missed == {}


def test_other_pictures_are_not_matched() -> None:
    """No digit of 2,000 and no patch of a photograph is taken for another, though one digit in thirty shares its hash nearly."""
    many = sketches(digits()[:2000])
    hashes = perceptual_hashes(many.grey)[:, 0]
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None]) + 64 * np.eye(len(hashes), dtype=np.uint8)
    assert (apart.min(1) <= 2).mean() > 0.01
    for others in (many, sketches(patches(64)), sketches(patches(32, contrast=0.0))):
        assert len(near_matches(others, others, same_set=True).queries) == 0
    assert len(near_matches(sketches(digits()[2000:2500]), many).queries) == 0


def test_the_nearest_and_the_first_match_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaks are shown with the nearest picture, groups are named by the first, at the edge of blocks as within them."""
    images = digits()[:50].clone()
    images[40] = changed(images[3:4], CHANGES["jpeg 60"])[0]
    images[45] = changed(images[3:4], CHANGES["jpeg 90"])[0]
    images[20] = images[7].flip(2)
    whole = sketches(images)
    query = sketches(images[[3, 45]])
    for blocks in ((256, 1024, 16384), (1, 7, 2)):
        for name, value in zip(("_QUERIES", "_REFERENCES", "_PAIRS"), blocks, strict=True):
            monkeypatch.setattr(perceptual, name, value)
        found = near_matches(query, whole)
        assert found.reference.tolist() == [3, 45]
        assert found.first.tolist() == [3, 3]
        assert found.distance == pytest.approx([0, 0], abs=1e-6)
        inside = near_matches(whole, whole, same_set=True)
        assert inside.queries.tolist() == [3, 7, 20, 40, 45]
        assert inside.reference[[3, 45]].tolist() == [45, 3]
        assert near_groups(whole) == [[3, 40, 45], [7, 20]]
        assert distinct(whole).tolist() == [i for i in range(50) if i not in (20, 40, 45)]


def test_colour_and_emptiness_count() -> None:
    """The same shape in another colour is another picture; pictures without content are one only where their colour is."""
    ramp = np.linspace(0, 120, 32, dtype=np.uint8)[None, :, None] + np.zeros((32, 32, 3), np.uint8)
    red, blue = ramp + np.array([90, 0, 0], np.uint8), ramp + np.array([0, 0, 90], np.uint8)
    grey, same_grey, light = (np.full((32, 32, 3), level, np.uint8) for level in (100, 103, 140))
    pictures = [red, blue, grey, same_grey, light]
    found = near_matches(*[stack_sketches(sketch(picture) for picture in pictures)] * 2, same_set=True)
    assert found.reference.tolist() == [-1, -1, 3, 2, -1]


def test_hashes_of_mirrored_pictures_are_those_of_the_mirrored_sketch() -> None:
    """The four hashes come out of one transform by turning signs; a slip there would lose mirrored leaks only."""
    grey = sketches(patches(64)[:40]).grey
    views = perceptual_hashes(grey)
    for view, mirrored in enumerate((grey, grey[:, :, ::-1], grey[:, ::-1], grey[:, ::-1, ::-1])):
        apart = np.bitwise_count(views[:, view] ^ perceptual_hashes(np.ascontiguousarray(mirrored))[:, 0])
        assert apart.max() <= 4  # frequencies within rounding of the median may fall to either side


def test_any_size_gives_a_sketch_and_no_images_give_none() -> None:
    """Sources hold images of all sizes, down to one pixel; an empty set matches nothing."""
    image = np.asarray(Image.fromarray(digits()[0].permute(1, 2, 0).numpy()).resize((300, 200)))
    parts = stack_sketches([sketch(image), sketch(image[:1, :1])])
    assert parts.grey.shape == (2, 16, 16)
    empty = stack_sketches([])
    assert len(near_matches(empty, parts).queries) == len(near_matches(parts, empty).queries) == 0
    assert near_groups(empty) == []
    assert len(joined(parts, empty, parts)) == 4
