"""Architectures by timm's names, with errors that a user can act on."""

import difflib
import json
from collections.abc import Mapping
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from gda.errors import ConfigError, DataError
from gda.runtime.reading import parse_json
from gda.training.networks.pretrained import Weights
from gda.training.networks.sizes import require_sane_sizes

# Set by gda: classes and channels come from the data, weights from training.
_RESERVED = frozenset(
    {"num_classes", "in_chans", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "model_name"}
)


def parse_model_args(text: str) -> dict[str, Any]:
    """The keyword arguments of `timm.create_model` from JSON. Raises `ConfigError` unless it is an object without reserved names."""
    content = parse_json(text, "classify.model_args_json", error=ConfigError)
    if not isinstance(content, dict):
        raise ConfigError(f"classify.model_args_json: expected a JSON object, got {text!r}")
    if reserved := sorted(_RESERVED & content.keys()):
        raise ConfigError(f"classify.model_args_json: {reserved[0]!r} is set by gda; any other argument of timm.create_model is accepted")
    require_sane_sizes(content, "classify.model_args_json")
    return content


def build_model(
    name: str,
    model_args: Mapping[str, Any],
    *,
    num_classes: int,
    image_size: int,
    test_image_size: int | None = None,
    weights: Weights | None = None,
) -> nn.Module:
    """A timm model for RGB images of `image_size` pixels: freshly initialised from torch's global generator, or with `weights`.

    It takes images of `test_image_size` pixels too. The head is always new; timm resamples weights that depend on the image size. The
    preparation of images is in `pretrained_cfg`. Raises `ConfigError` for an unknown architecture (with close matches), arguments it does
    not take, or a size it cannot take, and `DataError` for weights of another network.
    """
    if not timm.is_model(name) or ":" in name:
        raise ConfigError(f"classify.model: unknown architecture {name!r}; {_close_to(name)}")
    arguments = dict(model_args)
    defaults = timm.get_pretrained_cfg(name)
    if defaults is not None and defaults.fixed_input_size:
        arguments.setdefault("img_size", image_size)
    try:
        model = timm.create_model(name, num_classes=num_classes, in_chans=3, **arguments, **_source(weights))
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError, SafetensorError) as error:
        given = json.dumps(dict(model_args))
        if weights is not None:
            raise DataError(f"classify.pretrained: {weights.path} does not fit {name} with {given} ({_misfit(error)})") from None
        raise ConfigError(f"classify.model_args_json: {name} does not take {given} ({_first_line(error)})") from None
    if weights is not None:
        _require_whole(model, name, weights)
    for side in {image_size, test_image_size or image_size}:
        _probe(model, name, model_args, side)
    return model


def head_names(model: nn.Module) -> tuple[str, ...]:
    """The modules of timm's model that map features to classes."""
    found = model.pretrained_cfg.get("classifier")  # type: ignore[union-attr, operator]
    return (found,) if isinstance(found, str) else tuple(found or ())


def in_head(model: nn.Module, tensor: str) -> bool:
    """Whether a parameter or buffer belongs to the head."""
    return any(tensor.startswith(f"{head}.") for head in head_names(model))


def freeze_backbone(model: nn.Module, name: str) -> None:
    """Freeze everything except the head. Raises `ConfigError` for an architecture whose head timm does not name."""
    for tensor, parameter in model.named_parameters():
        parameter.requires_grad_(in_head(model, tensor))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"classify.tune: timm names no head of {name} that could be trained alone; use tune: full")


def _source(weights: Weights | None) -> dict[str, Any]:
    """Arguments that make timm load the file without its head and record the preparation of images."""
    if weights is None:
        return {"pretrained_cfg_overlay": {"mean": (0.5,) * 3, "std": (0.5,) * 3}}
    # timm leaves out a head with another number of classes than the model's; no file has 0 classes.
    prepared = {"mean": weights.mean, "std": weights.std, "interpolation": weights.interpolation}
    return {"pretrained": True, "pretrained_cfg_overlay": prepared | {"file": str(weights.path), "num_classes": 0}}


def _require_whole(model: nn.Module, name: str, weights: Weights) -> None:
    """With a new head, timm ignores missing and extra tensors of a file; either means another network, so refuse it."""
    with safe_open(weights.path, framework="pt") as file:
        held = {tensor for tensor in file.keys() if not in_head(model, tensor)}  # noqa: SIM118 - not a mapping
    needed = {tensor for tensor in model.state_dict() if not in_head(model, tensor)}
    for problem, tensors in (("lacks", needed - held), ("has too much:", held - needed)):
        if tensors:
            raise DataError(
                f"classify.pretrained: {weights.path} is not of {name} as classify.model and classify.model_args_json say: "
                f"it {problem} {min(tensors)} and {len(tensors) - 1} more"
            )


def _probe(model: nn.Module, name: str, model_args: Mapping[str, Any], image_size: int) -> None:
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(2, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError, AttributeError) as error:
        with_args = f"with {json.dumps(dict(model_args))} " if model_args else ""
        raise ConfigError(
            f"classify.model: {name} {with_args}does not work on images of {image_size} pixels ({_first_line(error)}); "
            "change classify.image_size, classify.test_image_size or classify.model_args_json"
        ) from None


def _close_to(name: str) -> str:
    close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
    return f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists those accepted"


def _misfit(error: BaseException) -> str:
    """The first two lines of an error: torch names the tensor in the second."""
    return " ".join(f"{type(error).__name__}: {error}".split("\n")[:2]).replace("\t", "")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
