"""The files with ImageNet's labels, as formats to mutate: each next to the unchanged others of a small set."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fuzz_mutations as m
import numpy as np

IDS = ("n01440764", "n01443537", "n01484850")
NUMBERS = (449, 2, 1000)  # ILSVRC2012_IDs, whose order is another
LABELS = (2, 0, 1, 1, 0)  # of the images, as positions in IDS
NAMES = tuple(f"ILSVRC2012_val_{number:08d}" for number in range(1, 6))

VAL, TRUTH, META, MAP, SYNSETS = "val.txt", "ILSVRC2012_validation_ground_truth.txt", "meta.mat", "map_clsloc.txt", "synsets.txt"
_POSITIONS = "".join(f"{name}.JPEG {label}\n" for name, label in zip(NAMES, LABELS)).encode()
_WORDNET = "".join(f"{name}.JPEG {IDS[label]}\n" for name, label in zip(NAMES, LABELS)).encode()
_BOXES = "".join(f"{name},{IDS[label]} 1 2 3 4 \n" for name, label in zip(NAMES, LABELS)).encode()
_TRUTH = "".join(f"{NUMBERS[label]}\n" for label in LABELS).encode()
_MAP = "".join(f"{name} {number} some_words\n" for name, number in zip(IDS, NUMBERS)).encode()
_SYNSETS = "".join(f"{name} some words, others\n" for name in IDS).encode()


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """A file to mutate, and `companions`, the files that it is read with."""

    file: str
    seeds: tuple[bytes, ...]
    harsh: tuple[m.Mutation, ...]
    companions: dict[str, bytes]

    def write_companions(self, folder: Path) -> None:
        """Write what stays as it is."""
        for name, data in self.companions.items():
            (folder / name).write_bytes(data)


def label_files() -> dict[str, LabelFile]:
    """By the name of the format."""
    metas = (_meta(compressed=True), _meta(compressed=False))
    return {
        "ImageNet val.txt": LabelFile(
            file=VAL, seeds=(_POSITIONS, _WORDNET, b"ImageId,PredictionString\n" + _BOXES), harsh=m.TEXT, companions={}
        ),
        "ImageNet ground truth": LabelFile(file=TRUTH, seeds=(_TRUTH,), harsh=m.TEXT, companions={META: metas[0]}),
        "ImageNet meta.mat": LabelFile(file=META, seeds=metas, harsh=m.BINARY, companions={TRUTH: _TRUTH}),
        "ImageNet map file": LabelFile(file=MAP, seeds=(_MAP,), harsh=m.TEXT, companions={TRUTH: _TRUTH}),
        "ImageNet synsets": LabelFile(file=SYNSETS, seeds=(_SYNSETS,), harsh=m.TEXT, companions={VAL: _POSITIONS}),
    }


def reader() -> Callable[[Path], object]:
    """Reads the labels of the images in a folder; a file without labels is refused, so that it counts as not read."""
    from gda.data.imagenet.labels import labels_of
    from gda.data.images.listing import list_folder
    from gda.errors import DataError

    def read(folder: Path) -> object:
        found = labels_of([Path("val", f"{name}.JPEG") for name in NAMES], list_folder(folder).root, IDS)
        if found is None:
            raise DataError(f"{folder}: no file says labels")
        return found

    return read


def _meta(*, compressed: bool) -> bytes:
    from scipy.io import savemat

    rows = [(number, name, "some words", 0) for name, number in zip(IDS, NUMBERS)]
    fields = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "num_children")]
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": np.array(rows, dtype=fields).reshape(-1, 1)}, do_compression=compressed)
    return buffer.getvalue()
