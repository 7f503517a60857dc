"""Decoding and encoding of all images: one decoding policy, three codecs, one hash of the pixels.

Policy: PNG, JPEG, WebP, AVIF, BMP, TIFF and PPM by content, not by extension; at most `MAX_PIXELS`; one frame (of a JPEG with several
pictures, the first); read to the last byte; EXIF rotation applied; alpha laid over white; CMYK, YCbCr, palette, grey and
bilevel converted to RGB; values of more than 8 bits scaled from a range that the caller knows. Colour profiles are dropped, not applied.

Marks show that an image is synthetic. They are text keys of a PNG, and lines of the EXIF field ImageDescription in other formats. Arrays
(.npz) and formats with neither (BMP, PPM) cannot carry marks.
"""

import hashlib
import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from gda.data.images.deep import Extent, Range, extent, is_deep, read_deep, scale
from gda.data.images.pillow import FORMATS as FORMATS
from gda.data.images.pillow import MAX_PIXELS, faults_of_the_file
from gda.errors import DataError

SYNTHETIC_MARK = "gda:synthetic"  # in every image that this program samples or imports as synthetic, with the generator's digest
LOSSY = ("jpeg", "lossy webp", "avif")
_MARKS = "gda:"
_EXTENSIONS = {"png": "png", "webp": "webp", "jpeg": "jpg"}
_MAX_SIDE = {"png": (1 << 31) - 1, "webp": 16383, "jpeg": 65500}  # pixels; limits of the formats
_PLAIN = ("RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV")
_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")

Rgb = npt.NDArray[np.uint8]  # [height, width, 3]
Interpolation = Literal["lanczos", "bicubic", "bilinear"]
LANCZOS: Interpolation = "lanczos"
Format = Literal["png", "webp", "jpeg"]


@dataclass(frozen=True)
class Codec:
    """How an image is stored: `png` and `webp` lossless, `jpeg` at `quality` 1 to 100 with colour at full resolution (4:4:4)."""

    format: Format = "png"
    quality: int = 95

    def __post_init__(self) -> None:
        if self.format not in get_args(Format) or not 1 <= self.quality <= 100:
            raise ValueError(f"no codec {self.format!r} of quality {self.quality}")

    @property
    def extension(self) -> str:
        """Of file names: png, webp or jpg."""
        return _EXTENSIONS[self.format]

    @property
    def lossless(self) -> bool:
        """Whether a reader gets the very pixels that were encoded."""
        return self.format != "jpeg"


PNG = Codec()


def decode(data: bytes, *, name: str, pixel_range: Range | None = None) -> Image.Image:
    """Decode to RGB under the policy above; `info` of the result keeps only the marks, texts by keys that start with `gda:`.

    `pixel_range` holds the values of images with more than 8 bits that become 0 and 255; without it such images are refused.
    Raises `DataError` "<name>: <reason>" for anything that is not one whole, still image of an accepted format and size.
    """
    image = _opened(data, name)
    deep = is_deep(image)
    if deep and pixel_range is None:
        raise DataError(f"{name}: has more than 8 bits a value, and no range of them is known here")
    with faults_of_the_file(data, name):
        image.load()
        exif = image.getexif()
        description, turned = exif.get(ExifTags.Base.ImageDescription), exif.get(ExifTags.Base.Orientation, 1)
    marks = _marks(description, image.info)
    if deep:
        assert pixel_range is not None
        rgb = Image.fromarray(scale(read_deep(data, name), pixel_range))
        rgb.getexif()[ExifTags.Base.Orientation] = turned
        rgb = _upright(rgb, data, name)
    else:
        rgb = _to_rgb(_upright(image, data, name), name)
    rgb.info = dict(marks)
    return rgb


def extent_of(data: bytes, name: str) -> Extent | None:
    """The range of values in an image of more than 8 bits, None for other images. Raises `DataError` as `decode`."""
    _opened(data, name)
    return extent(data, name)


