"""Features of synthetic images, kept per shard during sampling, so that assessing a set merges them instead of a second pass.

`features/` in a synthetic snapshot holds a `<shard>.safetensors` for each shard, `statistics.npz` (`mu` and `sigma` float64, as in files
of ADM and pytorch-fid) and, written last, `features.json`. A shard's file records the extractor, and digests of the keys and pixels of
its images, so that it fits only that shard. Merged snapshots carry no features.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from PIL import Image
from pydantic import Field
from safetensors import safe_open
from safetensors.numpy import save

from gda.artifacts.document import Document, dump_document, read_document
from gda.artifacts.fingerprint import canonical_json
from gda.data.images.codecs import Rgb, resize_and_crop, to_array
from gda.data.store.snapshot import Snapshot
from gda.errors import DataError
from gda.fidelity.extractors import BATCH, Extractor, get_extractor
from gda.fidelity.frechet import Statistics
from gda.fidelity.moments import Moments, merged, moments
from gda.fidelity.statistics_file import statistics_bytes
from gda.io.atomic import write_bytes, write_new
from gda.io.tensors import read_tensors, tensors_digest
from gda.runtime.disks import storage_errors
from gda.runtime.reading import parse_json, parser
from gda.runtime.rng import numpy_stream

FEATURES_FOLDER, FEATURES_INDEX, FEATURES_STATISTICS = "features", "features.json", "statistics.npz"
CHECKED_IMAGES = 32
_METADATA = "gda"  # one key, because safetensors writes several in random order
_TOLERANCE = 1e-3  # of the root mean square feature; other batches and processors move features by about 1e-6 of it
_ADVICE = f"remove the folder {FEATURES_FOLDER!r} to have features extracted from the images"


class FeaturesIndex(Document):
    """`features.json`: what is kept for every image, and the extractor that computed it."""

    schema_version: Literal[1] = 1
    kept: Literal["statistics", "rows"]
    extractor: str
    extractor_digest: str
    image_size: int = Field(ge=1, description="side to which images are resized before they go to the extractor, pixels")

    def fits(self, extractor: Extractor, size: int) -> bool:
        """Whether these features are those of `extractor` for images of `size` pixels."""
        return (self.extractor, self.extractor_digest, self.image_size) == (extractor.name, extractor.digest, size)


def extract_by_shard(images: torch.Tensor, shards: Sequence[str], extractor: Extractor) -> np.ndarray:
    """float32 [n, d] of uint8 NCHW images in manifest order; batches start again with each shard, as they do during sampling."""
    lengths = [len(list(part)) for _, part in itertools.groupby(shards)] or [0]
    return np.concatenate([extractor.features(part) for part in images.split(lengths)])


@dataclass(frozen=True, kw_only=True)
class FeatureObserver:
    """Keeps features of every sampled shard, as set in `index`; the `Observer` of `gda.generator.sampling.sample_shards`."""

    index: FeaturesIndex
    source: str | None = None  # the extractor's name in the configuration, where it is not that of the index
    weights: str | None = None

    @property
    def extractor(self) -> Extractor:
        """Loaded once in each process. Raises `DataError` when its weights are no longer those of the index."""
        found = get_extractor(self.source or self.index.extractor, self.weights)
        if not self.index.fits(found, self.index.image_size):
            raise DataError(f"validate.extractor_weights: {found.identity} is not what this set was begun with, {self.index.extractor}")
        return found

    def begin(self, shard: Path) -> "ShardFeatures":
        """Start the shard whose tar will be at `shard`."""
        return ShardFeatures(index=self.index, extractor=self.extractor, path=features_path(shard))

    def holds(self, shard: Path, rows: pd.DataFrame, *, checked: bool) -> bool:
        """Whether the shard's features exist and belong to the images of these manifest rows; `checked` also reads all of them."""
        try:
            header = _require_header(features_path(shard), rows, self.index)
            if checked:
                _content(features_path(shard), header)
        except DataError:
            return False
        return True

    def discard(self, shard: Path) -> None:
        """Delete the shard's features."""
        features_path(shard).unlink(missing_ok=True)

    def finish(self, folder: Path, rows: pd.DataFrame) -> None:
        """Merge the features of all shards into `statistics.npz`, then write `features.json`.

        `rows` are the manifest rows of the set in shard order. Raises `DataError` where a shard's features are missing or damaged.
        """
        found = reduce(merged, (_shard_moments(*part, self.index, self.extractor.dim) for part in _parts(folder, rows))).statistics()
        write_bytes(folder / FEATURES_FOLDER / FEATURES_STATISTICS, statistics_bytes(found))
        write_bytes(folder / FEATURES_FOLDER / FEATURES_INDEX, dump_document(self.index))


