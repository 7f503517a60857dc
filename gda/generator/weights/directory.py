"""Generators as directories: where they are, which family they belong to, and whether their weights are safe to open."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from gda.artifacts.cards import Family, GeneratorCard
from gda.artifacts.document import read_document
from gda.artifacts.fingerprint import digest_of
from gda.errors import DataError, MissingError
from gda.generator.weights import hub
from gda.generator.weights.base_checks import check_base, square_side
from gda.generator.weights.json_files import read_config_object
from gda.generator.weights.layout import BASE as BASE
from gda.generator.weights.layout import CASCADE_STAGES, INDEX, SUPER_RESOLUTION, Files, files_of_directory, lay_out
from gda.generator.weights.layout import UPSCALER as UPSCALER
from gda.generator.weights.verified import require_generator
from gda.io.tensors import directory_digest

DEMO_BASE = "demo://glyphs"
FAMILIES: dict[str, Family] = {
    "IFPipeline": "pixel_cascade",
    "StableDiffusionPipeline": "latent_unet",
    "StableDiffusionXLPipeline": "latent_unet",
    "StableDiffusion3Pipeline": "flow_transformer",
}
_CASCADE_STAGES = ("IFPipeline", "IFSuperResolutionPipeline")
_DEMO_PATH = Path(str(files("gda") / "assets/demo_base"))
_CHECKPOINTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")


def resolve(name: str) -> Path:
    """The directory of a base or generator; for a hub id its snapshot in the hub cache, downloaded if it is not there yet.

    Raises `MissingError` with advice when there is none, `DataError` for a repository of another kind.
    """
    if (found := _snapshot(name)) is not None:
        return found.folder
    path = _DEMO_PATH if name == DEMO_BASE else Path(name)
    if path.is_file():
        raise DataError(_single_file(path))
    if not path.is_dir():
        accepted = f"a directory that holds a diffusers pipeline or a pixel cascade, a hub id {hub.HUB_ID_FORM}, or {DEMO_BASE}"
        raise MissingError(f"{name}: no such generator directory" + ("" if name == DEMO_BASE else f"; give {accepted}"))
    return path


def files_of(name: str) -> Files:
    """The files of a base or generator, after checking that its family supports their configurations.

    Raises `MissingError` for a missing directory, `DataError` for an unknown family, pickled weights or an unsupported configuration.
    """
    found: Files | None = _snapshot(name)
    if found is None:
        path = resolve(name)
        _family(path)
        found = files_of_directory(path)
    check_base(found)
    return found


def read_card(name: str) -> GeneratorCard:
    """`generator.json` when there is one, else a card for plain weights with the licence that their README states, if any.

    Raises as `files_of` does, and `DataError` for a card of another family or with another digest than the files.
    """
    files = files_of(name)
    path, family = files.folder, _family(files.folder)
    stored = read_document(path / "generator.json", GeneratorCard) if (path / "generator.json").is_file() else None
    if stored is not None and stored.family != family:
        raise DataError(f"{path / 'generator.json'}: family {stored.family!r}, but its {INDEX} is that of a {family}")
    if stored is not None and variant_of(name) is None:
        return require_generator(path, stored, lambda: _digest_of(files), listed=_hub_id(name) is None)
    digest = _digest_of(files)
    if stored is not None:
        return stored.model_copy(update={"digest": digest})
    return GeneratorCard(family=family, digest=digest, licence=_stated_licence(path), source=source_of(name))


def _digest_of(files: Files) -> str:
    with files.laid_out() as folder:
        return weights_digest(folder)


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
    """The variant that a hub id requests; None for plain weights and for every directory."""
    spec = _hub_id(name)
    return spec.variant if spec is not None else None


def copy_parts(name: str, out: Path) -> None:
    """Copy the files in use and their indexes to `out`; file names lose the variant, so that plain diffusers loads them."""
    files = files_of(name)
    lay_out(files.folder, files.used, out)


def parts(path: Path) -> list[Path]:
    """The directories that make up the generator: a cascade's stages, or the parts that `model_index.json` names."""
    if not (path / INDEX).is_file():
        return [path / stage for stage in CASCADE_STAGES if (path / stage).is_dir()]
    return [path / key for key in sorted(read_base_json(path / INDEX)) if (path / key).is_dir()]


