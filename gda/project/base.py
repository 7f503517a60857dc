"""The base model, as far as its configurations say without loading it."""

import json
import math
import struct
from pathlib import Path

from gda.errors import DataError, MissingError
from gda.generator.weights import hub
from gda.generator.weights.directory import DEMO_BASE, generated_size, is_here, read_card, resolve
from gda.project.summaries import BaseSummary

# Well-known bases: side in pixels and millions of parameters of the denoiser, from their model cards.
KNOWN = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (512, 860.0),
    "CompVis/stable-diffusion-v1-4": (512, 860.0),
    "stabilityai/stable-diffusion-2-1": (768, 866.0),
    "stabilityai/stable-diffusion-2-1-base": (512, 866.0),
    "stabilityai/stable-diffusion-xl-base-1.0": (1024, 2567.0),
    "stabilityai/stable-diffusion-3-medium-diffusers": (1024, 2085.0),
    "stabilityai/stable-diffusion-3.5-medium": (1024, 2470.0),
}
_DENOISERS = ("base/unet", "unet", "transformer")


def look_at_base(name: str) -> BaseSummary:
    """Summary of a base: the demo's, a directory, or a hub id, which is not downloaded.

    Raises `MissingError` for a directory that is not there, `DataError` for one that is no base.
    """
    if name == DEMO_BASE:
        path = resolve(name)
        return BaseSummary(name=name, kind="glyphs", side=generated_size(path) or 28, parameters=_parameters(path))
    spec = None if Path(name).exists() else hub.parse(name)
    if spec is not None and not is_here(name):
        known, parameters = KNOWN.get(name.partition("@")[0].partition(":")[0], (512, 1000.0))
        return BaseSummary(name=name, kind="latent", side=known, parameters=parameters, state="to download")
    card, path = read_card(name), resolve(name)
    side = generated_size(path)
    if side is None:
        raise DataError(f"{name}: its configuration does not state the size of its images")
    return BaseSummary(name=name, kind="pixel" if card.family == "pixel_cascade" else "latent", side=side, parameters=_parameters(path))


def _parameters(path: Path) -> float:
    """Millions of parameters of the denoiser, counted in the headers of its safetensors files."""
    folder = next((path / part for part in _DENOISERS if (path / part).is_dir()), None)
    if folder is None:
        raise MissingError(f"{path}: has none of the denoisers {', '.join(_DENOISERS)}")
    total = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(size))
        total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total / 1e6
