"""The meaning of folders in an image folder: which are splits, which are classes, and which only wrap the others.

Unambiguous layouts need no setting: split folders (of Hugging Face, Kaggle, torchvision, Keras and YOLO), class folders, and wrappers
around either. `snapshot.layout` settles ambiguous ones: a path of folders such as `{split}/{class}`, `{class}` or `*/{class}`, where `*`
is any folder and any other word a folder of that name.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gda.data.images.listing import Folder
from gda.data.sources.splits import splits_of
from gda.errors import DataError

SPLIT, CLASS, ANY = "{split}", "{class}", "*"
_SHOWN = 4


@dataclass(frozen=True)
class Placed:
    """A class folder of a split (None where the source has no splits): all images below it are of this class."""

    split: str | None
    folder: Folder
    class_name: str


@dataclass
class Reading:
    """Class folders by split; `stray` images are in no class folder, `outside` counts those that `snapshot.layout` leaves out.

    `left_out` counts by reason the images that are left out otherwise; `used` are files that labels were read from.
    """

    placed: list[Placed] = field(default_factory=list)
    stray: list[Path] = field(default_factory=list)
    outside: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    used: list[Path] = field(default_factory=list)


def read_layout(root: Folder, layout: str | None) -> Reading:
    """The class folders below `root`: by `layout`, else in the only possible reading. Raises `DataError` that names two readings."""
    return require_filled(_found(root) if layout is None else _matched(root, layout))


def require_filled(reading: Reading) -> Reading:
    """The reading unchanged. Raises `DataError` where a training class has no images."""
    for placed in reading.placed:
        if not placed.folder.holds_images and placed.split in (None, "train"):
            raise DataError(f"{placed.folder.path}: class {placed.class_name!r} has no images; add some or remove the folder")
    return reading


def unwrap(folder: Folder, split: str | None = None) -> Folder:
    """The folder below wrappers, which hold only one other folder of folders; below a split, a wrapper may repeat the split's name."""
    while not folder.images:
        holding = [child for child in folder.folders if child.holds_images or not child.others]
        if len(holding) != 1 or holding[0].images or not holding[0].folders or splits_of([holding[0].name])[0] not in (None, split):
            break
        folder = holding[0]
    return folder


def split_folders(folder: Folder) -> list[tuple[str, Folder]] | None:
    """The split folders in `folder`, None where it holds none; raises `DataError` where some of its folders are splits and others not."""
    names = [child.name for child in folder.folders]
    named = list(zip(splits_of(names), folder.folders, strict=True))
    splits = [(split, child) for split, child in named if split is not None]
    others = [child for split, child in named if split is None]
    if not splits or _is_class_named_as_a_split(splits, others):
        return None
    if others := [child for child in others if child.holds_images or child.folders]:
        raise DataError(
            f"{folder.path}: {_listed(child for _, child in splits)} {'are' if len(splits) > 1 else 'is'} named as a split, "
            f"{_listed(others)} not: move or remove what does not belong, or set snapshot.layout to {SPLIT}/{CLASS} (which leaves "
            f"{_listed(others)} out) or to {CLASS} (every folder is a class)"
        )
    found = [split for split, _ in splits]
    if len(set(found)) < len(found):
        raise DataError(f"{folder.path}: two folders name one split: {', '.join(child.name for _, child in splits)}")
    return splits


def _is_class_named_as_a_split(splits: Sequence[tuple[str, Folder]], others: Sequence[Folder]) -> bool:
    """Whether a folder of images called just train is a class, as in a data set of vehicles: other folders of images are next to it."""
    alone = len(splits) == 1 and splits[0][1].name.lower() == "train"
    return alone and bool(splits[0][1].images) and any(child.images for child in others)


def _found(root: Folder) -> Reading:
    top = unwrap(root)
    splits = split_folders(top)
    reading = Reading(stray=list(top.images))
    groups: Sequence[tuple[str | None, Folder]] = splits or [(None, top)]
    for split, folder in groups:
        place_classes(root, split, folder, reading)
    return reading


def place_classes(root: Folder, split: str | None, folder: Folder, reading: Reading) -> None:
    """Add the class folders in the folder of a split, or in the top one, to `reading`. Raises `DataError` where they are ambiguous."""
    inner = unwrap(folder, split) if split else folder
    reading.stray += inner.images if split else []
    if not inner.folders and split:
        raise DataError(
            f"{inner.path}: a split folder without class folders in it; add them, or, if it is a class, set snapshot.layout to {CLASS}"
        )
    _require_classes(root, inner, split)
    reading.placed += [Placed(split, child, child.name) for child in inner.folders]


def _require_classes(root: Folder, parent: Folder, split: str | None) -> None:
    """Raise `DataError` unless the folders in `parent` are clearly classes: each holds its images directly."""
    folders = [child for child in parent.folders if child.holds_images]
    below = {child.name for folder in folders for child in folder.folders if child.holds_images}
    if any(split_name is not None for split_name in splits_of(sorted(below))):
        raise _ambiguous(root, parent, split, folders, below, f"{CLASS}/{SPLIT}")
    deep = [child for child in folders if not child.images]
    # Of tiny ImageNet: every class folder holds one folder of one name.
    if deep and not (len(deep) == len(folders) and len(below) == 1 and len(folders) > 1):
        raise _ambiguous(root, parent, split, folders, below, f"{ANY}/{CLASS}")


def _ambiguous(root: Folder, parent: Folder, split: str | None, folders: Sequence[Folder], below: set[str], other: str) -> DataError:
    wrappers = [ANY] * (len(parent.path.relative_to(root.path).parts) - (split is not None))
    place = "/".join([*wrappers, *([SPLIT] if split else []), ""])
    return DataError(
        f"{parent.path}: are the classes its folders ({_listed(folders)}) or those in them ({_shown(sorted(below))})? "
        f"Set snapshot.layout to {place}{CLASS} or to {place}{other}"
    )


def _matched(root: Folder, layout: str) -> Reading:
    reading = Reading()
    for placed in _match(root, layout.split("/"), None, None, reading):
        reading.placed.append(placed)
    if not reading.placed:
        raise DataError(f"{root.path}: holds no folders that match snapshot.layout {layout}")
    return reading


def _match(folder: Folder, parts: Sequence[str], split: str | None, name: str | None, reading: Reading) -> Iterator[Placed]:
    if not parts:
        yield Placed(split, folder, name or folder.name)
        return
    reading.outside += len(folder.images)
    part, splits = parts[0], splits_of([child.name for child in folder.folders])
    for child, found in zip(folder.folders, splits, strict=True):
        if part in (ANY, CLASS, child.name) or (part == SPLIT and found is not None):
            here, called = (found if part == SPLIT else split), (child.name if part == CLASS else name)
            yield from _match(child, parts[1:], here, called, reading)
        else:
            reading.outside += len(child.all_images())


def _listed(folders: Iterator[Folder] | Sequence[Folder]) -> str:
    return _shown([folder.name for folder in folders])


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(name) for name in names[:_SHOWN]) + more
