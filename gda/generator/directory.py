"""Generators as directories: where they are, which family they belong to, and whether their weights are safe to open."""

import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gda.artifacts import Family, GeneratorCard, read_document
from gda.errors import DataError, MissingError
from gda.generator import hub
from gda.generator.layout import INDEX, NETWORKS, copy_index, lay_out
from gda.generator.verified import require_generator
from gda.io.tensors import directory_digest
from gda.recipe import digest_of

DEMO_BASE = "demo://glyphs"
BASE, SUPER_RESOLUTION, UPSCALER = "base", "super_resolution", "upscaler"
FAMILIES: dict[str, Family] = {
    "IFPipeline": "pixel_cascade",
    "StableDiffusionPipeline": "latent_unet",
    "StableDiffusionXLPipeline": "latent_unet",
    "StableDiffusion3Pipeline": "flow_transformer",
}
_CASCADE_STAGES = ("IFPipeline", "IFSuperResolutionPipeline")
_DEMO_PATH = Path(__file__).resolve().parent.parent / "assets" / "demo_base"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def resolve(name: str) -> Path:
    """The directory of a base or generator, of a hub id its snapshot in the hub cache, downloaded where it is not there yet.

    Raises `MissingError` when there is none, with what to do about it, `DataError` for a repository of another kind.
    """
    if (found := _snapshot(name)) is not None:
        return found.folder
    path = _DEMO_PATH if name == DEMO_BASE else Path(name)
    if not path.is_dir():
        accepted = f"a directory that holds a diffusers pipeline or a pixel cascade, a hub id {hub.FORM}, or {DEMO_BASE}"
        raise MissingError(f"{name}: no such generator directory" + ("" if name == DEMO_BASE else f"; give {accepted}"))
    return path


def read_card(name: str) -> GeneratorCard:
    """`generator.json` when there is one, else a card for plain weights with the licence that their README states, if any.

    Raises `MissingError` for a missing directory, `DataError` for an unknown family, pickled weights, or files that are
    not what its card names.
    """
    found = _snapshot(name)
    path = resolve(name) if found is None else found.folder
    family = _family(path)
    if found is None:
        _check_weights(path)
    stored = read_document(path / "generator.json", GeneratorCard) if (path / "generator.json").is_file() else None
    if stored is not None and variant_of(name) is None:
        return require_generator(
            path, stored, lambda: weights_digest(path) if found is None else _snapshot_digest(found), listed=found is None
        )
    digest = weights_digest(path) if found is None else _snapshot_digest(found)
    if stored is not None:
        return stored.model_copy(update={"digest": digest})
    return GeneratorCard(family=family, digest=digest, licence=_stated_licence(path), source=source_of(name))


def source_of(name: str) -> str:
    """Where a base comes from, without this machine's paths: hub id with commit, `demo://glyphs`, or a directory's own name."""
    if (found := _snapshot(name)) is not None:
        return str(found.pinned)
    return name if name == DEMO_BASE else Path(name).resolve().name


def is_here(name: str) -> bool:
    """Whether a base or generator can be read without a download."""
    spec = _hub_id(name)
    return name == DEMO_BASE or Path(name).is_dir() if spec is None else hub.in_cache(spec, lambda folder: _family(folder, spec))


def variant_of(name: str) -> str | None:
    """The variant that a hub id asks for; None for plain weights and for every directory."""
    spec = _hub_id(name)
    return spec.variant if spec is not None else None


def copy_parts(name: str, out: Path) -> None:
    """Copy the parts and their indexes to `out`; file names lose the variant, so that plain diffusers loads them."""
    if (found := _snapshot(name)) is not None:
        return lay_out(found.folder, found.used, out)
    source = resolve(name)
    for part in parts(source):
        shutil.copytree(part, out / part.name, ignore=shutil.ignore_patterns("__pycache__", ".cache"))
    if (source / INDEX).is_file():
        copy_index(source / INDEX, out / INDEX)
    return None