@dataclass(kw_only=True)
class ShardFeatures:
    """Collects the features of one shard for the file `path`; images wait until they fill a batch of the extractor."""

    index: FeaturesIndex
    extractor: Extractor
    path: Path
    _waiting: list[torch.Tensor] = field(default_factory=list)  # uint8 CHW
    _rows: list[np.ndarray] = field(default_factory=list)
    _moments: Moments | None = None

    def add(self, images: Sequence[Rgb]) -> None:
        """Add the next images of the shard."""
        for image in images:
            square = to_array(resize_and_crop(Image.fromarray(image), self.index.image_size)).copy()
            self._waiting.append(torch.from_numpy(square).permute(2, 0, 1))
            if len(self._waiting) == BATCH:
                self._extract()

    def commit(self, rows: pd.DataFrame) -> None:
        """Write the features of the images in `rows`, the shard's manifest rows: as a whole, create-only.

        An existing file of the same images stays, since another machine may differ in the last bits. Raises `DataError` when it is of
        other images, `MissingError` when the disk is full, read-only or failing.
        """
        if self._waiting:
            self._extract()
        tensors = self._tensors()
        header = _described(rows, self.index) | {"content": tensors_digest(tensors)}
        if self.index.kept == "rows":
            header["keys"] = rows["key"].tolist()
        with storage_errors(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if not write_new(self.path, save(tensors, metadata={_METADATA: canonical_json(header).decode()})):
            _content(self.path, _require_header(self.path, rows, self.index))

    def _extract(self) -> None:
        found = self.extractor.features(torch.stack(self._waiting))
        self._waiting.clear()
        if self.index.kept == "rows":
            self._rows.append(found)
        else:
            self._moments = moments(found) if self._moments is None else merged(self._moments, moments(found))

    def _tensors(self) -> dict[str, np.ndarray]:
        if self.index.kept == "rows":
            return {"features": np.concatenate(self._rows)}
        assert self._moments is not None, "a shard holds at least one image"
        return {"count": np.array([self._moments.count]), "mean": self._moments.mean, "scatter": self._moments.scatter}


def features_path(shard: Path) -> Path:
    """The file of the features of the shard at `shard`."""
    return shard.parent / FEATURES_FOLDER / f"{shard.stem}.safetensors"


def read_statistics(snapshot: Snapshot, extractor: Extractor, *, size: int) -> Statistics:
    """Mean, covariance and count of all images, merged over the shards.

    Raises `DataError` where there are no features, where extractor or image size differ from `extractor` and `size` (pixels), and for a
    shard whose features are missing, damaged or of other images than those in the manifest.
    """
    index = _require_index(snapshot, extractor, size)
    parts = _parts(snapshot.path, snapshot.manifest())
    return reduce(merged, (_shard_moments(*part, index, extractor.dim) for part in parts)).statistics()


def read_rows(snapshot: Snapshot, extractor: Extractor, *, size: int) -> np.ndarray:
    """float32 [n, d] in manifest order. Raises `DataError` as `read_statistics` does, and where only statistics were kept."""
    index = _require_index(snapshot, extractor, size)
    if index.kept != "rows":
        raise DataError(
            f"{snapshot.path / FEATURES_FOLDER}: holds {index.kept}, no rows; sample the set with sample.features=rows to keep rows"
        )
    parts = _parts(snapshot.path, snapshot.manifest())
    return np.concatenate([_shard_tensors(*part, index, extractor.dim)["features"] for part in parts])


def has_rows(snapshot: Snapshot, extractor: Extractor, *, size: int) -> bool:
    """Whether the set has rows of this extractor and size. Raises `DataError` for a damaged `features.json`."""
    path = snapshot.path / FEATURES_FOLDER / FEATURES_INDEX
    if not path.is_file():
        return False
    index = read_document(path, FeaturesIndex)
    return index.kept == "rows" and index.fits(extractor, size)


def require_honest(snapshot: Snapshot, features: np.ndarray, images: torch.Tensor, extractor: Extractor) -> None:
    """Extract features of a few images again, because anyone who can write the folder could forge rows together with their digests.

    `images` uint8 NCHW in manifest order, at the size of the comparison. The content of all rows determines which images are checked.
    Raises `DataError` naming the shard whose rows differ from what the extractor gives.
    """
    rng = numpy_stream("checked images", tensors_digest({"features": features}))
    chosen = np.sort(rng.permutation(len(features))[:CHECKED_IMAGES])
    fresh = extractor.features(images[torch.from_numpy(chosen)])
    apart = np.abs(fresh - features[chosen]).max(1)
    wrong = ~(apart <= _TOLERANCE * np.sqrt(np.square(fresh, dtype=np.float64).mean()))  # NaN is wrong, too
    if wrong.any():
        row = snapshot.manifest().iloc[chosen[wrong.argmax()]]
        path = features_path(snapshot.path / row["shard"])
        raise DataError(f"{path}: the features of {row['key']!r} are not those of its image; {_ADVICE}")


def _parts(folder: Path, rows: pd.DataFrame) -> Iterator[tuple[Path, pd.DataFrame]]:
    """File and manifest rows of every shard, in order."""
    for shard, part in rows.groupby("shard", sort=True):
        yield features_path(folder / str(shard)), part


def _require_index(snapshot: Snapshot, extractor: Extractor, size: int) -> FeaturesIndex:
    folder = snapshot.path / FEATURES_FOLDER
    if not (folder / FEATURES_INDEX).is_file():
        raise DataError(
            f"{folder / FEATURES_INDEX}: not found; only sets sampled with sample.features, and not merged since, carry features"
        )
    index = read_document(folder / FEATURES_INDEX, FeaturesIndex)
    if not index.fits(extractor, size):
        found = f"{index.extractor}@{index.extractor_digest[:8]} at {index.image_size} px"
        raise DataError(f"{folder}: features are of {found}, not of {extractor.identity} at {size} px")
    return index


def _described(rows: pd.DataFrame, index: FeaturesIndex) -> dict[str, Any]:
    """The header of a shard's file, without the digest of its content."""
    pairs = zip(rows["key"].tolist(), rows["pixel_sha256"].tolist(), strict=True)
    records = hashlib.sha256("".join(f"{key}\t{pixels}\n" for key, pixels in pairs).encode()).hexdigest()
    return {
        "kept": index.kept,
        "extractor": f"{index.extractor}@{index.extractor_digest}",
        "image_size": index.image_size,
        "records": records,
    }


def _require_header(path: Path, rows: pd.DataFrame, index: FeaturesIndex) -> dict[str, Any]:
    """The file's header, after checking it against the manifest's rows; does not read the features."""
    if not path.exists():
        raise DataError(f"{path}: not found; {_ADVICE}")
    try:
        with parser(path, "a whole safetensors file"), safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_METADATA, "null")
        header = parse_json(text, path)
    except DataError as error:
        raise DataError(f"{error}; {_ADVICE}") from None
    expected = _described(rows, index) | ({"keys": rows["key"].tolist()} if index.kept == "rows" else {})
    content = header.get("content") if isinstance(header, dict) else None
    if header != expected | {"content": content}:
        raise DataError(f"{path}: its features are not of the images that the manifest names, or of another extractor; {_ADVICE}")
    return expected | {"content": content}


