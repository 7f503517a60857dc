"""Label files of a flat folder of images, such as ImageNet's validation images. The form is recognised by content:

- a line for each image, "ILSVRC2012_val_00000001.JPEG n01751748", with or without more fields (Kaggle's LOC_val_solution.csv has boxes);
- the same with a position among the classes in the order of their WordNet ids, from 0 (Caffe's val.txt);
- one WordNet id on each line, in the order of the images (imagenet_2012_validation_synset_labels.txt);
- one ILSVRC2012_ID on each line, in the order of the images (ILSVRC2012_validation_ground_truth.txt, see `gda.data.imagenet.devkit`).
"""

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gda.data.imagenet.devkit import ids_of_devkit, listed_synsets
from gda.data.imagenet.wordnet import is_wordnet_id
from gda.data.images.listing import IMAGE_ENDINGS, Folder
from gda.errors import DataError
from gda.runtime.reading import read_text

LABELS_ACCEPTED = (
    "ILSVRC2012_validation_ground_truth.txt with meta.mat, LOC_val_solution.csv, imagenet_2012_validation_synset_labels.txt, "
    "or a val.txt with an image and its label on each line"
)
_ENDINGS = (".txt", ".csv", ".tsv")
_OF_VAL = re.compile(r"ILSVRC2012_val_([0-9]{8})")
_OF_TEST = re.compile(r"ILSVRC20[0-9]{2}_test_[0-9]{8}")  # whose labels were never published
_GROUND_TRUTH = re.compile(r"ilsvrc201[2-9]_(clsloc_)?validation_ground_truth\.txt")
_IN_ORDER = re.compile(r"(\w+_)?val(idation)?_(synset_|wnid_)?labels\.txt")
_NUMBER = re.compile(r"[0-9]{1,6}")
_BETWEEN = re.compile(r"[\s,]+")
_FIRST = 2  # lines from which the form of a file is recognised: the first may be a header
_FIRST_BYTES = 4096


@dataclass(frozen=True)
class ImageNetLabels:
    """The WordNet id of each image, and the files that it was read from."""

    labels: dict[Path, str]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class _Row:
    where: str  # file and line
    fields: list[str]


@dataclass(frozen=True)
class _Entry:
    """An image's label, and the file and line where it stands."""

    where: str
    image: str
    label: str


@dataclass(frozen=True)
class _Read:
    entries: list[_Entry]
    with_files: list[Path]  # that define the labels


def labels_of(images: Sequence[Path], root: Folder, wordnet_ids: Sequence[str]) -> ImageNetLabels | None:
    """The labels of the `images` of one folder, from files below `root`; None where there are none. `wordnet_ids` are those of train.

    Raises `DataError` where a file does not name each image once, a label is none of `wordnet_ids` or is ambiguous, and where two files
    disagree.
    """
    by_name = {path.stem: path for path in images}
    if len(by_name) < len(images):
        raise DataError(f"{images[0].parent}: two images have the same name but for the ending; rename one of them")
    if all(map(_OF_TEST.fullmatch, by_name)):
        return None
    found: dict[Path, dict[str, str]] = {}
    used: list[Path] = []
    for path in _candidates(root):
        if (read := _read(path, by_name, root, sorted(wordnet_ids))) is not None:
            _require_each_once(path, read.entries, by_name)
            _require_trained(read.entries, wordnet_ids)
            found[path] = {entry.image: entry.label for entry in read.entries}
            used += [path, *read.with_files]
    _require_agreement(found)
    labels = next(iter(found.values()), None)
    return None if labels is None else ImageNetLabels({by_name[name]: labels[name] for name in labels}, tuple(dict.fromkeys(used)))


def _candidates(root: Folder) -> list[Path]:
    found = [path for folder in root.walk() for path in folder.others if path.suffix.lower() in _ENDINGS]
    return sorted(path for path in found if "submission" not in path.name.lower())  # Kaggle's sample, whose labels are invented


def _read(path: Path, by_name: Collection[str], root: Folder, wordnet_ids: Sequence[str]) -> _Read | None:
    """The labels in a file, None where it is no label file. Raises `DataError` for a line that does not fit the others."""
    first, name = _first_lines(path), path.name.lower()
    if any(_labels_an_image(fields, by_name) for fields in first):
        rows = _rows(path)
        start = next((number for number, row in enumerate(rows[:_FIRST]) if _labels_an_image(row.fields, by_name)), None)
        if start is None:
            raise DataError(f"{path}: its first lines have no recognised form; write one line for each image")
        rows = rows[start:]
        return _by_wordnet_id(rows) if is_wordnet_id(rows[0].fields[1]) else _by_position(path, rows, root, wordnet_ids)
    if _GROUND_TRUTH.fullmatch(name):
        rows = _rows(path)
        ids, with_files = ids_of_devkit(root, path)
        return _Read(_in_order(path, rows, [_devkit_id(row, ids, with_files) for row in rows], by_name), with_files)
    if _IN_ORDER.fullmatch(name) and first and is_wordnet_id(first[0][0]):
        rows = _rows(path)
        return _Read(_in_order(path, rows, [_wordnet_id(row) for row in rows], by_name), [])
    return None


def _labels_an_image(fields: Sequence[str], by_name: Collection[str]) -> bool:
    if len(fields) < 2 or not (_key(fields[0]) in by_name or _OF_VAL.fullmatch(_key(fields[0]))):
        return False
    return is_wordnet_id(fields[1]) or (len(fields) == 2 and _NUMBER.fullmatch(fields[1]) is not None)


