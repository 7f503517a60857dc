"""Pre-training that goes on from a finished base."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gda.generator.build import build_tiny_cascade
from gda.generator.glyphs import GlyphBank
from gda.pretrain import pretrain_unet

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
