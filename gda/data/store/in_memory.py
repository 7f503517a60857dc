"""Loads whole splits into memory as uint8 tensors: train and val. Only `gda.data.test_split` opens the test split."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from gda.data.images.codecs import LANCZOS, Interpolation, Rgb, decode, resize_and_crop, to_array
from gda.data.images.pixels import room_for
from gda.data.store.snapshot import Snapshot
from gda.data.store.soft_labels import soft_labels
from gda.errors import DataError, UsageError
from gda.io.shards import iterate_shard, read_record


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """A split in manifest order: `images` uint8 NCHW RGB, `labels` int64 [n], `keys` [n]; `classes` are the names by label.

    For soft labels, `second` int64 [n] is the second class, -1 for none, and `first_share` float32 [n] in [0, 1] is the weight of the
    first, 1 where there is no second.
    """

    images: torch.Tensor
    labels: torch.Tensor
    keys: tuple[str, ...]
    classes: tuple[str, ...]
    second: torch.Tensor | None = None
    first_share: torch.Tensor | None = None

    def take(self, order: torch.Tensor | slice) -> "ImageSet":
        """The images at the places `order`, int64 [m], with their labels and keys; a slice copies no pixels."""
        return replace(
            self,
            images=self.images[order],
            labels=self.labels[order],
            keys=self.keys[order] if isinstance(order, slice) else tuple(self.keys[int(place)] for place in order),
            second=None if self.second is None else self.second[order],
            first_share=None if self.first_share is None else self.first_share[order],
        )


def load_images(
    snapshot: Snapshot, split: Literal["train", "val"], *, size: int, scratch: Path | None = None, interpolation: Interpolation = LANCZOS
) -> ImageSet:
    """Decode a whole split, short side scaled to `size` pixels, centre cropped. All synthetic images are in `train`.

    With `scratch`, the images are mapped from a file in that folder, see `room_for`. Every image is checked against the manifest. Raises
    `DataError` naming shard and record, `UsageError` for the test split.
    """
    _require_open_to_all(split)
    return decode_split(snapshot, split, size, scratch, interpolation)


class RecordReader:
    """Reads single images of a split by key; holds only a copy of the manifest. Raises `UsageError` for the test split."""

    def __init__(self, snapshot: Snapshot, split: Literal["train", "val"]) -> None:
        _require_open_to_all(split)
        self._path = snapshot.path
        self._rows = snapshot.manifest(split).set_index("key")[["shard", "offset", "sha256"]]

    def load(self, keys: Sequence[str], *, size: int) -> torch.Tensor:
        """uint8 NCHW, short side scaled to `size` pixels, centre cropped. Raises `DataError` for an unknown key or a damaged record."""
        if unknown := [key for key in keys if key not in self._rows.index]:
            raise DataError(f"{self._path}: no record {unknown[0]!r} in its training images")
        images = np.stack([self._read(key, size) for key in keys])
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def _read(self, key: str, size: int) -> Rgb:
        shard, offset, sha256 = self._rows.loc[key]
        path = self._path / str(shard)
        record = read_record(path, int(offset))
        if record.key != key or hashlib.sha256(record.image).hexdigest() != sha256:
            raise DataError(f"{path}: record {key!r}: checksum differs from the manifest")
        return to_array(resize_and_crop(decode(record.image, name=f"{path}: {key}"), size))


def _require_open_to_all(split: str) -> None:
    if split not in ("train", "val"):
        raise UsageError(f"split {split!r}: this loads train or val; only open_test opens the test split")


def decode_split(
    snapshot: Snapshot, split: str, size: int, scratch: Path | None, interpolation: Interpolation, *, of_test: bool = False
) -> ImageSet:
    """As `load_images`, for any split; only `open_test` passes `of_test`, which gives access to test images."""
    rows = snapshot.manifest(split)
    if rows.empty:
        raise DataError(f"{snapshot.path}: split {split!r} holds no images")
    classes = tuple(info.name for info in snapshot.classes)
    second, first_share = _soft_labels(snapshot.path, rows, classes)
    images = room_for(len(rows), size, scratch=scratch)
    pixels = images.numpy()
    for index, rgb in enumerate(_decoded(snapshot, split, size, interpolation, of_test)):
        pixels[index] = rgb.transpose(2, 0, 1)
    return ImageSet(
        images=images,
        labels=torch.from_numpy(rows["label"].to_numpy(dtype=np.int64, copy=True)),
        keys=tuple(rows["key"]),
        classes=classes,
        second=second,
        first_share=first_share,
    )


def _soft_labels(path: Path, rows: pd.DataFrame, classes: Sequence[str]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    try:
        found = soft_labels(rows, classes)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return (None, None) if found is None else (torch.from_numpy(found[0]), torch.from_numpy(found[1]).float())


def _decoded(snapshot: Snapshot, split: str, size: int, interpolation: Interpolation, of_test: bool) -> Iterator[Rgb]:
    """Images in manifest order, exactly as many as it has rows; each one's bytes and place are checked."""
    columns = snapshot.manifest(split)[["shard", "key", "label", "offset", "sha256"]]
    for shard, expected in itertools.groupby(columns.itertuples(index=False, name=None), key=itemgetter(0)):
        path = snapshot.path / shard
        records = iterate_shard(path, of_test=of_test)
        for _, key, label, offset, sha256 in expected:
            at, record = next(records, (None, None))
            if record is None or (at, record.key, record.label) != (offset, key, label):
                raise DataError(f"{path}: record {key!r} is not where the manifest places it")
            if hashlib.sha256(record.image).hexdigest() != sha256:
                raise DataError(f"{path}: record {key!r}: checksum differs from the manifest")
            yield to_array(resize_and_crop(decode(record.image, name=f"{path}: {key}"), size, interpolation))
        if next(records, None) is not None:
            raise DataError(f"{path}: holds more records than the manifest names")
