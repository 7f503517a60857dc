"""`clip-vit-l-14`: CLIP (Radford et al. 2021) from a local directory of transformers: images for FID-CLIP, prompts for text alignment."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gda.artifacts.fingerprint import digest_of
from gda.errors import DataError, MissingError
from gda.fidelity.extractors.base import LARGE_NETWORK_BATCH, Extractor, TextSide, normalised
from gda.fidelity.extractors.weights import WEIGHTS_FIELD, require_weights, state_digest
from gda.runtime.disks import storage_problem

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipArchitecture:
    """The sizes that the directory's configuration must have, so that the name of the extractor is true."""

    name: str
    hidden_size: int
    layers: int
    patch_size: int
    image_size: int = 224


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
CLIP_VIT_L_14 = ClipArchitecture("clip-vit-l-14", hidden_size=1024, layers=24, patch_size=14)


def load_clip(weights: str | None, architecture: ClipArchitecture = CLIP_VIT_L_14) -> Extractor:
    """Projected image embeddings, not normalised, of images resized to 224 pixels (bicubic); texts too, if the directory has a tokenizer.

    Raises `MissingError` without the directory, `DataError` for another model.
    """
    name = architecture.name
    wanted = "a directory with config.json and model.safetensors of a CLIPModel"
    path = require_weights(weights, extractor=name, wanted=wanted, where_from="openai/clip-vit-large-patch14 at huggingface.co")
    if not (path / "config.json").is_file():
        raise MissingError(f"{WEIGHTS_FIELD}: {path} has no config.json; extractor {name} needs {wanted}")
    network = _network(path)
    _require_architecture(network.config, architecture, path)
    state = {key: tensor for key, tensor in network.state_dict().items() if key.startswith(("vision_model.", "visual_projection."))}
    act = network.config.vision_config.hidden_act
    identity = {"extractor": name, "preprocessing": "bicubic clip", "activation": act}

    def forward(images: torch.Tensor) -> torch.Tensor:
        pooled = network.vision_model(pixel_values=normalised(images, CLIP_MEAN, CLIP_STD)).pooler_output
        return network.visual_projection(pooled)

    return Extractor(
        name=name,
        digest=digest_of(identity | {"weights": state_digest(state)}),
        dim=network.config.projection_dim,
        input_px=architecture.image_size,
        forward=forward,
        resize="bicubic",
        batch=LARGE_NETWORK_BATCH,
        packages=("transformers",),
        text=_text_side(network, path),
    )


def _text_side(network: Any, path: Path) -> TextSide | None:
    files = [path / name for name in _TOKENIZER_FILES if (path / name).is_file()]
    if not files:
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises bare ones as well
        if (problem := storage_problem(error)) is not None:
            raise problem from None
        raise DataError(f"{WEIGHTS_FIELD}: {path} holds a tokenizer that cannot be read ({str(error).splitlines()[0]})") from None
    longest = network.config.text_config.max_position_embeddings

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> np.ndarray:
        rows = []
        for text in texts:  # one by one, so that no text depends on another one's padding
            tokens = tokenizer([text], truncation=True, max_length=longest, return_tensors="pt")
            pooled = network.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
            rows.append(network.text_projection(pooled)[0].float().numpy())
        return np.stack(rows)

    state = {key: tensor for key, tensor in network.state_dict().items() if key.startswith(("text_model.", "text_projection."))}
    contents = [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
    return TextSide(digest=digest_of([contents, longest, state_digest(state)]), embed=embed)


def _network(path: Path) -> Any:
    from transformers import CLIPModel

    try:
        network, info = CLIPModel.from_pretrained(
            str(path), use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise DataError(f"{WEIGHTS_FIELD}: {path} is not a CLIPModel with its weights ({str(error).splitlines()[0]})") from None
    wrong = sorted(info["missing_keys"]) or [str(key) for key in info["mismatched_keys"]]
    if wrong:  # they would stay random
        raise DataError(f"{WEIGHTS_FIELD}: {path} is not the whole CLIPModel: it lacks {wrong[0]}")
    return network.requires_grad_(False).eval()


def _require_architecture(config: Any, wanted: ClipArchitecture, path: Path) -> None:
    vision = config.vision_config
    found = (vision.hidden_size, vision.num_hidden_layers, vision.patch_size, vision.image_size)
    expected = (wanted.hidden_size, wanted.layers, wanted.patch_size, wanted.image_size)
    if found != expected:
        sizes = "width {}, {} layers, patches of {}, images of {} pixels"
        raise DataError(f"{WEIGHTS_FIELD}: {path} is not {wanted.name}: it has {sizes.format(*found)}; expected {sizes.format(*expected)}")
