"""Architectures by timm's names, with errors that a user can act on."""

import difflib
import json
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn

from gda.errors import ConfigError

# Ours to decide: classes and channels come from the data, and weights come from training alone.
_RESERVED = frozenset(
    {"num_classes", "in_chans", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "model_name"}
)


def parse_model_args(text: str) -> dict[str, Any]:
    """The keyword arguments of `timm.create_model` from their JSON. Raises `ConfigError` on anything but an object of free names."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"classify.model_args_json: not valid JSON ({error}), got {text!r}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"classify.model_args_json: expected a JSON object, got {text!r}")
    if reserved := sorted(_RESERVED & content.keys()):
        raise ConfigError(f"classify.model_args_json: {reserved[0]!r} is set by gda; any other argument of timm.create_model is accepted")
    return content


def build_model(name: str, model_args: Mapping[str, Any], *, num_classes: int, image_size: int) -> nn.Module:
    """A freshly initialised timm model for RGB images of `image_size` pixels; its weights come from torch's global generator.

    Raises `ConfigError` for an unknown architecture (with close matches), arguments it does not take, or a size it cannot take.
    """
    if not timm.is_model(name) or ":" in name:
        raise ConfigError(f"classify.model: unknown architecture {name!r}; {_close_to(name)}")
    arguments = dict(model_args)
    defaults = timm.get_pretrained_cfg(name)
    if defaults is not None and defaults.fixed_input_size:
        arguments.setdefault("img_size", image_size)
    try:
        model = timm.create_model(name, num_classes=num_classes, in_chans=3, **arguments)
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
        raise ConfigError(f"classify.model_args_json: {name} does not take {json.dumps(dict(model_args))} ({_first_line(error)})") from None
    _probe(model, name, model_args, image_size)
    return model


def _probe(model: nn.Module, name: str, model_args: Mapping[str, Any], image_size: int) -> None:
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(2, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError, AttributeError) as error:
        with_args = f"with {json.dumps(dict(model_args))} " if model_args else ""
        raise ConfigError(
            f"classify.model: {name} {with_args}does not work on images of {image_size} pixels ({_first_line(error)}); "
            "change classify.image_size or classify.model_args_json"
        ) from None


def _close_to(name: str) -> str:
    close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists those accepted"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
