"""What a training step is fed with: images or their latents, and text states, each computed once where that is possible.

Latents and text states are kept on disk under the digests of what they come from: a second run, another learning rate or another
process finds them there.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save

from gda.artifacts.fingerprint import bits_environment, digest_of
from gda.generator.families.protocol import Model, Text, rows
from gda.generator.weights.layout import UNUSED, Files
from gda.io.checked import is_whole, write_checked
from gda.runtime.torch_rng import RandomStreams

_AT_ONCE = 16  # images or prompts encoded in one pass: bounds memory, changes no count
_ROWS_A_FILE = 1024


@dataclass(frozen=True, kw_only=True)
class PreparedSource:
    """Training images, uint8 NCHW at the size that is trained on; `digest` names them (order included), `cache` is a folder or None."""

    images: torch.Tensor
    digest: str
    cache: Path | None = None


class Prepared:
    """Rows for the loss. Where neither jitter nor pixels demand it again each step, a row is prepared once per image and flip."""

    def __init__(
        self, model: Model, source: PreparedSource, *, jitter: float, flip: bool, device: torch.device, share: slice = slice(None)
    ) -> None:
        """`share` is which of the files missing from the cache this process computes, as in `files[share]`; see `fill`."""
        self._model, self._images, self._device = model, source.images, device
        self._jitter, self._flip = jitter, flip
        self._latent_cache: _LatentCache | None = None
        if not jitter and model.card.family != "pixel_cascade":
            self._latent_cache = _LatentCache(model, source, flip=flip, device=device, share=share)

    @property
    def encodes_each_step(self) -> bool:
        """Whether `take` runs the model's encoder."""
        return self._latent_cache is None and self._model.card.family != "pixel_cascade"

    def take(self, chosen: torch.Tensor, streams: RandomStreams) -> torch.Tensor:
        """Prepared rows of the images `chosen` (int64 [n]), on the device; the images' own samples say who is flipped and moved how."""
        flipped = streams.uniform() < 0.5 if self._flip else torch.zeros(len(chosen), dtype=torch.bool)
        if self._latent_cache is not None:
            return self._latent_cache.take(chosen, flipped.cpu()).to(self._device)
        images = unit(self._images[chosen]).to(self._device)
        images = torch.where(flipped.to(self._device)[:, None, None, None], images.flip(3), images)
        return self._model.prepare(jitter(images, self._jitter, streams))


