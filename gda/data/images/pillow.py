"""The boundary to Pillow: the accepted formats, and one error that names the file for everything that Pillow raises."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, features

from gda.data.images.listing import HEAD, image_format
from gda.errors import DataError
from gda.runtime.interruption import require_not_stopped

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", *(("AVIF",) if features.check("avif") else ()))
MAX_PIXELS = 1 << 26  # 67 megapixels, below the size at which Pillow itself starts to warn


@contextmanager
def faults_of_the_file(data: bytes, name: str) -> Iterator[None]:
    """Run calls of Pillow on the image in `data`: any exception from them is the fault of the file, and becomes a `DataError`.

    Its decoders raise OSError, SyntaxError, ValueError, RuntimeError, TypeError and struct.error for damaged images. Defects of this
    program raise the same types, so no list of types separates the two: keep everything but calls of Pillow outside.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own, lower cap is checked before decoding
            yield
    except DataError:
        raise
    except Image.UnidentifiedImageError:
        found = image_format(data[:HEAD])
        what = f"{found}, not an accepted format" if found and found.upper() not in FORMATS else "not an image of an accepted format"
        raise DataError(f"{name}: {what} ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise DataError(f"{name}: more than {MAX_PIXELS} pixels") from None
    except Exception as error:
        require_not_stopped()
        raise DataError(f"{name}: cannot be decoded ({str(error) or type(error).__name__})") from None
