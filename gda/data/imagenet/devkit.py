"""Files that map ImageNet's class numbers to WordNet ids: the devkit's meta.mat and map_clsloc.txt, and ordered lists of synsets.

An ILSVRC2012_ID (1 to 1000) is not a position in the order of the WordNet ids: 1 is n02119789, the kit fox.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from gda.data.imagenet.matlab import Value, read_struct
from gda.data.imagenet.wordnet import is_wordnet_id
from gda.data.images.listing import Folder
from gda.errors import DataError
from gda.runtime.reading import MIB, read_bytes, read_text, whole_number

_META, _MAP = ("meta.mat", "meta_clsloc.mat"), "map_clsloc.txt"
_LISTS = re.compile(r"((imagenet_)?(lsvrc_20[0-9]{2}_)?synsets|synset_words|loc_synset_mapping)\.txt")
_ID_FIELD = re.compile(r"ILSVRC20[0-9]{2}_ID")
_SYNSETS, _WORDNET_FIELD = "synsets", "WNID"
_MOST_BYTES = 64 * MIB  # of meta.mat, packed and unpacked; it has half of one


def ids_of_devkit(root: Folder, ground_truth: Path) -> tuple[dict[int, str], list[Path]]:
    """WordNet id by ILSVRC2012_ID, and the files below `root` that it was read from.

    Raises `DataError` where there is no file, one cannot be read, or two disagree; the message names `ground_truth`, which needs them.
    """
    files = _named(root, lambda name: name in (*_META, _MAP))
    if not files:
        raise DataError(
            f"{ground_truth}: holds the devkit's own class numbers, and below {root.path} there is no meta.mat, which maps them to "
            "WordNet ids; put it next to the file (ILSVRC2012_devkit_t12/data/meta.mat)"
        )
    found = {path: _read_map(path) if path.name == _MAP else _read_meta(path) for path in files}
    first, ids = files[0], found[files[0]]
    for path in files[1:]:
        if other := next((number for number, name in found[path].items() if ids.get(number, name) != name), None):
            raise DataError(
                f"{first} and {path} disagree: class {other} is {ids[other]} or {found[path][other]}; remove the one that is wrong"
            )
    return {number: name for read in found.values() for number, name in read.items()}, files


def listed_synsets(root: Folder) -> tuple[list[str], list[Path]]:
    """WordNet ids in the order of a synsets.txt, synset_words.txt or LOC_synset_mapping.txt below `root`, and the files read.

    Both are empty where there is no such file. Raises `DataError` for a file that is no such list, or two that differ.
    """
    files = _named(root, lambda name: _LISTS.fullmatch(name) is not None)
    found = [_read_list(path) for path in files]
    for path, synsets in zip(files, found, strict=True):
        if synsets != found[0]:
            raise DataError(f"{files[0]} and {path} list different classes, or in a different order; remove the wrong one")
    return (found[0] if found else []), files


def _named(root: Folder, is_wanted: Callable[[str], bool]) -> list[Path]:
    return sorted(path for folder in root.walk() for path in folder.others if is_wanted(path.name.lower()))


def _read_list(path: Path) -> list[str]:
    synsets: dict[str, None] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        name = line.split(maxsplit=1)[0] if line.strip() else None
        if name is not None and (not is_wordnet_id(name) or name in synsets):
            raise DataError(f"{path} line {number}: {name!r} is no WordNet id, or is listed twice")
        if name is not None:
            synsets[name] = None
    return list(synsets)


def _read_map(path: Path) -> dict[int, str]:
    """WordNet id by number, from lines such as "n02119789 1 kit_fox"."""
    found: dict[int, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) < 2 or not is_wordnet_id(fields[0]) or (class_number := whole_number(fields[1])) is None:
            raise DataError(f"{path} line {number}: expected a WordNet id and a number, such as n02119789 1 kit_fox")
        _add(found, class_number, fields[0], path)
    return found


def _read_meta(path: Path) -> dict[int, str]:
    try:
        entries = read_struct(read_bytes(path, limit=_MOST_BYTES), _SYNSETS, limit=_MOST_BYTES)
    except ValueError as error:
        raise DataError(f"{path}: not a MATLAB file of version 5 ({error})") from None
    found: dict[int, str] = {}
    for entry in entries or [{}]:
        _add(found, *_synset(entry, path), path)
    return found


def _synset(fields: Mapping[str, Value], path: Path) -> tuple[int, str]:
    number = next((value for name, value in fields.items() if _ID_FIELD.fullmatch(name)), None)
    name = fields.get(_WORDNET_FIELD)
    number = int(number) if isinstance(number, float) and number.is_integer() else number
    if not isinstance(number, int) or not isinstance(name, str) or not is_wordnet_id(name):
        raise DataError(f"{path}: expected a variable synsets with the fields ILSVRC2012_ID and WNID, as the devkit has it")
    return number, name


def _add(found: dict[int, str], number: int, name: str, path: Path) -> None:
    if found.setdefault(number, name) != name:
        raise DataError(f"{path}: class {number} is both {found[number]} and {name}")