def _content(path: Path, header: dict[str, Any]) -> dict[str, np.ndarray]:
    tensors = read_tensors(path)
    if tensors_digest(tensors) != header["content"]:
        raise DataError(f"{path}: damaged, its numbers are not those that were written; {_ADVICE}")
    return tensors


def _shard_tensors(path: Path, rows: pd.DataFrame, index: FeaturesIndex, dim: int) -> dict[str, np.ndarray]:
    tensors = _content(path, _require_header(path, rows, index))
    shapes = {"features": (len(rows), dim)} if index.kept == "rows" else {"count": (1,), "mean": (dim,), "scatter": (dim, dim)}
    if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
        raise DataError(f"{path}: does not hold the {index.kept} of {len(rows)} images; {_ADVICE}")
    return tensors


def _shard_moments(path: Path, rows: pd.DataFrame, index: FeaturesIndex, dim: int) -> Moments:
    """Moments of a shard; rows are merged in the same steps as during sampling, so that both ways give the same bits."""
    tensors = _shard_tensors(path, rows, index, dim)
    if index.kept == "rows":
        features = tensors["features"]
        return reduce(merged, (moments(features[start : start + BATCH]) for start in range(0, len(features), BATCH)))
    if int(tensors["count"][0]) != len(rows):
        raise DataError(f"{path}: is of {tensors['count'][0]} images, the manifest names {len(rows)}; {_ADVICE}")
    return Moments(count=len(rows), mean=tensors["mean"], scatter=tensors["scatter"])
