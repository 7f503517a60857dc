"""ImageNet as distributed: class folders named by WordNet ids in train, and flat folders of other splits with labels in a file."""

from collections.abc import Sequence
from pathlib import Path

from gda.data.imagenet.labels import LABELS_ACCEPTED, labels_of
from gda.data.imagenet.wordnet import is_wordnet_id
from gda.data.images.listing import Folder
from gda.data.sources.layouts import CLASS, SPLIT, Placed, Reading, place_classes, unwrap
from gda.data.sources.splits import splits_of
from gda.errors import DataError

_NO_LABELS = "in a test folder without labels"


def read_imagenet(root: Folder) -> Reading | None:
    """The class folders below `root` if train holds folders named by WordNet ids and other splits are next to it, else None.

    Flat folders of val or test are divided into classes by their label file. A flat test folder without label file is left out and counted.
    Raises `DataError` for a flat val without labels, a folder that is only partly sorted, and labels that contradict the images.
    """
    top = _folder_of_splits(root)
    splits = [] if top is None else _splits(top)
    train = next((folder for split, folder in splits if split == "train"), None)
    if top is None or train is None or len(splits) < 2:
        return None
    wordnet_ids = [child.name for child in unwrap(train, "train").folders]
    if not wordnet_ids or not all(map(is_wordnet_id, wordnet_ids)):
        return None
    reading = Reading(stray=list(top.images))
    for split, folder in splits:
        flat = None if split == "train" else _flat(folder)
        if flat is None:
            place_classes(root, split, folder, reading)
        else:
            _divide(root, split, flat, wordnet_ids, reading)
    return reading


def _divide(root: Folder, split: str, folder: Folder, wordnet_ids: Sequence[str], reading: Reading) -> None:
    """Add the flat `folder` to the reading, a class folder for each label of its images, or leave it out."""
    found = labels_of(folder.images, root, wordnet_ids)
    if found is None and split != "test":
        raise DataError(
            f"{folder.path}: holds {len(folder.images)} images and no class folders, and no file below {root.path} has their labels; "
            f"add one ({LABELS_ACCEPTED}) or sort the images into class folders"
        )
    if found is None:
        reading.left_out[_NO_LABELS] += len(folder.images)
        return
    reading.used += found.files
    by_class: dict[str, list[Path]] = {}
    for path in folder.images:
        by_class.setdefault(found.labels[path], []).append(path)
    reading.placed += [Placed(split, Folder(path=folder.path, images=by_class[name]), name) for name in sorted(by_class)]


def _folder_of_splits(root: Folder) -> Folder | None:
    """The folder that holds train, below any wrapper folders; folders next to a wrapper must hold no images."""
    folder = root
    while "train" not in splits_of([child.name for child in folder.folders]):
        holding = [child for child in folder.folders if child.holds_images]
        if folder.images or len(holding) != 1:
            return None
        folder = holding[0]
    return folder


def _splits(top: Folder) -> list[tuple[str, Folder]]:
    """The folder of each split; empty where a folder of images is no split, or two are the same split."""
    named = zip(splits_of([child.name for child in top.folders]), top.folders, strict=True)
    splits = [(split, child) for split, child in named if split is not None]
    named_so = {child.name for _, child in splits}
    others = [child for child in top.folders if child.name not in named_so and child.holds_images]
    once = len({split for split, _ in splits}) == len(splits)
    return splits if once and not others else []


def _flat(folder: Folder) -> Folder | None:
    """The folder that holds a split's images, below any wrapper folders; None where they are in class folders."""
    while not folder.images:
        holding = [child for child in folder.folders if child.holds_images]
        if len(holding) != 1 or is_wordnet_id(holding[0].name):
            return None
        folder = holding[0]
    if sorted_already := [child.name for child in folder.folders if child.holds_images]:
        raise DataError(
            f"{folder.path}: {len(folder.images)} images lie next to {len(sorted_already)} class folders such as {sorted_already[0]!r}: "
            f"sort the others too, or none; snapshot.layout {SPLIT}/{CLASS} leaves them out"
        )
    return folder
