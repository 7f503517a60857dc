"""Robustness sets: labelled images from elsewhere, on which finished classifiers are measured and nothing is ever chosen.

Labels come from class folders - named as our classes, as in ImageNet-V2 (positions), or as in ImageNet-R, -A and -Sketch (WordNet ids) -
or from a list with several labels per image, as ReaL's (Beyer et al. 2020). A class map translates names that are not our classes.
"""

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gda.artifacts.fingerprint import digest_of
from gda.data.images.codecs import LANCZOS, Interpolation, decode, resize_and_crop, to_array
from gda.data.images.deep import Range
from gda.data.ingest.ingest import measure_range
from gda.data.sources.folders import images_below, read_folder
from gda.data.sources.source import Columns, Slice, SourceRecord, digest_files, path_key, printable
from gda.data.store.classes import normalise
from gda.errors import DataError
from gda.runtime.reading import parse_json, parser, read_bytes, read_json, read_text

ClassMap = Mapping[str, str | None]

_MAP_COLUMNS = ["folder", "class"]
_WORDNET_ID = re.compile(r"n[0-9]{8}")
_IMAGENET_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class HeldOutSet:
    """Images with the classes that are correct for each, ascending; `left_out` images have a label that is none of our classes."""

    name: str
    files: tuple[Path, ...]
    labels: tuple[tuple[int, ...], ...]
    left_out: int
    pixel_range: Range | None = None  # of images with more than 8 bits, where there are any
    digest: str  # of names, file contents and labels

    @property
    def classes(self) -> tuple[int, ...]:
        """Every class that is correct for at least one image, ascending."""
        return tuple(sorted({label for labels in self.labels for label in labels}))

    def correct(self, predicted: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Whether the class predicted for each image, [images], is one of its labels."""
        return np.array([label in labels for label, labels in zip(predicted.tolist(), self.labels, strict=True)])


def read_class_map(path: Path) -> ClassMap:
    """Class name by folder name, None for folders whose images are left out; from a JSON object or a CSV with columns folder, class.

    Raises `DataError` naming the file.
    """
    text = read_text(path, where=f"evaluate.class_map: {path}")
    pairs = _csv_pairs(text, path) if path.suffix.lower() == ".csv" else _json_pairs(text, path)
    found: dict[str, str | None] = {}
    for folder, name in pairs:
        if not isinstance(name, str | None):
            raise DataError(
                f"evaluate.class_map: {path}: {folder!r} is mapped to {name!r}; accepted: a class name, or null to leave it out"
            )
        if folder in found:
            raise DataError(f"evaluate.class_map: {path}: names {folder!r} twice")
        found[folder] = normalise(name) if name else None
    return found


def open_held_out(
    name: str,
    folder: Path,
    classes: Sequence[str],
    *,
    class_map: ClassMap | None = None,
    labels: Path | None = None,
    pixel_range: Range | None = None,
    progress: bool = False,
) -> HeldOutSet:
    """List the set in `folder`, whose labels are its class folders or, given `labels`, the entries of that JSON list.

    The list holds, for each image in order of file names, a list of labels; images without any are left out. Numbers are positions among
    `classes` where these are 1,000 WordNet ids in order, as in ImageNet; otherwise the class map must name them. No image is decoded.
    Raises `DataError` for folders and labels that are none of the classes, and for a set without images.
    """
    where = f"evaluate.sets.{name}: {folder}"
    if not folder.is_dir():
        raise DataError(f"{where}: no such folder")
    listed = _by_folder(folder, where, progress) if labels is None else _by_list(folder, labels, where)
    known = _known({label for _, own in listed for label in own}, classes, class_map, where)
    labelled = [(record, sorted({k for label in own if (k := known[label]) is not None})) for record, own in listed]
    kept = [(record, own) for record, own in labelled if own]
    if not kept:
        raise DataError(f"{where}: holds no image of our classes")
    content = digest_files([record for record, _ in kept], progress=progress)
    found = measure_range([record for record, _ in kept], pixel_range)
    return HeldOutSet(
        name=name,
        files=tuple(record.payload.path for record, _ in kept if isinstance(record.payload, Slice)),
        labels=tuple(tuple(own) for _, own in kept),
        left_out=len(labelled) - len(kept),
        pixel_range=None if found is None else found.range,
        digest=digest_of({"files": content, "labels": [[record.name, *(classes[k] for k in own)] for record, own in kept]}),
    )


def load_held_out(
    files: Sequence[Path], *, sides: Sequence[int], interpolation: Interpolation = LANCZOS, pixel_range: Range | None = None
) -> NDArray[np.uint8]:
    """Decode `files` as a snapshot would, uint8 NCHW, resized to each of `sides` (pixels) in turn, to the last with `interpolation`.

    Raises `DataError` for a file that cannot be decoded.
    """
    return np.stack([_load(path, sides, interpolation, pixel_range).transpose(2, 0, 1) for path in files])


def _load(path: Path, sides: Sequence[int], interpolation: Interpolation, pixel_range: Range | None) -> NDArray[np.uint8]:
    image = decode(read_bytes(path, limit=1 << 30), name=str(path), pixel_range=pixel_range)
    for number, side in enumerate(sides, start=1):
        image = resize_and_crop(image, side, interpolation if number == len(sides) else LANCZOS)
    return to_array(image)


_Listed = list[tuple[SourceRecord, list[str]]]


def _by_folder(folder: Path, where: str, progress: bool) -> _Listed:
    source = read_folder(folder, Columns(), progress=progress)
    if source.rejected:
        raise DataError(f"{where}: {source.rejected[0][0]}: {source.rejected[0][1]}")
    if len({record.split for record in source.records}) > 1:
        raise DataError(f"{where}: has a folder for each split; name one of them")
    return [(record, [record.class_name]) for record in source.records]


def _by_list(folder: Path, labels: Path, where: str) -> _Listed:
    entries = _read_labels(labels, where)
    paths = sorted(images_below(folder, folder), key=lambda path: (path.name, path))
    if len(entries) != len(paths):
        raise DataError(f"{where}: {labels} has labels of {len(entries)} images, and the folder holds {len(paths)}")
    return [(_record(path, folder), own) for path, own in zip(paths, entries, strict=True)]


def _record(path: Path, root: Path) -> SourceRecord:
    name = printable(path.relative_to(root).as_posix())
    return SourceRecord(name=name, key=path_key(name), class_name="", payload=Slice(path=path))


def _read_labels(path: Path, where: str) -> list[list[str]]:
    content = read_json(path, where=f"{where}: labels {path}")
    if not isinstance(content, list):
        raise DataError(f"{where}: labels {path}: expected a JSON list with a list of labels for each image")
    for number, own in enumerate(content):
        if not isinstance(own, list) or any(isinstance(label, bool) or not isinstance(label, int | str) for label in own):
            raise DataError(f"{where}: labels {path}: entry {number} is {json.dumps(own)[:60]}; expected a list of numbers or names")
    return [[str(label) for label in own] for own in content]


def _known(names: Iterable[str], classes: Sequence[str], class_map: ClassMap | None, where: str) -> dict[str, int | None]:
    """The label of each name, None for names whose images are left out."""
    ours = {name: label for label, name in enumerate(classes)}
    numbered = len(classes) == _IMAGENET_CLASSES and all(map(_WORDNET_ID.fullmatch, classes)) and list(classes) == sorted(classes)
    positions = {str(label): label for label in range(len(classes))} if numbered else {}
    found: dict[str, int | None] = {}
    for name in sorted(names):
        if class_map is not None and name in class_map:
            target = class_map[name]
            if target is not None and target not in ours:
                raise DataError(f"evaluate.class_map: {name!r} is mapped to {target!r}, which is none of the classes ({_some(classes)})")
            found[name] = None if target is None else ours[target]
        elif (label := ours.get(normalise(name), positions.get(name))) is not None:
            found[name] = label
        else:
            state = "is not set" if class_map is None else "does not name it"
            raise DataError(
                f"{where}: {name!r} is none of the classes ({_some(classes)}) and evaluate.class_map {state}; "
                "map it to a class, or to nothing to leave its images out"
            )
    return found


def _some(classes: Sequence[str]) -> str:
    return ", ".join(classes[:4]) + (f" and {len(classes) - 4} more" if len(classes) > 4 else "")


def _csv_pairs(text: str, path: Path) -> list[tuple[str, Any]]:
    with parser(f"evaluate.class_map: {path}", "valid CSV"):
        rows = [row for row in csv.reader(text.splitlines()) if row]
    if not rows or rows[0] != _MAP_COLUMNS or any(len(row) != len(_MAP_COLUMNS) for row in rows):
        raise DataError(f"evaluate.class_map: {path}: expected a CSV with the header {','.join(_MAP_COLUMNS)} and two fields on each line")
    return [(folder, name) for folder, name in rows[1:]]


def _json_pairs(text: str, path: Path) -> list[tuple[str, Any]]:
    where = f"evaluate.class_map: {path}"
    parse_json(text, where)
    with parser(where, "valid JSON"):
        pairs = json.loads(text, object_pairs_hook=list)
    if not text.lstrip().startswith("{"):
        raise DataError(f"evaluate.class_map: {path}: expected a JSON object of folder names and class names")
    return list(pairs)