def weights_digest(path: Path) -> str:
    """Content digest over the tensors and configurations of every part, not over cards or file framing."""
    content: dict[str, Any] = {part.name: directory_digest(part) for part in parts(path)}
    # The only field of the index that changes training and sampling; included if it differs from diffusers' default.
    if (path / INDEX).is_file() and read_base_json(path / INDEX).get("force_zeros_for_empty_prompt") is False:
        content["force_zeros_for_empty_prompt"] = False
    return digest_of(content)


def generated_size(path: Path) -> int | None:
    """Side of the images that the generator samples, pixels, read from its configurations alone; None if they do not state it."""
    for denoiser in (f"{SUPER_RESOLUTION}/unet", f"{BASE}/unet", "unet", "transformer"):
        config = path / denoiser / "config.json"
        if config.is_file():
            if read_base_json(config).get("sample_size") is None:
                return None
            return square_side(config) * _latent_factor(path) * _latent_factor(path / UPSCALER)
    return None


def read_base_json(path: Path) -> dict[str, Any]:
    """A JSON object without `_name_or_path`. Raises `DataError` naming the file."""
    return {k: v for k, v in read_config_object(path).items() if k != "_name_or_path"}


def _hub_id(name: str) -> hub.HubId | None:
    """The hub id, or None for another form; an existing directory or file of that name takes precedence."""
    return None if Path(name).exists() else hub.parse(name)


def _snapshot(name: str) -> hub.HubSnapshot | None:
    spec = _hub_id(name)
    return hub.locate(spec, lambda folder: _family(folder, spec)) if spec is not None else None


def _latent_factor(path: Path) -> int:
    """Pixels per latent pixel, computed from the autoencoder's levels as in diffusers; 1 in pixel space."""
    config = path / "vae" / "config.json"
    if not config.is_file():
        return 1
    levels = read_base_json(config).get("block_out_channels")
    if not isinstance(levels, list) or not levels:
        raise DataError(f"{config}: block_out_channels must be a list of whole numbers, found {levels!r}")
    return 1 << (len(levels) - 1)


def _family(path: Path, spec: hub.HubId | None = None) -> Family:
    index = path / INDEX
    if not index.is_file():
        index = path / BASE / INDEX
    named = spec or path
    if not index.is_file():
        single = sorted(file for file in path.glob("*") if file.suffix in (".safetensors", ".ckpt") and file.is_file())
        hint = f"; {_single_file(single[0])}" if single else ""
        raise DataError(f"{named}: not a generator: neither {INDEX} nor {BASE}/{INDEX} is there{hint}")
    name = read_base_json(index).get("_class_name")
    if not isinstance(name, str):
        raise DataError(
            f"{named}: {index.relative_to(path)}: _class_name must be the name of a pipeline of diffusers, found {name!r}; code that a "
            f"directory brings is never run; known: {', '.join(FAMILIES)}"
        )
    if name in _CASCADE_STAGES and index.parent == path:
        raise DataError(f"{named}: {name} alone; a pixel cascade is a folder of {BASE}/ and {SUPER_RESOLUTION}/{_how_to_lay_out(spec)}")
    if name not in FAMILIES:
        raise DataError(f"{named}: unknown family {name!r}; known: {', '.join(FAMILIES)}")
    if FAMILIES[name] != "pixel_cascade" and index.parent != path:
        raise DataError(f"{named}: a pixel cascade is a folder of {BASE}/ and {SUPER_RESOLUTION}/, any other pipeline lies at the top")
    return FAMILIES[name]


def _how_to_lay_out(spec: hub.HubId | None) -> str:
    if spec is None:
        return ""
    command = hub.download_command(hub.HubId(repo=spec.repo, revision=spec.revision))
    return (
        f": `{command} --local-dir CASCADE/{BASE}` for the base stage and the same for the super-resolution stage's repository with "
        f"CASCADE/{SUPER_RESOLUTION}, then give CASCADE"
    )


def _single_file(path: Path) -> str:
    """The message for a single file given as a base, with advice."""
    if not path.name.endswith(_CHECKPOINTS):
        return f"{path}: is a file; a base is a directory that holds a diffusers pipeline, a hub id {hub.HUB_ID_FORM}, or {DEMO_BASE}"
    code = f"from diffusers import StableDiffusionPipeline as P; P.from_single_file({str(path)!r}).save_pretrained('DIRECTORY')"
    return (
        f"{path}: is a single-file checkpoint; a base is a directory of a diffusers pipeline, so convert it once where there is a network, "
        f'with the pipeline that it belongs to: python -c "{code}" and give DIRECTORY'
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
