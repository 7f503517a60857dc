"""Images of more than 8 bits per value: reading their values, and the range that becomes 0 to 255, measured over a whole set."""

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, TiffImagePlugin

from gda.data.images.pillow import FORMATS, faults_of_the_file
from gda.errors import DataError

Range = tuple[float, float]  # the values that become 0 and 255
_Rgb = npt.NDArray[np.uint8]

_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
# The mode that reads the lower byte, by the mode that reads the higher one (N: native byte order).
_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B"}
_PHOTOMETRIC, _MAX_SAMPLE_VALUE = 262, 281  # tags of TIFF
_BYTE_MAX, _WORD_MAX = 255, 65535
_ROWS = 256  # at a time, in floats


@dataclass(frozen=True)
class Extent:
    """The lowest and highest value of an image, whether its values are floats, and the largest value that its file declares."""

    low: float
    high: float
    floating: bool = False
    declared: float | None = None


@dataclass(frozen=True)
class SetRange:
    """The range of a set's images with more than 8 bits, the number of such images, and the origin of the range."""

    range: Range
    count: int
    origin: str

    @property
    def message(self) -> str:
        """For the closing line and the provenance."""
        low, high = self.range
        return f"{self.count} images of more than 8 bits: values {low:g} to {high:g} become 0 to 255 ({self.origin})"


def may_be_deep(head: bytes) -> bool:
    """Whether an image with these first 32 bytes may have more than 8 bits per value."""
    if head.startswith(b"\x89PNG"):
        return head[24:25] == b"\x10"
    return head[:2] in (b"II", b"MM", b"P2", b"P3", b"P5", b"P6")


def is_deep(image: Image.Image) -> bool:
    """Whether an image that Pillow has opened, but not loaded, has more than 8 bits per value."""
    return image.mode in _DEEP_MODES or ";16" in _raw_mode(image) or _largest(image) > _BYTE_MAX


def read_deep(data: bytes, name: str) -> npt.NDArray[Any]:
    """Values, whole or floats, [height, width] or [height, width, 3 or 4] of an image for which `is_deep`.

    Raises `DataError`.
    """
    with faults_of_the_file(data, name):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        white_is_0 = isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PHOTOMETRIC) == 0
    if white_is_0:
        raise DataError(f"{name}: a TIFF of more than 8 bits in which white is 0 is not read; invert it")
    if image.mode in _DEEP_MODES:
        values = _loaded(image, data, name)
    elif image.mode in ("RGB", "RGBA") and image.format == "PPM":
        values = _colours_of_ppm(image, data, name)
    elif image.mode in ("RGB", "RGBA"):
        values = _loaded(image, data, name).astype(np.uint16) << 8
        values |= _of_lower_bytes(data, name)
    else:
        raise DataError(f"{name}: 16-bit {image.mode} is not read; accepted at 16 bits: grey, RGB and RGBA")
    if not np.isfinite(values).all():
        raise DataError(f"{name}: holds NaN or infinity")
    return values


def extent(data: bytes, name: str) -> Extent | None:
    """The extent of an image with more than 8 bits; None for any other. Raises as `read_deep`."""
    with faults_of_the_file(data, name):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    if not is_deep(image):
        return None
    declared, floating = _declared(image, data, name), image.mode == "F"
    values = read_deep(data, name)
    colours = values[..., :3] if values.ndim == 3 else values
    return Extent(float(colours.min()), float(colours.max()), floating, declared)


def range_of(extents: Iterable[Extent], configured: Range | None) -> SetRange | None:
    """The range of a set: `configured`, else the one that all files declare, else measured. None without `extents`.

    A measured range of whole numbers from 0 reaches to the largest number with as many bits as the highest value; one of floats is 0 to 1
    or 0 to 255 if they fit; any other is from lowest to highest. Raises `DataError` for a mixture of whole numbers and floats.
    """
    found = list(extents)
    if not found:
        return None
    if configured is not None:
        return SetRange(configured, len(found), "snapshot.pixel_range")
    low, high = min(each.low for each in found), max(each.high for each in found)
    kinds = {each.floating for each in found}
    if len(kinds) > 1:
        raise DataError("some images hold whole numbers of more than 8 bits and others floats; set snapshot.pixel_range to their range")
    if len({each.declared for each in found}) == 1 and (declared := found[0].declared) is not None and low >= 0 and high <= declared:
        return SetRange((0.0, declared), len(found), "as the files say")
    origin = f"measured: {low:g} to {high:g}; snapshot.pixel_range sets another range"
    if low < 0:
        return SetRange((low, high), len(found), origin)
    if not kinds.pop():
        return SetRange((0.0, float(max(2 ** int(high).bit_length() - 1, _BYTE_MAX))), len(found), origin)
    top = next((top for top in (1.0, float(_BYTE_MAX)) if high <= top), None)
    return SetRange((0.0, top) if top else (low, high), len(found), origin)


