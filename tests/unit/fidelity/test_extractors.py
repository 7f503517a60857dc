"""The feature space: fixed weights, fixed batches, clear errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gda.errors import ConfigError, DataError, MissingError
from gda.fidelity.extractors import BATCH, Extractor, get_extractor
from gda.fidelity.extractors.glyph import GLYPH_WEIGHTS, load_glyph_net


def noise(n: int, px: int = 28) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, px, px), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_features_are_those_of_the_network_batch_by_batch() -> None:
    """One row per image in order, in fixed batches, so that the bits depend on the images alone."""
    glyph, images = get_extractor("glyph"), noise(BATCH + 7)
    found = glyph.features(images)
    assert (found.shape, found.dtype) == ((BATCH + 7, glyph.dim), np.float32)
    assert (found[:BATCH] == glyph.features(images[:BATCH])).all()
    expected = load_glyph_net().features(images[-7:].float() / 255).numpy()
    assert found[-7:] == pytest.approx(expected, abs=1e-5)
    assert glyph.features(images[:0]).shape == (0, glyph.dim)


def test_batches_are_of_one_fixed_size() -> None:
    """The last bits of a network's output change with its batch size."""
    size_of_batch = Extractor(name="x", digest="", dim=1, input_px=28, forward=lambda x: torch.full((len(x), 1), float(len(x))))
    assert size_of_batch.features(noise(BATCH + 7))[:, 0].tolist() == [BATCH] * BATCH + [7] * 7


def test_features_do_not_depend_on_the_layout_in_memory() -> None:
    """Kernels for channels-last images round otherwise, and stacking decoded pictures makes such images."""
    glyph, images = get_extractor("glyph"), noise(20)
    assert (glyph.features(images) == glyph.features(images.to(memory_format=torch.channels_last))).all()


def test_other_sizes_are_resized_and_show_the_same_picture() -> None:
    """An image enlarged twice has nearly the features of the original, not those of another image."""
    small = torch.nn.functional.avg_pool2d(noise(6).float(), 7).repeat_interleave(7, 2).repeat_interleave(7, 3).to(torch.uint8)
    glyph = get_extractor("glyph")
    one, two = glyph.features(small), glyph.features(small.repeat_interleave(2, 2).repeat_interleave(2, 3))
    distances = np.linalg.norm(one[:, None] - two, axis=2)
    assert (distances.argmin(1) == np.arange(6)).all()


def test_unknown_names_list_the_known() -> None:
    """A typo is answered with what there is."""
    with pytest.raises(
        ConfigError,
        match="no extractor 'inception'; known: clip-vit-l-14, dinov2-vit-l-14, glyph, inception-v3-compat, or your own function",
    ):
        get_extractor("inception")


def test_missing_or_foreign_weights_are_clear_errors(tmp_path: Path) -> None:
    """Random weights would give numbers that look like any others."""
    with pytest.raises(MissingError, match="nowhere"):
        load_glyph_net(tmp_path / "nowhere.safetensors")
    save_file({"body.0.0.weight": torch.zeros(16, 3, 3, 3)}, tmp_path / "part.safetensors")
    with pytest.raises(DataError, match="missing"):
        load_glyph_net(tmp_path / "part.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(DataError, match="not the weights"):
        load_glyph_net(tmp_path / "text.safetensors")


def test_digest_names_the_weights() -> None:
    """A number is stated with the exact network: other weights, other digest."""
    glyph = get_extractor("glyph")
    assert len(glyph.digest) == 64
    assert glyph.identity == f"glyph@{glyph.digest[:8]}"
    assert GLYPH_WEIGHTS.with_name("README.md").is_file()
