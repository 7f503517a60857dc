"""What happens to every image on its way in: one decoding policy, one codec, one hash of the pixels.

Policy: PNG, JPEG, WebP, BMP, TIFF and PPM by content, not by extension; at most `MAX_PIXELS`; one frame (of a JPEG with several
pictures, the first); loaded to the last byte; EXIF rotation applied; alpha laid over white; CMYK, YCbCr, palette, grey and
bilevel converted to RGB; 16-bit grey scaled to 8 bits; 32-bit images refused. Colour profiles are dropped, not applied.
"""

import hashlib
import io
import warnings
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, PngImagePlugin

from gda.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
MAX_PIXELS = 1 << 26  # 67 megapixels, below the size at which Pillow itself starts to warn
SYNTHETIC_MARK = "gda:synthetic"  # PNG text key of every image this program draws
_PLAIN = ("RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV")
_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_GREY16 = ("I;16", "I;16B", "I;16L", "I;16N")

Rgb = npt.NDArray[np.uint8]  # [height, width, 3]


def decode(data: bytes, *, name: str) -> Image.Image:
    """Decode to RGB under the policy above; `info` of the result keeps only text keys that start with `gda:`.

    Raises `DataError` "<name>: <reason>" for anything that is not one whole, still image of an accepted format and size.
    """
    if not data:
        raise DataError(f"{name}: zero bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own, lower cap is checked before decoding
            image = _load(data, name)
            marks: dict[str | tuple[int, int], str] = {k: v for k, v in image.info.items() if isinstance(k, str) and k.startswith("gda:")}
            rgb = _to_rgb(ImageOps.exif_transpose(image), image.format, name)
    except DataError:
        raise
    except Image.UnidentifiedImageError:
        raise DataError(f"{name}: not an image of an accepted format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise DataError(f"{name}: more than {MAX_PIXELS} pixels") from None
    except Exception as error:  # whatever a decoder trips over is the fault of the file
        raise DataError(f"{name}: cannot be decoded ({str(error) or type(error).__name__})") from None
    rgb.info = dict(marks)
    return rgb


def encode_png(rgb: Rgb, text: Mapping[str, str] | None = None) -> bytes:
    """PNG bytes of uint8 [height, width, 3]; equal pixels and text give equal bytes (for one version of Pillow and zlib)."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"expected uint8 [height, width, 3], got {rgb.dtype} {rgb.shape}")
    info = PngImagePlugin.PngInfo()
    for key in sorted(text or {}):
        info.add_text(key, (text or {})[key])
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG", compress_level=6, pnginfo=info)
    return buffer.getvalue()


def pixel_digest(rgb: Rgb) -> str:
    """sha256 of shape and uint8 pixels [height, width, 3]: equal for equal pictures however they were encoded."""
    height, width, channels = rgb.shape
    return hashlib.sha256(f"{height}x{width}x{channels}:".encode() + np.ascontiguousarray(rgb).tobytes()).hexdigest()


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the short side to `size` pixels (Lanczos, antialiased) and crop the centre square; images of that size pass unchanged."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), method=Image.Resampling.LANCZOS)


def to_array(image: Image.Image) -> Rgb:
    """uint8 [height, width, 3] of an RGB image."""
    return np.asarray(image, dtype=np.uint8)


def _load(data: bytes, name: str) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{name}: {width}x{height} is more than {MAX_PIXELS} pixels")
    # A JPEG that carries further pictures (previews, depth maps) opens as MPO at its main picture.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise DataError(f"{name}: animated or with several pages; only still images are accepted")
    image.load()
    return image


def _to_rgb(image: Image.Image, source_format: str | None, name: str) -> Image.Image:
    if image.mode in _GREY16 or (image.mode == "I" and source_format in ("PNG", "PPM")):
        return _from_grey16(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _ALPHA or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if image.mode in _PLAIN:
        return image.convert("RGB")
    raise DataError(f"{name}: pixel format {image.mode} is not accepted (8-bit images and 16-bit grey are)")


def _from_grey16(image: Image.Image) -> Image.Image:
    # 65535 = 255 * 257, so rounding v / 257 maps black to 0, white to 255 and the rest evenly
    grey = np.rint(np.asarray(image).astype(np.float64) / 257.0).clip(0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
