"""`dinov2-vit-l-14`: DINOv2 (Oquab et al. 2023) through timm, preprocessed as Stein et al. 2023 (dgm-eval) do for FD-DINOv2.

Bicubic to 224 pixels, antialiased; mean and deviation of ImageNet; the normalised class token. The grid of positions is resampled as in
the authors' own code. Comparable with dgm-eval's FD-DINOv2 by construction; equal numbers have not been shown.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from gda.artifacts.fingerprint import digest_of
from gda.errors import DataError
from gda.fidelity.extractors.base import LARGE_NETWORK_BATCH, Extractor, normalised
from gda.fidelity.extractors.weights import WEIGHTS_FIELD, StateDict, load_exactly, read_state, require_weights, state_digest

_INPUT_PX = 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_OFFSET = 0.1  # DINOv2 adds it to the target grid against rounding, and scales by the sum


@dataclass(frozen=True)
class Dinov2Architecture:
    """A vision transformer of timm: registered `model` and changes to its arguments."""

    name: str
    model: str
    arguments: dict[str, Any] = field(default_factory=dict)


DINOV2_VIT_L_14 = Dinov2Architecture("dinov2-vit-l-14", "vit_large_patch14_dinov2")


def load_dinov2(weights: str | None, architecture: Dinov2Architecture = DINOV2_VIT_L_14) -> Extractor:
    """Class-token features, 1024 for ViT-L. The file has timm's or the authors' names. Raises `MissingError`, `DataError`."""
    import timm

    name = architecture.name
    where = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/ or timm/vit_large_patch14_dinov2.lvd142m at huggingface.co"
    path = require_weights(weights, extractor=name, wanted="dinov2_vitl14_pretrain.pth or model.safetensors", where_from=where)
    state = read_state(path)
    digest = digest_of({"extractor": name, "preprocessing": "bicubic 224 imagenet", "weights": state_digest(state)})
    network = timm.create_model(architecture.model, pretrained=False, num_classes=0, img_size=_INPUT_PX, **architecture.arguments)
    network.requires_grad_(False).eval()
    load_exactly(network, _at_input_size(state, tuple(network.patch_embed.grid_size)), path)

    def forward(images: torch.Tensor) -> torch.Tensor:
        return network(normalised(images, IMAGENET_MEAN, IMAGENET_STD))

    return Extractor(
        name=name,
        digest=digest,
        dim=network.num_features,
        input_px=_INPUT_PX,
        forward=forward,
        resize="bicubic",
        batch=LARGE_NETWORK_BATCH,
    )


def _at_input_size(state: StateDict, grid: tuple[int, int]) -> StateDict:
    kept = {name: tensor for name, tensor in state.items() if name != "mask_token"}  # of the training alone
    if "pos_embed" in kept:
        kept["pos_embed"] = resample_positions(kept["pos_embed"], grid)
    return kept


def resample_positions(positions: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """[1, 1 + h * w, d] for a class token and a `grid` of h x w of [1, 1 + s * s, d], as `interpolate_pos_encoding` of DINOv2 has it."""
    count = positions.shape[1] - 1 if positions.ndim == 3 else 0
    side = round(count**0.5)
    if side * side != count or not count:
        raise DataError(f"{WEIGHTS_FIELD}: pos_embed of shape {tuple(positions.shape)} is not of a class token and a square of patches")
    if (side, side) == grid:
        return positions
    square = positions[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = [(g + _OFFSET) / side for g in grid]
    found = F.interpolate(square, scale_factor=scale, mode="bicubic", antialias=False)
    assert tuple(found.shape[2:]) == grid, f"expected {grid}, got {tuple(found.shape)}"
    return torch.cat([positions[:, :1].float(), found.flatten(2).transpose(1, 2)], dim=1)