def encode(rgb: Rgb, codec: Codec = PNG, text: Mapping[str, str] | None = None) -> bytes:
    """Bytes of uint8 [height, width, 3] with `text` inside, where `decode` finds the keys that start with `gda:`.

    Equal pixels, codec and text give equal bytes for one version of Pillow and its libraries. Raises `ValueError` for other arrays, a
    side that the format cannot hold, and for webp and jpeg text that is not one line of ASCII.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"expected uint8 [height, width, 3], got {rgb.dtype} {rgb.shape}")
    if max(rgb.shape) > _MAX_SIDE[codec.format]:
        raise ValueError(f"{rgb.shape[1]}x{rgb.shape[0]} is more than {codec.format} can hold, {_MAX_SIDE[codec.format]} pixels a side")
    buffer, image = io.BytesIO(), Image.fromarray(rgb)
    if codec.format == "png":
        # Filtered rows and runs without a search for matches: photographs take as many bytes as at level 6 in half the time.
        image.save(buffer, "PNG", compress_level=6, compress_type=zlib.Z_RLE, pnginfo=_png_text(text or {}))
    elif codec.format == "webp":
        # For lossless WebP, `quality` is effort: method 1 saves 5% of the bytes for three times the time, method 4 9% for twenty times.
        image.save(buffer, "WEBP", lossless=True, method=0, quality=0, exif=_exif(text or {}))
    else:
        image.save(buffer, "JPEG", quality=codec.quality, subsampling="4:4:4", optimize=True, exif=_exif(text or {}))
    return buffer.getvalue()


def encode_png(rgb: Rgb, text: Mapping[str, str] | None = None) -> bytes:
    """`encode` as PNG."""
    return encode(rgb, PNG, text)


def stored_pixels(rgb: Rgb, encoded: bytes, codec: Codec) -> Rgb:
    """The pixels that a reader of `encoded`, which `encode` made from `rgb`, gets; they differ from `rgb` for jpeg.

    The last bits of JPEG pixels depend on the JPEG library.
    """
    return rgb if codec.lossless else to_array(Image.open(io.BytesIO(encoded), formats=("JPEG",)))


def compression(data: bytes) -> str:
    """How an image that `decode` accepts was compressed: one of `LOSSY`, else "lossless"; a TIFF counts as such."""
    if data[:2] == b"\xff\xd8":
        return "jpeg"
    if data[4:8] == b"ftyp":
        return "avif"
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return "lossless"
    start = 12
    while data[start : start + 4] not in (b"VP8 ", b"VP8L", b""):
        start += 8 + (int.from_bytes(data[start + 4 : start + 8], "little") + 1) // 2 * 2
    return "lossy webp" if data[start : start + 4] == b"VP8 " else "lossless"


def pixel_digest(rgb: Rgb) -> str:
    """sha256 of shape and uint8 pixels [height, width, 3]: equal for equal pictures however they were encoded."""
    height, width, channels = rgb.shape
    return hashlib.sha256(f"{height}x{width}x{channels}:".encode() + np.ascontiguousarray(rgb).tobytes()).hexdigest()


def resize_and_crop(image: Image.Image, size: int, interpolation: Interpolation = LANCZOS) -> Image.Image:
    """Scale the short side to `size` pixels (antialiased) and crop the centre square; images of that size pass unchanged."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), method=Image.Resampling[interpolation.upper()])


def to_array(image: Image.Image) -> Rgb:
    """uint8 [height, width, 3] of an RGB image."""
    return np.asarray(image, dtype=np.uint8)


def _opened(data: bytes, name: str) -> Image.Image:
    if not data:
        raise DataError(f"{name}: zero bytes")
    with faults_of_the_file(data, name):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{name}: {width}x{height} is more than {MAX_PIXELS} pixels")
    with faults_of_the_file(data, name):
        frames = getattr(image, "n_frames", 1)
    # A JPEG that carries further pictures (previews, depth maps) opens as MPO at its main picture.
    if image.format != "MPO" and frames > 1:
        raise DataError(f"{name}: animated or with several pages; only still images are accepted")
    return image


def _marks(description: object, info: Mapping[str | tuple[int, int], object]) -> dict[str | tuple[int, int], str]:
    """The marks, texts by key, in an image's `info` and ImageDescription.

    Call it after loading: PNG allows texts after the pixels.
    """
    lines = description.splitlines() if isinstance(description, str) else []
    found = [line.partition("=")[::2] for line in lines if "=" in line]
    found += [(key, value) for key, value in info.items() if isinstance(key, str) and isinstance(value, str)]
    return {key: value for key, value in found if key.startswith(_MARKS)}


def _png_text(text: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for key in sorted(text):
        info.add_text(key, text[key])
    return info


def _exif(text: Mapping[str, str]) -> bytes:
    """EXIF whose ImageDescription, which every viewer shows, has a line `key=value` for each text; empty without text."""
    lines = [f"{key}={text[key]}" for key in sorted(text)]
    if not all(line.isascii() and line.isprintable() for line in lines):
        raise ValueError(f"{lines}: EXIF takes lines of ASCII")
    exif = Image.Exif()
    if lines:
        exif[ExifTags.Base.ImageDescription] = "\n".join(lines)
    return exif.tobytes() if lines else b""


def _upright(image: Image.Image, data: bytes, name: str) -> Image.Image:
    with faults_of_the_file(data, name):
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image  # exif_transpose would copy an upright image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _ALPHA or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if image.mode in _PLAIN:
        return image.convert("RGB")
    raise DataError(f"{name}: pixel format {image.mode} is not accepted")
