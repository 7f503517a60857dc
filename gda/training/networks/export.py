"""Finished classifiers as directories that timm loads: `config.json`, `model.safetensors`, and our `classifier.json`."""

import json
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import load_file, save
from timm.models import get_model_args
from torch import Tensor, nn

from gda.artifacts.cards import ClassifierCard
from gda.artifacts.contents import require_whole
from gda.artifacts.document import dump_document, read_document
from gda.errors import DataError
from gda.io.atomic import write_bytes
from gda.io.tensors import tensors_digest
from gda.runtime.reading import parser, read_object
from gda.training.networks.pretrained import Channels
from gda.training.networks.sizes import require_sizes_of

CONFIG, CLASSIFIER_WEIGHTS, CARD_NAME = "config.json", "model.safetensors", "classifier.json"


def model_digest(model: nn.Module) -> str:
    """sha256 (64 hex digits) over the names, types, shapes and bytes of all weights and buffers."""
    return tensors_digest({name: value.detach().cpu().numpy() for name, value in model.state_dict().items()})


def export_classifier(model: nn.Module, folder: Path, card: ClassifierCard) -> None:
    """Write `model` and its card into `folder`, so that `timm.create_model("local-dir:FOLDER", pretrained=True)` gives it back."""
    folder.mkdir(parents=True, exist_ok=True)
    mean, std = preparation(model)
    card = card.model_copy(update={"mean": mean, "std": std, "weights": model_digest(model)})
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    write_bytes(folder / CLASSIFIER_WEIGHTS, save(tensors))
    write_bytes(folder / CONFIG, (json.dumps(_timm_config(model, card), indent=2, sort_keys=True) + "\n").encode())
    write_bytes(folder / CARD_NAME, dump_document(card))


def preparation(model: nn.Module) -> tuple[Channels, Channels]:
    """Mean and deviation of a model's images by channel, where white is 1."""
    held: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    (a, b, c), (d, e, f) = held["mean"], held["std"]
    return (float(a), float(b), float(c)), (float(d), float(e), float(f))


def open_classifier(folder: Path) -> ClassifierCard:
    """The card of the classifier in `folder`, after checking its files against their digests and its weights against the card.

    Raises `DataError` naming a file that differs. The card of a skipped arm has no weights.
    """
    require_whole(folder, advice=f"remove {folder} and train it again")
    card = read_document(folder / CARD_NAME, ClassifierCard)
    if card.skipped is not None or card.weights is None:
        return card
    found = tensors_digest({name: value.numpy() for name, value in _read_weights(folder / CLASSIFIER_WEIGHTS).items()})
    if found != card.weights:
        raise DataError(
            f"{folder / CLASSIFIER_WEIGHTS}: holds weights {found[:12]}, but {CARD_NAME} is the card of {card.weights[:12]}; train it again"
        )
    return card


def load_classifier(folder: Path) -> nn.Module:
    """The classifier in `folder`, in eval mode.

    Raises `DataError` when its files are missing, damaged, not those that its card names, or anything but safetensors.
    """
    if (folder / CARD_NAME).is_file():
        open_classifier(folder)
    config, tensors = _read_config(folder / CONFIG), _read_weights(folder / CLASSIFIER_WEIGHTS)
    require_sizes_of(
        {"num_classes": config["num_classes"], **config["model_args"]}, [value.shape for value in tensors.values()], folder / CONFIG
    )
    with parser(folder, f"of one network: weights and {CONFIG} do not fit together"):
        # Not pretrained=True: timm would fall back to a pickle where the safetensors file is missing.
        held = {"mean": config["mean"], "std": config["std"]}
        model = timm.create_model(
            config["architecture"], num_classes=config["num_classes"], pretrained_cfg_overlay=held, **config["model_args"]
        )
        model.load_state_dict(tensors)
    return model.eval()


def _timm_config(model: nn.Module, card: ClassifierCard) -> dict[str, Any]:
    held: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return {
        "architecture": card.model,
        "num_classes": len(card.classes),
        "num_features": model.num_features,
        "label_names": list(card.classes),
        "model_args": {name: value for name, value in get_model_args(model).items() if name not in ("num_classes", "in_chans")},
        "pretrained_cfg": {
            "input_size": [3, card.image_size, card.image_size],
            "fixed_input_size": bool(held.get("fixed_input_size", False)),
            "num_classes": len(card.classes),
            "mean": list(card.mean),
            "std": list(card.std),
            "interpolation": held["interpolation"] if card.pretrained is not None else "bicubic",
            "crop_pct": 1.0,
            "first_conv": held.get("first_conv"),
            "classifier": held.get("classifier"),
        },
    }


def _read_config(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        raise DataError(f"{path}: not found; expected a directory that timm loads")
    content = read_object(path, finite=False)
    held, model_args = content.get("pretrained_cfg", {}), content.get("model_args", {})
    if not isinstance(held, dict) or not isinstance(model_args, dict):
        raise DataError(f"{path}: not a timm configuration (pretrained_cfg and model_args must be objects)")
    architecture, num_classes = content.get("architecture"), content.get("num_classes")
    if not isinstance(architecture, str) or not timm.is_model(architecture) or ":" in architecture:
        raise DataError(f"{path}: not a timm configuration (architecture {architecture!r} is none of timm's)")
    if type(num_classes) is not int or num_classes < 1:
        raise DataError(f"{path}: not a timm configuration (num_classes is {num_classes!r}; accepted: a whole number from 1)")
    named = {"architecture": architecture, "num_classes": num_classes, "model_args": model_args}
    return named | {name: _three(held.get(name, (0.5,) * 3), name, path) for name in ("mean", "std")}


def _three(values: Any, name: str, path: Path) -> Channels:
    if isinstance(values, list | tuple) and len(values) == 3 and all(type(value) in (int, float) for value in values):
        first, second, third = (float(value) for value in values)
        if all(math.isfinite(value) for value in (first, second, third)):
            return first, second, third
    raise DataError(f"{path}: not a timm configuration ({name} is {reprlib.repr(values)}; accepted: three finite numbers)")


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        pickles = sorted(p.name for p in path.parent.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        found = f"; {pickles[0]} is a pickle, which is never opened" if pickles else ""
        raise DataError(f"{path}: not found; weights must be safetensors{found}")
    with parser(path, "a whole safetensors file"):
        return load_file(path)
