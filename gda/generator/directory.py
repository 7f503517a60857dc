"""Generators as directories: where they are, which family they belong to, and whether their weights are safe to open."""

import json
from pathlib import Path
from typing import Any

from gda.artifacts import Family, GeneratorCard, read_document
from gda.errors import DataError, MissingError
from gda.io.tensors import directory_digest
from gda.recipe import digest_of

DEMO_BASE = "demo://glyphs"
BASE, SUPER_RESOLUTION = "base", "super_resolution"
FAMILIES: dict[str, Family] = {
    "IFPipeline": "pixel_cascade",
    "StableDiffusionPipeline": "latent_unet",
    "StableDiffusionXLPipeline": "latent_unet",
    "StableDiffusion3Pipeline": "flow_transformer",
}
_DEMO_PATH = Path(__file__).resolve().parent.parent / "assets" / "demo_base"
_NETWORKS = {"unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"}
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def resolve(name: str) -> Path:
    """The directory of a base or generator. Raises `MissingError` when there is none, with what to do about it."""
    path = _DEMO_PATH if name == DEMO_BASE else Path(name)
    if not path.is_dir():
        hint = "" if name == DEMO_BASE else f"; give a directory that holds a diffusers pipeline or a pixel cascade, or {DEMO_BASE}"
        raise MissingError(f"{name}: no such generator directory{hint}")
    return path


def read_card(name: str) -> GeneratorCard:
    """`generator.json` when there is one, else a card for plain weights with the licence that their README states, if any.

    Raises `MissingError` for a missing directory, `DataError` for an unknown family or pickled weights.
    """
    path = resolve(name)
    family = _family(path)
    _check_weights(path)
    if (path / "generator.json").is_file():
        return read_document(path / "generator.json", GeneratorCard)
    return GeneratorCard(family=family, digest=weights_digest(path), licence=_stated_licence(path))


def parts(path: Path) -> list[Path]:
    """The directories that make up the generator: a cascade's stages, or the parts that `model_index.json` names."""
    if not (path / "model_index.json").is_file():
        return [path / stage for stage in (BASE, SUPER_RESOLUTION) if (path / stage).is_dir()]
    return [path / key for key in sorted(read_json(path / "model_index.json")) if (path / key).is_dir()]


def weights_digest(path: Path) -> str:
    """Content digest over the tensors and configurations of every part, not over cards or file framing."""
    return digest_of({part.name: directory_digest(part) for part in parts(path)})


def drawn_side(path: Path) -> int | None:
    """Side of the images that the generator draws, pixels, read from its configurations alone; None where they do not say."""
    for denoiser in (f"{SUPER_RESOLUTION}/unet", f"{BASE}/unet", "unet", "transformer"):
        if (path / denoiser / "config.json").is_file():
            side = read_json(path / denoiser / "config.json").get("sample_size")
            return None if side is None else int(side) * _latent_factor(path)
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object without `_name_or_path`. Raises `DataError` naming the file."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    return {k: v for k, v in content.items() if k != "_name_or_path"}


def _latent_factor(path: Path) -> int:
    """Pixels a latent pixel, as diffusers reckons it from the autoencoder's levels; 1 in pixel space."""
    config = path / "vae" / "config.json"
    return 2 ** (len(read_json(config)["block_out_channels"]) - 1) if config.is_file() else 1


def _family(path: Path) -> Family:
    index = path / "model_index.json"
    if not index.is_file():
        index = path / BASE / "model_index.json"
    if not index.is_file():
        raise DataError(f"{path}: not a generator: neither model_index.json nor {BASE}/model_index.json is there")
    name = read_json(index).get("_class_name")
    if name not in FAMILIES:
        raise DataError(f"{path}: unknown family {name!r}; known: {', '.join(FAMILIES)}")
    if (FAMILIES[name] == "pixel_cascade") != (index.parent != path):
        raise DataError(f"{path}: a pixel cascade is a folder of {BASE}/ and {SUPER_RESOLUTION}/, any other pipeline lies at the top")
    return FAMILIES[name]


def _check_weights(path: Path) -> None:
    for folder in sorted({f for part in parts(path) for f in (part, *part.iterdir()) if f.is_dir()}):
        if list(folder.glob("*.safetensors")):
            continue
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
        if pickles or folder.name in _NETWORKS:
            raise DataError(
                f"{folder}: weights must be safetensors, found {', '.join(pickles) or 'nothing'}; "
                "convert with pipeline.save_pretrained(safe_serialization=True)"
            )


def _stated_licence(path: Path) -> str:
    """`license:` of the front matter of the base's README, as model hubs write it."""
    for readme in (path / "README.md", path / BASE / "README.md"):
        if not readme.is_file():
            continue
        head = readme.read_text("utf-8", errors="replace").split("---")
        for line in head[1].splitlines() if len(head) > 2 and not head[0].strip() else []:
            key, _, value = line.partition(":")
            if key.strip() == "license" and value.strip():
                return value.strip().strip("'\"")
    return "unknown"