def _by_wordnet_id(rows: Sequence[_Row]) -> _Read:
    entries = []
    for row in rows:
        named = [field for field in row.fields[1:] if is_wordnet_id(field)]
        if len(row.fields) < 2 or not is_wordnet_id(row.fields[1]):
            raise DataError(f"{row.where}: expected an image and the WordNet id of its class")
        if len(set(named)) > 1:
            raise DataError(f"{row.where}: {row.fields[0]} is of two classes, {' and '.join(sorted(set(named)))}; one is accepted")
        entries.append(_Entry(row.where, _key(row.fields[0]), row.fields[1]))
    return _Read(entries, [])


def _by_position(path: Path, rows: Sequence[_Row], root: Folder, wordnet_ids: Sequence[str]) -> _Read | None:
    """Positions in the listed synsets, or, without a list, in the folders of train if all of those have images."""
    for row in rows:
        if len(row.fields) != 2 or not _NUMBER.fullmatch(row.fields[1]):
            raise DataError(f"{row.where}: expected an image and the position of its class, a whole number from 0")
    positions = [int(row.fields[1]) for row in rows]
    # The lists of ImageSets, without endings, number their lines: they hold no labels.
    if positions == list(range(1, len(rows) + 1)) and all(_key(row.fields[0]) == row.fields[0] for row in rows):
        return None
    synsets, with_files = listed_synsets(root)
    if not synsets and set(positions) != set(range(len(wordnet_ids))):
        raise DataError(
            f"{path}: its classes are the numbers {min(positions)} to {max(positions)}, which do not match the "
            f"{len(wordnet_ids)} folders of train in order, from 0; add the synsets.txt that they refer to"
        )
    order = synsets or wordnet_ids
    for row, position in zip(rows, positions, strict=True):
        if position >= len(order):
            raise DataError(f"{row.where}: class {position}, and {with_files[0].name} lists {len(order)} classes, from 0")
    return _Read([_Entry(row.where, _key(row.fields[0]), order[at]) for row, at in zip(rows, positions, strict=True)], with_files)


def _devkit_id(row: _Row, ids: Mapping[int, str], with_files: Sequence[Path]) -> str:
    if len(row.fields) != 1 or not _NUMBER.fullmatch(row.fields[0]):
        raise DataError(f"{row.where}: expected one whole number, the ILSVRC2012_ID of a class")
    if (number := int(row.fields[0])) not in ids:
        raise DataError(f"{row.where}: class {number}, for which {with_files[0].name} has no WordNet id")
    return ids[number]


def _wordnet_id(row: _Row) -> str:
    if len(row.fields) != 1 or not is_wordnet_id(row.fields[0]):
        raise DataError(f"{row.where}: expected one WordNet id, such as n01440764")
    return row.fields[0]


def _in_order(path: Path, rows: Sequence[_Row], labels: Sequence[str], by_name: Collection[str]) -> list[_Entry]:
    """One line for each image, in the order of their names, which number them from 1."""
    names = sorted(by_name)
    if len(rows) != len(names):
        raise DataError(f"{path}: has {len(rows)} lines, one for each image, and there are {len(names)} images; use those of one set")
    numbers = [int(match[1]) if (match := _OF_VAL.fullmatch(name)) else 0 for name in names]
    if numbers != list(range(1, len(names) + 1)):
        wrong = next(name for number, name in enumerate(names, start=1) if numbers[number - 1] != number)
        raise DataError(f"{path}: goes by images ILSVRC2012_val_00000001 to ILSVRC2012_val_{len(names):08d}, and there is {wrong!r}")
    return [_Entry(row.where, name, label) for row, name, label in zip(rows, names, labels, strict=True)]


def _require_each_once(path: Path, entries: Sequence[_Entry], by_name: Collection[str]) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry.image in seen:
            raise DataError(f"{entry.where}: {entry.image} is listed twice; keep one line")
        seen.add(entry.image)
    for names, what in ((seen - set(by_name), "is not there"), (set(by_name) - seen, "is not in it")):
        if names:
            raise DataError(
                f"{path}: lists {len(seen)} images, and there are {len(by_name)}: {min(names)} {what}; it must name each image once"
            )


def _require_trained(entries: Sequence[_Entry], wordnet_ids: Sequence[str]) -> None:
    known = set(wordnet_ids)
    for entry in entries:
        if entry.label not in known:
            raise DataError(
                f"{entry.where}: {entry.image} is of class {entry.label}, which has no folder in train; add it, or remove such images"
            )


def _require_agreement(found: Mapping[Path, Mapping[str, str]]) -> None:
    for first, path in itertools.pairwise(found):
        for image, label in sorted(found[path].items()):
            if label != (other := found[first][image]):
                raise DataError(f"{first} and {path} disagree: {image} is of class {other} or {label}; remove the file that is wrong")


def _key(name: str) -> str:
    """An image's name without folders and ending."""
    plain = PurePosixPath(name.replace("\\", "/")).name
    return plain[: -len(ending)] if (ending := PurePosixPath(plain).suffix).lower() in IMAGE_ENDINGS else plain


def _first_lines(path: Path) -> list[list[str]]:
    try:
        with open(path, "rb") as file:
            return [_fields(file.readline(_FIRST_BYTES).decode("utf-8-sig", "replace")) for _ in range(_FIRST)]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _rows(path: Path) -> list[_Row]:
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [_Row(f"{path} line {number}", _fields(line)) for number, line in lines if line.strip()]


def _fields(line: str) -> list[str]:
    return [part for part in (part.strip("\"'") for part in _BETWEEN.split(line.strip())) if part] or [""]
