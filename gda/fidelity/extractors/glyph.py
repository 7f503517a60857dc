"""GlyphNet: the small network behind the embedded feature space, trained on rendered characters and never on real images."""

from copy import deepcopy
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gda.errors import DataError, MissingError

_INPUT_PX = 28
FEATURES = 64
NUM_CHARACTERS = 62  # digits, lower case, upper case
GLYPH_WEIGHTS = Path(str(files("gda") / "assets/glyph_features/model.safetensors"))


class GlyphNet(nn.Module):
    """A small convolutional network over RGB float32 [n, 3, 28, 28] in [0, 1]; `features` are its 64 pooled activations."""

    def __init__(self, classes: int = NUM_CHARACTERS) -> None:
        super().__init__()

        def block(cin: int, cout: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU())

        self.body = nn.Sequential(block(3, 16, 1), block(16, 32, 2), block(32, 48, 2), block(48, FEATURES, 1))
        self.head = nn.Linear(FEATURES, classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled activations float32 [n, 64] of images float32 [n, 3, 28, 28] in [0, 1]."""
        return self.body(images).mean((2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


def folded(net: GlyphNet) -> GlyphNet:
    """The same function with every batch norm folded into the convolution before it: a fifth faster, equal to about 1e-6."""
    fused = deepcopy(net).eval()
    for block in fused.body:
        assert isinstance(block, nn.Sequential)
        convolution, norm = block[0], block[1]
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        block[0], block[1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    return fused.requires_grad_(False).to(memory_format=torch.channels_last)


def load_glyph_net(weights: Path = GLYPH_WEIGHTS) -> GlyphNet:
    """The shipped network in eval mode. Raises `MissingError` without weights, `DataError` when they are not GlyphNet's."""
    if not weights.is_file():
        raise MissingError(
            f"{weights}: the weights of the glyph extractor are missing; reinstall gda, or run gda.demo_base.pretrain features"
        )
    net = GlyphNet()
    try:
        found = net.load_state_dict(load_file(weights), strict=False)
    except (SafetensorError, RuntimeError) as error:
        raise DataError(f"{weights}: not the weights of GlyphNet ({str(error).splitlines()[0]})") from None
    # Batch-norm step counters are not stored: they play no part in eval mode.
    missing = [name for name in found.missing_keys if "num_batches" not in name]
    if missing or found.unexpected_keys:
        raise DataError(f"{weights}: not the weights of GlyphNet (missing {missing}, unexpected {found.unexpected_keys})")
    return net.eval().requires_grad_(False)