class _LatentCache:
    """Moments of latents of all images, and of mirror images where configured, in files of some rows each; in memory without a cache."""

    def __init__(self, model: Model, source: PreparedSource, *, flip: bool, device: torch.device, share: slice) -> None:
        self._model, self._source, self._flip, self._device = model, source, flip, device
        count = len(source.images)
        self._starts = range(0, count, _ROWS_A_FILE)
        if source.cache is None:
            self._files: list[_Rows] = [self._compute(start) for start in self._starts]
            return
        folder = source.cache / f"latents-{self._name(model, source)[:32]}"
        paths = [folder / f"{start:08d}.safetensors" for start in self._starts]
        for start, path in list(zip(self._starts, paths, strict=True))[share]:
            if not is_whole(path):
                folder.mkdir(parents=True, exist_ok=True)
                write_checked(path, save(self._compute(start).tensors))
        self._paths = paths
        self._files = []

    def take(self, chosen: torch.Tensor, flipped: torch.Tensor) -> torch.Tensor:
        if not self._files:
            self._files = [_Rows(_open(path)) for path in self._paths]  # opened late: other processes may still be writing
        found = []
        for index, mirrored in zip(chosen.tolist(), flipped.tolist(), strict=True):
            found.append(self._files[index // _ROWS_A_FILE].row("flipped" if mirrored else "moments", index % _ROWS_A_FILE))
        return torch.stack(found)

    def _compute(self, start: int) -> "_Rows":
        images = self._source.images[start : start + _ROWS_A_FILE]
        kept = {"moments": self._encode(images)}
        if self._flip:
            kept["flipped"] = self._encode(images.flip(3))
        return _Rows(kept)

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([self._model.prepare(unit(part).to(self._device)).cpu() for part in images.split(_AT_ONCE)]).contiguous()

    def _name(self, model: Model, source: PreparedSource) -> str:
        what = {"images": source.digest, "encoder": _files_digest(model.files, "vae"), "flip": self._flip, "side": source.images.shape[-1]}
        return digest_of(what | bits_environment("diffusers") | {"device": self._device.type})


class _Rows:
    """Tensors by name of which single rows are read, in memory or mapped from a file."""

    def __init__(self, source: "dict[str, torch.Tensor] | safe_open") -> None:
        self._source = source

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        assert isinstance(self._source, dict)
        return self._source

    def row(self, name: str, index: int) -> torch.Tensor:
        if isinstance(self._source, dict):
            return self._source[name][index]
        row: torch.Tensor = self._source.get_slice(name)[index : index + 1][0]
        return row


class Texts:
    """Text states of some prompts and of the empty one, encoded once."""

    def __init__(self, model: Model, prompts: Sequence[str], *, cache: Path | None, device: torch.device) -> None:
        unique = sorted({"", *prompts})
        self._row, self._device = {prompt: i for i, prompt in enumerate(unique)}, device
        self._text = _cached(cache, _text_name(model, unique, device), lambda: _encode_all(model, unique))

    def take(self, prompts: Sequence[str]) -> Text:
        """A row per prompt, on the device."""
        return {role: states.to(self._device) for role, states in rows(self._text, [self._row[prompt] for prompt in prompts]).items()}


def unit(images: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def jitter(images: torch.Tensor, strength: float, streams: RandomStreams) -> torch.Tensor:
    """Random small affine of float32 NCHW: at strength 1 up to 15 degrees, 15% scale, 0.2 shear, 8% shift; border is extended."""
    if strength == 0:
        return images
    u = (streams.uniform(6) * 2 - 1) * strength
    angle, shear = 0.26 * u[:, 0], 0.2 * u[:, 1]
    sx, sy = torch.exp(0.15 * u[:, 2]), torch.exp(0.15 * u[:, 3])
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 0, 1] = sx * torch.cos(angle), sx * (shear - torch.sin(angle))
    theta[:, 1, 0], theta[:, 1, 1] = sy * torch.sin(angle), sy * torch.cos(angle)
    theta[:, :, 2] = 0.08 * 2 * u[:, 4:6]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _encode_all(model: Model, prompts: list[str]) -> Text:
    with torch.no_grad():
        encoded = [model.encode(prompts[i : i + _AT_ONCE]) for i in range(0, len(prompts), _AT_ONCE)]
    return {role: torch.cat([part[role].cpu() for part in encoded]).contiguous() for role in encoded[0]}


def _text_name(model: Model, prompts: list[str], device: torch.device) -> str:
    what = {
        "prompts": prompts,
        "encoder": _files_digest(model.files, "text_encoder", "tokenizer"),
        # Which parts there are, of which classes, and whether the empty prompt is zeros.
        "index": {path: _without_framing(index) for path, index in model.files.indexes().items()},
        "family": model.card.family,
    }
    return digest_of(what | bits_environment("diffusers", "transformers") | {"device": device.type})


def _files_digest(files: Files, *prefixes: str) -> str:
    """sha256 over the files in use of a generator's parts whose names start so, e.g. `text_encoder` and `text_encoder_2`."""
    return digest_of({plain: _sha256(file) for plain, file in files.below(*prefixes).items()})


def _without_framing(index: dict[str, Any]) -> dict[str, Any]:
    left_out = {"_diffusers_version", "_name_or_path", *UNUSED}
    return {field: value for field, value in index.items() if field not in left_out}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _cached(cache: Path | None, name: str, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    if cache is None:
        return compute()
    path = cache / f"text-{name[:32]}.safetensors"
    if not is_whole(path):
        os.makedirs(cache, exist_ok=True)
        write_checked(path, save(compute()))
    opened = _open(path)
    return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118


def _open(path: Path) -> safe_open:
    return safe_open(path, framework="pt")
