"""Which files of a diffusers repository make up a generator: the parts that its indexes name, with safetensors weights of one variant."""

import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gda.errors import DataError
from gda.generator.weights.json_files import read_config_object, write_object
from gda.io.tensors import VOCABULARIES

INDEX = "model_index.json"
BASE, SUPER_RESOLUTION, UPSCALER = "base", "super_resolution", "upscaler"
CASCADE_STAGES = (BASE, SUPER_RESOLUTION, UPSCALER)
NETWORKS = frozenset({"unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"})
# A safety checker would silently black out some images; the gate assesses synthetic sets and reports what it rejects.
UNUSED = frozenset({"safety_checker", "feature_extractor", "image_encoder", "watermarker"})
# The super-resolution stage uses the base's text states; its repository holds a second copy of the same large encoder.
_SHARED = {"IFSuperResolutionPipeline": frozenset({"text_encoder", "tokenizer"})}
# Configurations and vocabularies; `adapter_config.json` is listed so that checks refuse it: transformers would load its target.
_SETTINGS = frozenset(
    {
        "config.json",
        "scheduler_config.json",
        "adapter_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        *VOCABULARIES,
    }
)
_SHARD = r"-\d{5}-of-\d{5}"
# `model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors` and, older, `model-00001-of-00002.fp16.safetensors`.
_WEIGHTS = re.compile(
    rf"(?P<kind>(?:diffusion_pytorch_)?model)(?P<early>{_SHARD})?(?:\.(?P<variant>[\w.-]+?))?(?P<shard>{_SHARD})?\.safetensors", re.ASCII
)
# `model.safetensors.index.fp16.json` and, older, `model.safetensors.fp16.index.json`.
_SHARD_INDEX = re.compile(
    r"(?P<stem>(?:diffusion_pytorch_)?model)\.safetensors(?:\.(?P<older>[\w-]+))?\.index(?:\.(?P<variant>[\w.-]+))?\.json", re.ASCII
)


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files of a generator: `used` maps paths without variant to paths below `folder`; no other file is ever opened.

    Error messages use `name`.
    """

    name: str
    folder: Path
    used: dict[str, str]

    def path(self, plain: str) -> Path:
        """The file of that path without variant."""
        return self.folder / self.used[plain]

    def below(self, *prefixes: str) -> dict[str, Path]:
        """Plain path -> file, of the parts whose names start with a prefix, e.g. `text_encoder` and `text_encoder_2`, in every stage."""
        return {plain: self.path(plain) for plain in sorted(self.used) if f"/{plain}".split("/")[-2].startswith(prefixes)}

    def indexes(self) -> dict[str, dict[str, Any]]:
        """Content of each `model_index.json` by its path."""
        return {plain: read_config_object(self.path(plain)) for plain in sorted(self.used) if os.path.basename(plain) == INDEX}

    def where(self, plain: str) -> str:
        """The file's name in error messages: its path, or hub id and path."""
        return str(self.path(plain)) if self.name == str(self.folder) else f"{self.name}: {self.used[plain]}"

    @contextmanager
    def laid_out(self) -> Iterator[Path]:
        """A folder of links to the used files under their plain names, so that libraries find no other file."""
        with TemporaryDirectory(prefix="gda-") as folder:
            lay_out(self.folder, self.used, Path(folder), copy=lambda file, link: os.symlink(file.absolute(), link))
            try:
                yield Path(folder)
            except DataError as error:  # messages should name the file, not the link to it
                raise DataError(str(error).replace(folder, str(self.folder))) from None


def index_paths(files: Collection[str]) -> list[str]:
    """The `model_index.json` at the top, or else those of a cascade's stages."""
    return [INDEX] if INDEX in files else [path for stage in CASCADE_STAGES if (path := f"{stage}/{INDEX}") in files]


