"""The glyphs that the demo base is pre-trained on: printed and handwritten faces, their captions, and faces that lack characters."""

import hashlib
from pathlib import Path

import matplotlib
import pytest
import torch

from gda.demo_base.faces import Face
from gda.demo_base.glyphs import CHARACTERS, HANDWRITTEN_SHARE, STROKE_SHARE, GlyphBank, caption, face_distances
from gda.errors import DataError

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def face(file: str) -> Face:
    """A face of matplotlib's, declared as handwriting."""
    digest = hashlib.sha256((FONTS / file).read_bytes()).hexdigest()
    return Face(package="matplotlib", version="3.9.0", file=file, licence="OFL-1.1", sha256=digest)


@pytest.fixture(scope="module")
def bank() -> GlyphBank:
    return GlyphBank(FONTS, [face("cmmi10.ttf"), face("DejaVuSans.ttf")])


def test_captions_say_which_glyphs_are_handwritten(bank: GlyphBank) -> None:
    """The share of handwriting is as declared, among what captions say of the style."""
    batch = bank.render(3000, torch.Generator().manual_seed(0))
    styles = [c for c in batch.captions if {"handwritten", "serif", "sans", "mono"} & set(c.split())]
    written = sum("handwritten" in c.split() for c in styles) / len(styles)
    assert written == pytest.approx(HANDWRITTEN_SHARE, abs=0.06)
    assert bool(((batch.images >= -1) & (batch.images <= 1)).all())


def test_the_style_is_reported_before_the_name() -> None:
    """What users request: "handwritten 3", "handwritten number seven"."""
    assert caption("3", "handwritten", [0.0, 0.0, 0.0]) == "handwritten 3"
    assert caption("7", "handwritten", [0.99, 0.0, 0.0]) == "handwritten number seven"


def test_most_handwritten_ones_are_a_single_stroke() -> None:
    """A face's 1 has a foot or a flag. A stroke that is bent at most a little fills a narrow box along its own direction."""
    digits = GlyphBank(FONTS, [face("cmmi10.ttf")])
    batch = digits.render(6000, torch.Generator().manual_seed(0))
    written = torch.tensor(["handwritten" in c.split() and " on " not in c for c in batch.captions])
    spreads = [_spread_across(image) for image in batch.images[written & (batch.characters == 1)].add(1).mean(1)]
    strokes = sum(spread < 1.6 for spread in spreads) / len(spreads)
    assert len(spreads) > 60
    assert strokes == pytest.approx(STROKE_SHARE, abs=0.15)


def _spread_across(ink: torch.Tensor) -> float:
    """Standard deviation of ink [h, w] across its main direction, in pixels."""
    y, x = torch.meshgrid(*map(torch.arange, ink.shape), indexing="ij")
    places = torch.stack([x, y]).flatten(1).float()
    weights = ink.flatten() / ink.sum()
    centred = places - (places * weights).sum(1, keepdim=True)
    return float(torch.linalg.eigvalsh((weights * centred) @ centred.T)[0].sqrt())


def test_without_handwriting_faces_print_alone_is_sampled() -> None:
    """Glyph features are rebuilt from matplotlib's faces; nothing of the new faces may reach them."""
    printed = GlyphBank()
    batch = printed.render(500, torch.Generator().manual_seed(0))
    assert printed.distances is None
    assert not any("handwritten" in c for c in batch.captions)


def test_every_batch_of_a_bank_can_be_repeated(bank: GlyphBank) -> None:
    """The same generator state gives the same batch."""
    first, again = (bank.render(64, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert first.captions == again.captions


def test_a_face_that_lacks_characters_is_refused() -> None:
    """It would be sampled as a box, and the base would learn boxes: read from the character map, for a box looks like ink."""
    with pytest.raises(DataError, match=r"STIXSizOneSymReg\.ttf: has no glyph for 0, 1, 2"):
        face_distances(FONTS / "STIXSizOneSymReg.ttf")


def test_distances_are_positive_where_a_face_has_ink() -> None:
    """Each character is a shape of some size inside its frame, and its border is outside it."""
    maps = face_distances(FONTS / "DejaVuSans.ttf")
    assert maps.shape == (len(CHARACTERS), 56, 56)
    share = (maps > 0).float().mean((1, 2))
    assert 0.01 < float(share.min()) <= float(share.max()) < 0.5
    assert float(maps[:, 0].max()) < 0
