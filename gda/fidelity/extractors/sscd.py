"""Features of SSCD (Pizzi et al. 2022), a network trained to distinguish copies from similar pictures; its weights are not shipped."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from gda.errors import DataError, MissingError
from gda.io.shards import sha256_of

_INPUT_PX = 288
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Sscd:
    """A loaded network and the sha256 of its file."""

    network: torch.nn.Module
    digest: str

    @property
    def identity(self) -> str:
        """The network that must be stated with every number, e.g. `sscd@1f2e3d4c`."""
        return f"sscd@{self.digest[:8]}"

    @torch.inference_mode()
    def features(self, images: torch.Tensor) -> np.ndarray:
        """float32 [n, d] of length 1, of uint8 NCHW images. Raises `DataError` when the network gives anything but finite rows."""
        rows = [self.network(_normalised(part)) for part in images.split(_BATCH)]
        for part in rows:
            if not (isinstance(part, torch.Tensor) and part.ndim == 2 and part.shape[1] > 1 and part.isfinite().all()):
                raise DataError("validate.sscd_weights: the network does not give a row of finite numbers for every image")
        return F.normalize(torch.cat(rows), dim=1).numpy() if rows else np.zeros((0, 2), np.float32)


def sscd_digest(path: str) -> str:
    """sha256 of the weights. Raises `MissingError` naming the field where there is no such file."""
    if not Path(path).is_file():
        raise MissingError(f"validate.sscd_weights: {path} is not a file; accepted: SSCD as a TorchScript file, or null to go without")
    return sha256_of(Path(path))


@lru_cache(maxsize=1)
def load_sscd(path: str) -> Sscd:
    """The network in a TorchScript file, which is a program: only use the authors' file. Raises `MissingError`, `DataError`."""
    digest = sscd_digest(path)
    try:
        network = torch.jit.load(path, map_location="cpu")
    except RuntimeError as error:
        raise DataError(f"validate.sscd_weights: {path} is not a TorchScript file ({str(error).splitlines()[0]})") from None
    return Sscd(network=network.eval(), digest=digest)


def _normalised(images: torch.Tensor) -> torch.Tensor:
    scaled = F.interpolate(images.float() / 255.0, (_INPUT_PX, _INPUT_PX), mode="bilinear", antialias=True)
    return (scaled - torch.tensor(_MEAN).view(1, 3, 1, 1)) / torch.tensor(_STD).view(1, 3, 1, 1)