def files_of_directory(folder: Path) -> Files:
    """The used files of a directory. Plain weights come first; parts without them use the one variant that all such parts have.

    Raises `DataError` as `used_files` does, for missing shards, and if several variants are possible.
    """
    tops = [folder] if (folder / INDEX).is_file() else [folder / stage for stage in CASCADE_STAGES]
    found = [p for top in tops if top.is_dir() for p in (*top.iterdir(), *(q for d in top.iterdir() if d.is_dir() for q in d.iterdir()))]
    listing = {p.relative_to(folder).as_posix() for p in found if p.is_file()}
    indexes = {path: read_config_object(folder / path) for path in index_paths(listing)}
    used = used_files(str(folder), listing, indexes, _lone_variant(listing, indexes), plain_first=True)
    if missing := missing_files(folder, used):
        raise DataError(f"{folder / missing[0]}: is missing, but the part's index of shards names it")
    return Files(name=str(folder), folder=folder, used=used)


def used_files(
    name: str, files: Collection[str], indexes: Mapping[str, Mapping[str, Any]], variant: str | None, *, plain_first: bool = False
) -> dict[str, str]:
    """Path without variant -> path in the repository, of every file of the generator.

    `files` is the listing, `indexes` the content of each `model_index.json` by its path. A part without weights of the variant uses
    its plain ones, as in diffusers; with `plain_first` only parts without plain ones use the variant. Raises `DataError` naming `name`
    if a part or its safetensors weights are not in the listing, or no part has the variant.
    """
    if not indexes:
        raise DataError(f"{name}: holds no {INDEX}, so it is not a diffusers pipeline")
    if variant is not None and INDEX not in indexes and not plain_first:
        raise DataError(f"{name}: a pixel cascade is loaded without a variant, got {variant!r}")
    used = {index: index for index in indexes}
    variants: set[str | None] = set()
    for part, folder, inside in _parts_of(files, indexes):
        weights = _variants(part, inside)
        variants |= weights.keys()
        order = (None, variant) if plain_first else (variant, None)
        chosen = next((weights[kind] for kind in order if kind in weights), {})
        chosen |= {file: file for file in inside & _SETTINGS}
        _require_part(name, folder, part, inside, weights, variant)
        used |= {folder + plain: folder + file for plain, file in chosen.items()}
    if variant is not None and variant not in variants:
        raise DataError(f"{name}: has no variant {variant!r}; its variants: {_listed(variants)}")
    return used


def missing_files(folder: Path, used: Mapping[str, str]) -> list[str]:
    """Paths of `used` that are not on disk below `folder`, and shards that an index names but `used` lacks."""
    absent = {file for file in used.values() if not (folder / file).is_file()}
    for plain, file in used.items():
        if _SHARD_INDEX.fullmatch(plain.rpartition("/")[2]) and file not in absent:
            near = file.rpartition("/")[0]
            absent |= {f"{near}/{shard}" for shard in _weight_map(folder / file).values()} - set(used.values())
    return sorted(absent)


def lay_out(folder: Path, used: Mapping[str, str], out: Path, copy: Callable[[Path, Path], object] = shutil.copyfile) -> None:
    """Put `used` files of `folder` below `out` under their paths without variant, so that plain diffusers loads it.

    `copy` may create links instead. Indexes are rewritten: some parts are left out, and shards are renamed.
    """
    indexes = [plain for plain in used if os.path.basename(plain) == INDEX]
    names = {file: os.path.basename(plain) for plain, file in used.items()}
    for plain, file in used.items():
        target = out / plain
        target.parent.mkdir(parents=True, exist_ok=True)
        if plain in indexes:
            continue
        if _SHARD_INDEX.fullmatch(os.path.basename(plain)):
            near = os.path.dirname(file)
            renamed = {tensor: names[f"{near}/{shard}"] for tensor, shard in _weight_map(folder / file).items()}
            write_object(target, read_config_object(folder / file) | {"weight_map": renamed})
        else:
            copy(folder / file, target)
    for index in indexes:
        _copy_index(folder / index, out / index)


def null_parts(index: Mapping[str, Any]) -> list[str]:
    """The parts that are `[null, null]` in an index: the pipeline has none."""
    return sorted(key for key, value in index.items() if isinstance(value, list) and value and set(map(str, value)) == {"None"})


