"""Feature extractors by name, for FID, KID, precision, recall and nearest neighbours."""

from collections.abc import Callable
from functools import lru_cache

import torch

from gda.config.load import Config
from gda.errors import ConfigError
from gda.fidelity.extractors.base import BATCH, Extractor
from gda.fidelity.extractors.clip import load_clip
from gda.fidelity.extractors.dinov2 import load_dinov2
from gda.fidelity.extractors.glyph import _INPUT_PX, FEATURES, folded, load_glyph_net
from gda.fidelity.extractors.inception import load_inception
from gda.fidelity.extractors.own import load_own
from gda.fidelity.extractors.weights import state_digest

__all__ = ["BATCH", "Extractor", "comparison_size", "configured_extractor", "get_extractor"]


def get_extractor(name: str, weights: str | None = None) -> Extractor:
    """The extractor of that name, with the weights at that path, loaded once in each process.

    Raises `ConfigError` for an unknown name (lists the known), `MissingError` without weights, `DataError` for weights of another network.
    """
    if ":" in name:
        return _own(name, weights)
    if name not in _REGISTRY:
        known = ", ".join(sorted(_REGISTRY))
        raise ConfigError(f"validate.extractor: no extractor {name!r}; known: {known}, or your own function as module:attribute")
    return _REGISTRY[name](weights)


def configured_extractor(config: Config) -> Extractor:
    """The extractor in section `validate`; raises as `get_extractor` does."""
    return get_extractor(config.validate_.extractor, config.validate_.extractor_weights)


def comparison_size(config: Config, extractor: Extractor) -> int:
    """Side to which both real and synthetic images are resized before anything is measured, pixels.

    Raises `ConfigError` where `validate.image_size` is smaller than the classifiers' images.
    """
    configured, least = config.validate_.image_size, config.classify.image_size
    if configured is not None and configured < least:
        raise ConfigError(
            f"validate.image_size: {configured} is less than classify.image_size, {least}; accepted: {least} and more, or null"
        )
    return max(least, extractor.input_px) if configured is None else configured


def _glyph(weights: str | None) -> Extractor:
    if weights is not None:
        raise ConfigError(f"validate.extractor_weights: {weights}: extractor glyph comes with its weights; accepted: null")
    return _shipped()


@lru_cache(maxsize=1)
def _shipped() -> Extractor:
    net = load_glyph_net()
    digest = state_digest({name: tensor for name, tensor in net.state_dict().items() if "num_batches" not in name})
    fast = folded(net)
    return Extractor(
        name="glyph",
        digest=digest,
        dim=FEATURES,
        input_px=_INPUT_PX,
        forward=lambda images: fast.features(images.contiguous(memory_format=torch.channels_last)),
    )


@lru_cache(maxsize=1)
def _own(name: str, weights: str | None) -> Extractor:
    return load_own(name, weights, taken=_REGISTRY)


_REGISTRY: dict[str, Callable[[str | None], Extractor]] = {
    "glyph": _glyph,
    "inception-v3-compat": lru_cache(maxsize=1)(load_inception),
    "dinov2-vit-l-14": lru_cache(maxsize=1)(load_dinov2),
    "clip-vit-l-14": lru_cache(maxsize=1)(load_clip),
}