def parts(path: Path) -> list[Path]:
    """The directories that make up the generator: a cascade's stages, or the parts that `model_index.json` names."""
    if not (path / "model_index.json").is_file():
        return [path / stage for stage in (BASE, SUPER_RESOLUTION, UPSCALER) if (path / stage).is_dir()]
    return [path / key for key in sorted(read_json(path / "model_index.json")) if (path / key).is_dir()]


def weights_digest(path: Path) -> str:
    """Content digest over the tensors and configurations of every part, not over cards or file framing."""
    return digest_of({part.name: directory_digest(part) for part in parts(path)})


def drawn_side(path: Path) -> int | None:
    """Side of the images that the generator draws, pixels, read from its configurations alone; None where they do not say."""
    for denoiser in (f"{SUPER_RESOLUTION}/unet", f"{BASE}/unet", "unet", "transformer"):
        if (path / denoiser / "config.json").is_file():
            side = read_json(path / denoiser / "config.json").get("sample_size")
            return None if side is None else int(side) * _latent_factor(path) * _latent_factor(path / UPSCALER)
    return None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object without `_name_or_path`. Raises `DataError` naming the file."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    return {k: v for k, v in content.items() if k != "_name_or_path"}


def _hub_id(name: str) -> hub.HubId | None:
    """A directory of that name is that directory, whatever the name looks like."""
    return None if Path(name).is_dir() else hub.parse(name)


def _snapshot(name: str) -> hub.Snapshot | None:
    spec = _hub_id(name)
    return hub.locate(spec, lambda folder: _family(folder, spec)) if spec is not None else None


def _snapshot_digest(found: hub.Snapshot) -> str:
    """Digest of the files in use alone, under their plain names: the cache may hold other variants of the same commit."""
    with TemporaryDirectory() as folder:
        lay_out(found.folder, found.used, Path(folder), copy=os.symlink)
        return weights_digest(Path(folder))


def _latent_factor(path: Path) -> int:
    """Pixels a latent pixel, as diffusers reckons it from the autoencoder's levels; 1 in pixel space."""
    config = path / "vae" / "config.json"
    return 2 ** (len(read_json(config)["block_out_channels"]) - 1) if config.is_file() else 1


def _family(path: Path, spec: hub.HubId | None = None) -> Family:
    index = path / INDEX
    if not index.is_file():
        index = path / BASE / INDEX
    said = spec or path
    if not index.is_file():
        raise DataError(f"{said}: not a generator: neither {INDEX} nor {BASE}/{INDEX} is there")
    name = read_json(index).get("_class_name")
    if name in _CASCADE_STAGES and index.parent == path:
        raise DataError(f"{said}: {name} alone; a pixel cascade is a folder of {BASE}/ and {SUPER_RESOLUTION}/{_how_to_lay_out(spec)}")
    if name not in FAMILIES:
        raise DataError(f"{said}: unknown family {name!r}; known: {', '.join(FAMILIES)}")
    if FAMILIES[name] != "pixel_cascade" and index.parent != path:
        raise DataError(f"{said}: a pixel cascade is a folder of {BASE}/ and {SUPER_RESOLUTION}/, any other pipeline lies at the top")
    return FAMILIES[name]


def _how_to_lay_out(spec: hub.HubId | None) -> str:
    if spec is None:
        return ""
    command = hub.download_command(hub.HubId(repo=spec.repo, revision=spec.revision))
    return (
        f": `{command} --local-dir CASCADE/{BASE}` for the base stage and the same for the super-resolution stage's repository with "
        f"CASCADE/{SUPER_RESOLUTION}, then give CASCADE"
    )


def _check_weights(path: Path) -> None:
    for folder in sorted({f for part in parts(path) for f in (part, *part.iterdir()) if f.is_dir()}):
        if list(folder.glob("*.safetensors")):
            continue
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
        if pickles or folder.name in NETWORKS:
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