def unused_parts(index: Mapping[str, Any]) -> frozenset[str]:
    """The parts that are never opened, even if an index names them."""
    return UNUSED | _SHARED.get(str(index.get("_class_name")), frozenset())


def _copy_index(source: Path, target: Path) -> None:
    """Write a `model_index.json` next to its parts; unused parts that are not there become `[null, null]`."""
    index = read_config_object(source)
    absent = {part for part in unused_parts(index) & index.keys() if not (target.parent / part).is_dir()}
    write_object(target, {key: [None, None] if key in absent else value for key, value in index.items()})


def _parts_of(files: Collection[str], indexes: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, set[str]]]:
    """Name, folder and files of each part that an index names, without null and unused parts."""
    for path, index in indexes.items():
        without = unused_parts(index) | set(null_parts(index))
        for part in sorted(key for key, value in index.items() if isinstance(value, list) and not key.startswith("_")):
            if part not in without:
                folder = f"{path.removesuffix(INDEX)}{part}/"
                inside = {file.removeprefix(folder) for file in files if file.startswith(folder)}
                yield part, folder, {file for file in inside if "/" not in file}


def _lone_variant(files: Collection[str], indexes: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The only variant that every part without plain weights has; None if there is no such part or not exactly one such variant."""
    found = [_variants(part, inside).keys() for part, _, inside in _parts_of(files, indexes) if part in NETWORKS]
    lacking = [set(variants) for variants in found if variants and None not in variants]
    common = set.intersection(*lacking) if lacking else set()
    return common.pop() if len(common) == 1 else None


def _variants(part: str, inside: Collection[str]) -> dict[str | None, dict[str, str]]:
    """Variant (None is the plain one) -> name without variant -> name, of a part's weights and their shard indexes."""
    kind = _weights_name(part)
    found: dict[str | None, dict[str, str]] = {}
    indexes: dict[str | None, dict[str, str]] = {}
    for file in sorted(inside):
        if (match := _WEIGHTS.fullmatch(file)) and match["kind"] == kind:
            found.setdefault(match["variant"], {})[f"{kind}{match['early'] or match['shard'] or ''}.safetensors"] = file
        elif (match := _SHARD_INDEX.fullmatch(file)) and match["stem"] == kind:
            indexes.setdefault(match["variant"] or match["older"], {})[f"{kind}.safetensors.index.json"] = file
    return {variant: weights | indexes.get(variant, {}) for variant, weights in found.items()}


def _weights_name(part: str) -> str:
    """The file name of a part's weights: that of transformers for text encoders, that of diffusers for the others."""
    return "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"


def _require_part(
    name: str, folder: str, part: str, inside: Collection[str], weights: Mapping[str | None, Any], variant: str | None
) -> None:
    where = f"{name}: {folder}"
    if not inside:
        raise DataError(f"{where} is missing, but {INDEX} names it")
    if part not in NETWORKS or variant in weights or None in weights:
        return
    if weights:
        raise DataError(
            f"{where} has weights of variants alone: {_listed(set(weights))}; give a hub id as ORG/NAME[@REVISION]:VARIANT, "
            "or a directory with the files of one variant"
        )
    found = sorted(file for file in inside if not file.endswith((".json", ".txt", ".model")))
    raise DataError(
        f"{where} weights must be safetensors, found {', '.join(found) or 'nothing'}; "
        f"convert with pipeline.save_pretrained(safe_serialization=True), which writes {_weights_name(part)}.safetensors"
    )


def _listed(variants: Collection[str | None]) -> str:
    return ", ".join(sorted(v for v in variants if v is not None)) or "none"


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor -> shard. Raises `DataError` for anything but the name of a safetensors file in the same folder."""
    content = read_config_object(path).get("weight_map")
    if not isinstance(content, dict):
        raise DataError(f"{path}: not an index of shards: weight_map must be an object, found {content!r}")
    for shard in content.values():
        if not isinstance(shard, str) or not _WEIGHTS.fullmatch(shard):
            raise DataError(f"{path}: weight_map names {shard!r}; accepted: safetensors shards in the same folder")
    return content
