"""Near matches: small sketches of images, a 64-bit hash of each, and the rule for what counts as the same picture.

Two images match nearly if they differ only by re-encoding, resizing, mirroring, brightness or contrast. The hash (pHash: signs of the low
frequencies of a cosine transform, Zauner 2010) finds candidates cheaply; pixels decide, because pictures that differ can share a hash:
of 5,000 handwritten digits one in a hundred does. Crops, rotations and shifts are not detected here.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.fft import dctn

from gda.data.images.codecs import Rgb

SKETCH_PX = 16
HASH_BITS = 14  # of 64 by which the hashes of two sketches of one picture may differ
# Root mean square difference of two sketches that have been brought to mean 0 and root mean square 1. No two of 5,000 digits are nearer
# than 0.1; of 200 passed through JPEG at quality 30 nineteen in twenty move by less than 0.08, at quality 60 all do.
NEAR_SHAPE = 0.08
# Root mean square difference of the sketches as they are, in [0, 1]: for pictures with little contrast, whose shape compression drowns.
NEAR_PIXELS = 0.02
TINT = 0.25  # difference of mean colours that changed brightness may explain, in [0, 1]
CONTENT = 0.02  # root mean square contrast below which shapes are not compared
_QUERIES, _REFERENCES, _PAIRS = 256, 1024, 16384  # a block of comparisons: small enough for a processor's cache


@dataclass(frozen=True, kw_only=True)
class Sketches:
    """Sketches of n images: `grey` uint8 [n, 16, 16], averages of brightness, and `colour` float32 [n, 3], the mean colour in [0, 1]."""

    grey: np.ndarray
    colour: np.ndarray

    def __len__(self) -> int:
        return len(self.grey)

    def __getitem__(self, rows: np.ndarray | slice) -> "Sketches":
        """The sketches of some rows."""
        return Sketches(grey=self.grey[rows], colour=self.colour[rows])


@dataclass(frozen=True, kw_only=True)
class NearMatches:
    """Per query the nearest matching reference (`reference`, -1 for none), its `distance`, and the `first` matching reference."""

    reference: np.ndarray  # int64 [n]
    first: np.ndarray  # int64 [n]
    distance: np.ndarray  # float64 [n], of shapes; infinite for none

    @property
    def queries(self) -> np.ndarray:
        """Rows of the queries that have a match, ascending."""
        return np.flatnonzero(self.reference >= 0)


def sketch(rgb: Rgb) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [16, 16], float32 [3]) of one image of any size; its shape is squeezed into a square."""
    small = Image.fromarray(rgb).convert("L").resize((SKETCH_PX, SKETCH_PX), Image.Resampling.BILINEAR)
    return np.asarray(small), (rgb.reshape(-1, 3).mean(0) / 255.0).astype(np.float32)


