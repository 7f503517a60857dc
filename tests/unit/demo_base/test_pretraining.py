"""Pre-training that goes on from a finished base, and the digits that it is of."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from gda.demo_base.build import build_tiny_cascade
from gda.demo_base.glyphs import GlyphBank
from gda.demo_base.pretrain import pretrain_unet, write_digits

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(("stage", "folder"), [("base", "base"), ("sr", "super_resolution")])
def test_training_goes_on_from_a_base(tmp_path: Path, stage: str, folder: str) -> None:
    """What a base has learned is kept: its weights are where training begins, and it goes on with its own text encoder."""
    start = build_tiny_cascade(tmp_path / "start")
    pretrain_unet(tmp_path / "out", GlyphBank(), 1, stage=stage, lr=1e-6, start=start)
    before, after = (load_file(path / folder / WEIGHTS) for path in (start, tmp_path / "out"))
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 1e-5
    assert any(not torch.equal(before[name], after[name]) for name in before)
    if stage == "base":
        encoder = "base/text_encoder/model.safetensors"
        assert (start / encoder).read_bytes() == (tmp_path / "out" / encoder).read_bytes()


def test_digits_are_written_by_class(tmp_path: Path) -> None:
    """As many of each class, all different, white on black and without colour."""
    write_digits(tmp_path, GlyphBank(), 3)
    files = sorted(tmp_path.glob("*/*.png"))
    assert [path.relative_to(tmp_path).as_posix() for path in files] == [f"{label}/{i:05d}.png" for label in range(10) for i in range(3)]
    images = [np.asarray(Image.open(path)) for path in files]
    assert len({image.tobytes() for image in images}) == 30
    for image in images:
        assert image.shape == (28, 28, 3)
        assert (image == image[..., :1]).all()
        assert image[0].max() < 128 < image.max()
