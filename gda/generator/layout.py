"""Which files of a diffusers repository make up a generator: the parts that its indexes name, with safetensors weights of one variant."""

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from gda.errors import DataError

INDEX = "model_index.json"
NETWORKS = frozenset({"unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"})
# A checker of finished images would black some out unseen; a synthetic set is judged by the gate, which says what it refuses.
UNUSED = frozenset({"safety_checker", "feature_extractor", "image_encoder", "watermarker"})
_SETTINGS = (".json", ".txt", ".model")  # configurations, vocabularies, merges, sentencepiece models
_SHARD = r"-\d{5}-of-\d{5}"
# `model.fp16.safetensors`, `model.fp16-00001-of-00002.safetensors` and, older, `model-00001-of-00002.fp16.safetensors`.
_WEIGHTS = re.compile(
    rf"(?P<stem>(?:diffusion_pytorch_)?model(?:{_SHARD})?)(?:\.(?P<variant>[\w.-]+?))?(?P<shard>{_SHARD})?\.safetensors", re.ASCII
)
# `model.safetensors.index.fp16.json` and, older, `model.safetensors.fp16.index.json`.
_SHARD_INDEX = re.compile(
    r"(?P<stem>(?:diffusion_pytorch_)?model)\.safetensors(?:\.(?P<older>[\w-]+))?\.index(?:\.(?P<variant>[\w.-]+))?\.json", re.ASCII
)
_ANY_SHARD_INDEX = re.compile(r".+\.index(?:\.[\w.-]+)?\.json", re.ASCII)


def used_files(name: str, files: Collection[str], indexes: Mapping[str, Mapping[str, Any]], variant: str | None) -> dict[str, str]:
    """Path without variant -> path in the repository, of every file that the generator is made of.

    `files` is the listing, `indexes` the content of each `model_index.json` by its path. A part without weights of the variant gives
    its plain ones, as in diffusers. Raises `DataError` naming `name` where a part or its safetensors weights are not in the listing,
    or no part has the variant.
    """
    if not indexes:
        raise DataError(f"{name}: holds no {INDEX}, so it is not a diffusers pipeline")
    if variant is not None and INDEX not in indexes:
        raise DataError(f"{name}: a pixel cascade is loaded without a variant, got {variant!r}")
    used = {index: index for index in indexes}
    variants: set[str | None] = set()
    for index, content in indexes.items():
        for part in _parts(content):
            folder = f"{index.removesuffix(INDEX)}{part}/"
            inside = {path.removeprefix(folder) for path in files if path.startswith(folder)}
            weights = _variants(inside)
            variants |= weights.keys()
            chosen = weights.get(variant) or weights.get(None) or {}
            chosen |= {
                file: file for file in inside if "/" not in file and file.endswith(_SETTINGS) and not _ANY_SHARD_INDEX.fullmatch(file)
            }
            _require_part(f"{name}: {folder}", part, inside, weights, variant)
            used |= {folder + plain: folder + file for plain, file in chosen.items()}
    if variant is not None and variant not in variants:
        raise DataError(f"{name}: has no variant {variant!r}; its variants: {_said(variants)}")
    return used


def missing_files(folder: Path, used: Mapping[str, str]) -> list[str]:
    """Paths of `used` that are not on disk below `folder`, and shards that an index names and nobody has."""
    absent = {file for file in used.values() if not (folder / file).is_file()}
    for plain, file in used.items():
        if _SHARD_INDEX.fullmatch(plain.rpartition("/")[2]) and file not in absent:
            near = file.rpartition("/")[0]
            absent |= {f"{near}/{shard}" for shard in _weight_map(folder / file).values()} - set(used.values())
    return sorted(absent)


def lay_out(folder: Path, used: Mapping[str, str], out: Path, copy: Callable[[Path, Path], object] = shutil.copyfile) -> None:
    """Put `used` files of `folder` below `out` under their paths without variant, so that plain diffusers loads it.

    `copy` may link rather than copy; indexes are written anew: of parts, because some are left out, and of shards, which are renamed.
    """
    indexes = [plain for plain in used if os.path.basename(plain) == INDEX]
    names = {os.path.basename(file): os.path.basename(plain) for plain, file in used.items()}
    for plain, file in used.items():
        target, base = out / plain, os.path.basename(plain)
        target.parent.mkdir(parents=True, exist_ok=True)
        if plain in indexes:
            continue
        if _SHARD_INDEX.fullmatch(base):
            renamed = {tensor: names[shard] for tensor, shard in _weight_map(folder / file).items()}
            _write(target, _read(folder / file) | {"weight_map": renamed})
        else:
            copy(folder / file, target)
    for index in indexes:
        copy_index(folder / index, out / index)


def copy_index(source: Path, target: Path) -> None:
    """Copy a `model_index.json` to where its parts lie already; unused parts that are not there are named as done without."""
    index = _read(source)
    absent = {part for part in UNUSED & index.keys() if not (target.parent / part).is_dir()}
    _write(target, {key: [None, None] if key in absent else value for key, value in index.items()})


def _parts(index: Mapping[str, Any]) -> list[str]:
    """What an index names and has: `[null, null]` stands for a part that the pipeline does without."""
    return sorted(k for k, v in index.items() if isinstance(v, list) and None not in v and not k.startswith("_") and k not in UNUSED)


def _variants(inside: Collection[str]) -> dict[str | None, dict[str, str]]:
    """Variant (None is the plain one) -> name without variant -> name, of a part's weights and their shard indexes."""
    found: dict[str | None, dict[str, str]] = {}
    indexes: dict[str | None, dict[str, str]] = {}
    for file in sorted(inside):
        if match := _WEIGHTS.fullmatch(file):
            found.setdefault(match["variant"], {})[f"{match['stem']}{match['shard'] or ''}.safetensors"] = file
        elif match := _SHARD_INDEX.fullmatch(file):
            indexes.setdefault(match["variant"] or match["older"], {})[f"{match['stem']}.safetensors.index.json"] = file
    return {variant: weights | indexes.get(variant, {}) for variant, weights in found.items()}


def _require_part(where: str, part: str, inside: Collection[str], weights: Mapping[str | None, Any], variant: str | None) -> None:
    if not inside:
        raise DataError(f"{where} is missing, which {INDEX} names")
    if part not in NETWORKS or variant in weights or None in weights:
        return
    if weights:
        raise DataError(f"{where} has weights of variants alone: {_said(set(weights))}; give ORG/NAME[@REVISION]:VARIANT")
    found = sorted(file for file in inside if not file.endswith(_SETTINGS))
    raise DataError(
        f"{where} weights must be safetensors, found {', '.join(found) or 'nothing'}; "
        "convert with pipeline.save_pretrained(safe_serialization=True)"
    )


def _said(variants: Collection[str | None]) -> str:
    return ", ".join(sorted(v for v in variants if v is not None)) or "none"


def _weight_map(path: Path) -> dict[str, str]:
    content = _read(path).get("weight_map")
    if not isinstance(content, dict):
        raise DataError(f"{path}: not an index of shards: weight_map is missing")
    return content


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