def stack_sketches(parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> Sketches:
    """One `Sketches` of the results of `sketch` for many images."""
    found = list(parts)
    grey = np.stack([part[0] for part in found]) if found else np.zeros((0, SKETCH_PX, SKETCH_PX), np.uint8)
    return Sketches(grey=grey, colour=np.array([part[1] for part in found], np.float32).reshape(-1, 3))


def joined(*parts: Sketches) -> Sketches:
    """The sketches of several sets, one after another."""
    return Sketches(grey=np.concatenate([part.grey for part in parts]), colour=np.concatenate([part.colour for part in parts]))


def perceptual_hashes(grey: np.ndarray) -> np.ndarray:
    """uint64 [n, 4] of sketches uint8 [n, 16, 16]: as they are, mirrored left to right, top to bottom, and both."""
    low = dctn(grey.astype(np.float32), axes=(1, 2), norm="ortho")[:, :8, :8]
    sign = np.where(np.arange(8) % 2, -1.0, 1.0).astype(np.float32)  # mirroring turns the sign of every odd frequency
    views = np.stack([low, low * sign, low * sign[:, None], low * sign * sign[:, None]], axis=1).reshape(len(grey), 4, 64)
    bits = views > np.median(views[:, :, 1:], axis=2, keepdims=True)  # the first is the mean brightness, which does not depend on shape
    return np.packbits(bits, axis=2).view(np.uint64)[:, :, 0]


def near_matches(queries: Sketches, references: Sketches, *, same_set: bool = False) -> NearMatches:
    """Which queries are the same picture as a reference; `same_set`: both are one set, and no image is its own match.

    Every hash is compared with every other, which takes four comparisons of 64 bits per pair, about 20 ns on one core: 100,000 images
    against as many take three minutes, 1.2 million among themselves eight hours. Memory does not grow with the number of pairs.
    """
    n = len(queries)
    found = NearMatches(reference=np.full(n, -1), first=np.full(n, -1), distance=np.full(n, np.inf))
    for rows, columns, views in _candidates(queries, references, same_set):
        distance, same = _compare(queries, references, rows, columns, views)
        _keep_best(found, rows[same], columns[same], distance[same])
    return found


def distinct(sketches: Sketches) -> np.ndarray:
    """Rows, ascending, of the pictures that match no earlier one."""
    first = near_matches(sketches, sketches, same_set=True).first
    return np.flatnonzero((first < 0) | (first > np.arange(len(sketches))))


def near_groups(sketches: Sketches) -> list[list[int]]:
    """Rows of each picture that occurs several times, largest group first."""
    first = near_matches(sketches, sketches, same_set=True).first
    members: dict[int, list[int]] = {}
    for row in np.flatnonzero(first >= 0).tolist():
        members.setdefault(min(row, int(first[row])), []).append(row)
    return sorted((rows for rows in members.values() if len(rows) > 1), key=lambda rows: (-len(rows), rows))


def _candidates(queries: Sketches, references: Sketches, same_set: bool) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (rows, columns, views) of pairs whose hashes are near: each unmirrored query against the four views of each reference."""
    query_hashes, reference_hashes = perceptual_hashes(queries.grey)[:, 0], perceptual_hashes(references.grey)
    for start in range(0, len(query_hashes), _QUERIES):
        for begin in range(0, len(reference_hashes), _REFERENCES):
            differing = query_hashes[start : start + _QUERIES, None, None] ^ reference_hashes[None, begin : begin + _REFERENCES]
            rows, columns, views = np.nonzero(np.bitwise_count(differing) <= HASH_BITS)
            rows, columns = rows + start, columns + begin
            if same_set:
                other = rows != columns
                rows, columns, views = rows[other], columns[other], views[other]
            for part in range(0, len(rows), _PAIRS):
                yield rows[part : part + _PAIRS], columns[part : part + _PAIRS], views[part : part + _PAIRS]


def _compare(
    queries: Sketches, references: Sketches, rows: np.ndarray, columns: np.ndarray, views: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of shapes float64 [pairs], and whether each pair is one picture (bool [pairs])."""
    (query, row), (reference, column) = np.unique(rows, return_inverse=True), np.unique(columns, return_inverse=True)
    a, b = _Shapes.of(queries.grey[query]), _Shapes.of(references.grey[reference])
    product = np.empty(len(rows))
    for view, seen in enumerate(_VIEWS):
        chosen = views == view
        product[chosen] = np.einsum("nd,nd->n", a.rows[row[chosen]], b.rows[:, seen][column[chosen]])
    a, b = a.picked(row), b.picked(column)
    shape = np.sqrt(np.maximum(a.size**2 + b.size**2 - 2 * product, 0.0))
    squared = (a.mean - b.mean) ** 2 + (a.size * a.scale) ** 2 + (b.size * b.scale) ** 2 - 2 * a.scale * b.scale * product
    tint = np.abs(queries.colour[rows] - references.colour[columns]).max(1)
    alike = (shape <= NEAR_SHAPE) & (tint <= TINT) & (np.minimum(a.scale * a.size, b.scale * b.size) >= CONTENT)
    return shape, alike | ((squared <= NEAR_PIXELS**2) & (tint <= 2 * NEAR_PIXELS))


_PLACES = np.arange(SKETCH_PX * SKETCH_PX).reshape(SKETCH_PX, SKETCH_PX)
_VIEWS = tuple(view.ravel() for view in (_PLACES, _PLACES[:, ::-1], _PLACES[::-1], _PLACES[::-1, ::-1]))


@dataclass(frozen=True, kw_only=True)
class _Shapes:
    """Sketches as `mean + 16 * scale * rows`; `size` is the length of a row, 1 unless there is hardly any contrast."""

    rows: np.ndarray  # float64 [n, 256]
    mean: np.ndarray
    scale: np.ndarray
    size: np.ndarray

    @classmethod
    def of(cls, grey: np.ndarray) -> "_Shapes":
        flat = grey.reshape(len(grey), -1) / 255.0
        mean = flat.mean(1)
        centred = (flat - mean[:, None]) / SKETCH_PX
        contrast = np.sqrt((centred * centred).sum(1))
        scale = np.maximum(contrast, CONTENT)
        return cls(rows=centred / scale[:, None], mean=mean, scale=scale, size=contrast / scale)

    def picked(self, places: np.ndarray) -> "_Shapes":
        """`mean`, `scale` and `size` at these places, without the rows."""
        return _Shapes(rows=self.rows[:0], mean=self.mean[places], scale=self.scale[places], size=self.size[places])


def _keep_best(found: NearMatches, rows: np.ndarray, columns: np.ndarray, distance: np.ndarray) -> None:
    """Enter pairs into `found`: per query the nearest reference, the lower index at a tie, and the lowest matching index."""
    order = np.lexsort((columns, distance, rows))
    best = order[np.unique(rows[order], return_index=True)[1]]
    nearer = best[distance[best] < found.distance[rows[best]]]
    found.reference[rows[nearer]], found.distance[rows[nearer]] = columns[nearer], distance[nearer]
    lowest = np.lexsort((columns, rows))
    lowest = lowest[np.unique(rows[lowest], return_index=True)[1]]
    known = found.first[rows[lowest]]
    found.first[rows[lowest]] = np.where(known < 0, columns[lowest], np.minimum(known, columns[lowest]))