def scale(values: npt.NDArray[Any], wanted: Range) -> _Rgb:
    """uint8 [height, width, 3] of `read_deep`'s values; alpha is laid over white, values outside the range become 0 or 255."""
    low, high = wanted
    out = np.empty((*values.shape[:2], 3), np.uint8)
    for start in range(0, len(values), _ROWS):
        rows = values[start : start + _ROWS].astype(np.float64)
        rows = rows if rows.ndim == 3 else rows[..., None]
        shares = ((rows[..., :3] - low) / (high - low if high > low else 1.0)).clip(0.0, 1.0)
        if rows.shape[2] == 4:
            alpha = rows[..., 3:] / _WORD_MAX
            shares = shares * alpha + (1.0 - alpha)
        out[start : start + _ROWS] = np.rint(shares * _BYTE_MAX)
    return out


def _loaded(image: Image.Image, data: bytes, name: str) -> npt.NDArray[Any]:
    with faults_of_the_file(data, name):
        return np.asarray(image)


def _of_lower_bytes(data: bytes, name: str) -> npt.NDArray[Any]:
    """The lower bytes of the same image: Pillow itself reads only the higher bytes of 16-bit colours."""
    with faults_of_the_file(data, name):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    tiles = []
    for tile in image.tile:
        args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        raw = str(args[0])
        changed = (raw[:-3] + _OTHER_BYTE[raw[-3:]], *args[1:])
        tiles.append(tile._replace(args=changed if isinstance(tile.args, tuple) else changed[0]))
    image.tile = tiles
    return _loaded(image, data, name)


def _colours_of_ppm(image: Image.Image, data: bytes, name: str) -> npt.NDArray[np.uint16]:
    """Its values scaled to 0 to 65535, as Pillow does for a PGM; for colours Pillow would keep 8 bits."""
    assert isinstance(image, ImageFile.ImageFile)
    if image.tile[0].codec_name == "ppm_plain":
        raise DataError(f"{name}: a PPM of more than 8 bits in plain text is not read; write it in binary")
    shape = (image.height, image.width, len(image.getbands()))
    body = data[image.tile[0].offset :][: 2 * math.prod(shape)]
    if len(body) < 2 * math.prod(shape):
        raise DataError(f"{name}: is cut short")
    shares = np.frombuffer(body, dtype=np.dtype(">u2")).reshape(shape) / _largest(image)
    return np.rint(shares * _WORD_MAX).clip(0, _WORD_MAX).astype(np.uint16)


def _largest(image: Image.Image) -> int:
    """The largest value that the header of a PPM or PGM declares, where Pillow scales by it; 0 for all other images."""
    args = image.tile[0].args if isinstance(image, ImageFile.ImageFile) and image.format == "PPM" and image.tile else ()
    return int(args[1]) if isinstance(args, tuple) and len(args) == 2 else 0


def _raw_mode(image: Image.Image) -> str:
    args = image.tile[0].args if isinstance(image, ImageFile.ImageFile) and image.tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _declared(image: Image.Image, data: bytes, name: str) -> float | None:
    """The largest possible value, from a TIFF's tag or the header of a PGM or PPM; None where it is just the limit of the type."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        with faults_of_the_file(data, name):
            value = image.tag_v2.get(_MAX_SAMPLE_VALUE)
        value = value[0] if isinstance(value, tuple) and value else value
        return float(value) if isinstance(value, int) and _BYTE_MAX < value < _WORD_MAX else None
    return float(_WORD_MAX) if _BYTE_MAX < _largest(image) < _WORD_MAX else None  # to which its values are scaled
