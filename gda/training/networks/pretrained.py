"""Pretrained weights of a classifier: where they lie, what is in them, and how their images were prepared."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

from gda.artifacts.fingerprint import digest_of
from gda.config.sections import ClassifyConfig
from gda.data.images.codecs import Interpolation
from gda.errors import ConfigError, DataError, MissingError
from gda.io.hub_cache import cache_dir
from gda.io.shards import sha256_of
from gda.runtime.reading import read_object

FROM_TIMM = "timm"
_FILE, _CONFIG = "model.safetensors", "config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".tar")

Channels = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A safetensors file by its sha256, and the preparation of images that it was trained with (`mean`, `std`: white is 1)."""

    path: Path
    digest: str
    mean: Channels
    std: Channels
    interpolation: Interpolation

    def identity(self) -> dict[str, Any]:
        """All but the place, as plain types."""
        return {name: value for name, value in asdict(self).items() if name != "path"}


def find_weights(config: ClassifyConfig) -> Weights | None:
    """What `classify.pretrained` names, or None where it is empty. Nothing is downloaded and no pickle is opened.

    Mean, deviation and interpolation are those of the directory's `config.json`, and else of timm's configuration of the architecture.
    Raises `ConfigError` where the architecture has no weights or is not the directory's, `MissingError` naming what to download where,
    `DataError` for a file that is not safetensors.
    """
    if not config.pretrained:
        return None
    if config.pretrained == FROM_TIMM:
        return _weights(_in_hub_cache(config.model), _timm_preparation(config.model))
    path = Path(config.pretrained).expanduser()
    if not path.is_dir():
        return _weights(_given(path), _timm_preparation(config.model))
    file = _given(path / _FILE)
    if not (path / _CONFIG).is_file():
        return _weights(file, _timm_preparation(config.model))
    return _weights(file, _described(path / _CONFIG, config.model))


def weights_inputs(config: ClassifyConfig) -> dict[str, str]:
    """The entry of the pretrained weights among a fingerprint's inputs: empty without any. Raises as `find_weights` does."""
    weights = find_weights(config)
    return {} if weights is None else {"pretrained": digest_of(weights.identity())}


def _weights(path: Path, preparation: Mapping[str, Any]) -> Weights:
    mean, std = (_channels(preparation[name], name) for name in ("mean", "std"))
    if not all(value > 0 for value in std):
        raise DataError(f"{path}: its configuration has a std of {std}; expected three numbers above 0")
    interpolation = preparation["interpolation"]
    if interpolation not in get_args(Interpolation):
        accepted = ", ".join(get_args(Interpolation))
        raise DataError(f"{path}: its configuration has an interpolation of {interpolation!r}; accepted: {accepted}")
    stat = path.stat()
    digest = _digest(path, stat.st_mtime_ns, stat.st_size)
    return Weights(path=path, digest=digest, mean=mean, std=std, interpolation=interpolation)


@lru_cache(maxsize=8)
def _digest(path: Path, modified: int, size: int) -> str:
    return sha256_of(path)


def _channels(values: Any, name: str) -> Channels:
    try:
        first, second, third = (float(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"classify.pretrained: its configuration has a {name} of {values!r}; expected three numbers") from None
    if not all(math.isfinite(value) for value in (first, second, third)):
        raise DataError(f"classify.pretrained: its configuration has a {name} of {values!r}; expected finite numbers")
    return first, second, third


def _given(path: Path) -> Path:
    pickles = [path] if path.suffix in _PICKLES else sorted(p for p in path.parent.glob("*") if p.suffix in _PICKLES)
    if path.suffix != ".safetensors" or not path.is_file():
        if pickles and (path.suffix in _PICKLES or path.name == _FILE):
            raise DataError(f"classify.pretrained: {pickles[0]} is a pickle, which is never opened; {_conversion(pickles[0])}")
        raise MissingError(f"classify.pretrained: {path} is no safetensors file; give one, a directory with {_FILE}, or {FROM_TIMM}")
    return path


def _conversion(path: Path) -> str:
    target = path.with_suffix(".safetensors").name
    code = f"import torch, safetensors.torch as s; s.save_file(torch.load({path.name!r}, weights_only=True), {target!r})"
    return f'if you trust it, convert it once: python -c "{code}"'


def _in_hub_cache(model: str) -> Path:
    from huggingface_hub import try_to_load_from_cache

    configuration = _timm_configuration(model)
    repo = configuration.get("hf_hub_id")
    if not repo:
        raise ConfigError(
            f"classify.pretrained: timm names no weights for {model}; give a safetensors file, or an architecture that has some"
        )
    found = try_to_load_from_cache(repo, _FILE, cache_dir=cache_dir())
    if not isinstance(found, str):
        raise MissingError(
            f"classify.pretrained: the weights of {model}, {repo}, are not in the hub cache {cache_dir()}; where there is a network run "
            f"`hf download {repo} {_FILE}` and bring the cache here (HF_HUB_CACHE says where it lies), or give the file itself"
        )
    return Path(found)


def _timm_configuration(model: str) -> dict[str, Any]:
    import timm

    found = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    return {} if found is None else found.to_dict()


def _timm_preparation(model: str) -> dict[str, Any]:
    return {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"} | _timm_configuration(model)


def _described(path: Path, model: str) -> dict[str, Any]:
    """What a directory's `config.json` says of it, under `pretrained_cfg` or, in older ones of timm, next to `architecture`."""
    content = read_object(path, finite=False)
    architecture = str(content.get("architecture", model))
    preparation = content.get("pretrained_cfg", content)
    if not isinstance(preparation, dict):
        raise DataError(f"{path}: not a timm configuration (pretrained_cfg is {type(preparation).__name__}; accepted: an object)")
    found = {name: preparation[name] for name in ("mean", "std", "interpolation") if name in preparation}
    if architecture.partition(".")[0] != model.partition(".")[0]:
        raise ConfigError(f"classify.pretrained: {path.parent} holds a {architecture}, but classify.model is {model}; make the two agree")
    return _timm_preparation(model) | found
