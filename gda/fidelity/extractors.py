"""Feature extractors by name: what FID, KID, precision/recall and nearest neighbours are measured with."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from gda.config import Config
from gda.errors import ConfigError
from gda.fidelity.glyph import FEATURES, INPUT_PX, folded, load_glyph_net
from gda.io.tensors import tensors_digest

# Outputs of a network change in the last bits with the batch size, so it is fixed: features depend on the images and their order alone.
BATCH = 250


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A feature network: `name`, content `digest` of its weights, `dim` of its features."""

    name: str
    digest: str
    dim: int
    input_px: int
    forward: Callable[[torch.Tensor], torch.Tensor]  # float32 [n, 3, input_px, input_px] in [0, 1] -> float32 [n, dim]

    @property
    def identity(self) -> str:
        """What a number must be stated with, e.g. `glyph@1f2e3d4c`."""
        return f"{self.name}@{self.digest[:8]}"

    @torch.inference_mode()
    def features(self, images: torch.Tensor) -> np.ndarray:
        """float32 [n, dim] of uint8 NCHW RGB images of any one size (resized to the network's, antialiased)."""
        assert images.dtype == torch.uint8, f"expected uint8, got {images.dtype}"
        assert images.ndim == 4, f"expected NCHW, got {tuple(images.shape)}"
        parts = [self.forward(_to_input(chunk, self.input_px)).numpy() for chunk in images.split(BATCH)] if len(images) else []
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)


def get_extractor(name: str) -> Extractor:
    """The extractor of that name. Raises `ConfigError` for an unknown one (lists the known), `MissingError` without weights."""
    if name not in _REGISTRY:
        raise ConfigError(f"validate.extractor: no extractor {name!r}; known: {', '.join(sorted(_REGISTRY))}")
    return _REGISTRY[name]()


def comparison_size(config: Config, extractor: Extractor) -> int:
    """Side to which real and synthetic images alike are brought before anything is measured, pixels."""
    return max(config.classify.image_size, extractor.input_px)


def _to_input(images: torch.Tensor, px: int) -> torch.Tensor:
    scaled = images.contiguous().float() / 255.0  # kernels round by the layout in memory, too
    if images.shape[2:] == (px, px):
        return scaled
    return F.interpolate(scaled, (px, px), mode="bilinear", antialias=True)


@lru_cache(maxsize=1)
def _glyph() -> Extractor:
    net = load_glyph_net()
    digest = tensors_digest({name: tensor.numpy() for name, tensor in net.state_dict().items() if "num_batches" not in name})
    fast = folded(net)
    return Extractor(
        name="glyph",
        digest=digest,
        dim=FEATURES,
        input_px=INPUT_PX,
        forward=lambda images: fast.features(images.contiguous(memory_format=torch.channels_last)),
    )


_REGISTRY: dict[str, Callable[[], Extractor]] = {"glyph": _glyph}
