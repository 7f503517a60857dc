"""The decoding policy: what is converted, and what is refused with which reason."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from gda.data.images import codecs, deep
from gda.data.images.codecs import decode, encode_png, pixel_digest, resize_and_crop, to_array
from gda.errors import DataError

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return to_array(decode(data, name="x"))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_pixels(kind: str, picture: object) -> None:
    """Guards every accepted lossless format against changed pixels."""
    rgb = picture(1)
    assert np.array_equal(decoded(encoded(Image.fromarray(rgb), kind)), rgb)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_decode(kind: str) -> None:
    """Guards the two lossy formats: near the original, three channels."""
    rgb = np.full((16, 16, 3), (200, 100, 50), dtype=np.uint8)
    assert np.abs(decoded(encoded(Image.fromarray(rgb), kind, quality=95)).astype(int) - rgb).max() <= 6


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grey_bilevel_and_palette_become_rgb(mode: str) -> None:
    """Guards the plain conversions."""
    image = Image.fromarray(GREY).convert(mode)
    assert np.array_equal(decoded(encoded(image, "PNG")), to_array(image.convert("RGB")))


def test_sixteen_bits_are_scaled() -> None:
    """Guards 16-bit grey: black stays 0, white 255, the middle the middle - not clipped to white."""
    grey = np.array([[0, 257 * 200, 65535, 32768]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        rgb = to_array(decode(encoded(Image.fromarray(grey), kind), name="x", pixel_range=(0.0, 65535.0)))
        assert rgb[0, :, 0].tolist() == [0, 200, 255, 128]


def test_cmyk_becomes_rgb() -> None:
    """Guards CMYK JPEGs, as print shops deliver them."""
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = decoded(encoded(image, "JPEG", quality=100))[4, 4]
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_lies_over_white(kind: str) -> None:
    """Guards transparency: what shows is white, not whatever colour hid there."""
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (decoded(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))) == 255).all()


def test_palette_transparency_lies_over_white() -> None:
    """Guards palette images with one transparent colour."""
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert (decoded(encoded(image, "PNG", transparency=0)) == 255).all()


def test_exif_rotation_is_applied() -> None:
    """Guards phone pictures: orientation 6 means turned, so width and height swap and the pixels move."""
    rgb = np.zeros((4, 8, 3), dtype=np.uint8)
    rgb[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decoded(encoded(Image.fromarray(rgb), "PNG", exif=exif))
    assert turned.shape == (8, 4, 3)
    assert turned[0, 3].tolist() == [255, 255, 255]


def test_extension_does_not_matter() -> None:
    """Guards against trusting names: content decides the format."""
    assert decode(encoded(Image.fromarray(GREY), "JPEG"), name="photo.png").size == (16, 16)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero bytes"),
        (b"this is text", "not an image of an accepted format"),
        (b"\x89PNG\r\n\x1a\n", "not an image|cannot be decoded"),
    ],
)
def test_what_is_no_image(data: bytes, reason: str) -> None:
    """Guards against files that are no images; the reason is one line that names the file."""
    with pytest.raises(DataError, match=rf"\Ax\.png: ({reason})"):
        decode(data, name="x.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_truncated_at_any_tenth(kind: str, picture: object) -> None:
    """Guards against files cut short, which a mere look at the header accepts: every cut is refused, none gives half an image."""
    data = encoded(Image.fromarray(picture(1, 64, 64)), kind)
    for cut in range(1, 10):
        with pytest.raises(DataError, match="x: "):
            decode(data[: len(data) * cut // 10], name="x")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_several_frames(kind: str, picture: object) -> None:
    """Guards against animations and documents, of which one frame would be taken silently."""
    frames = [Image.fromarray(picture(i)) for i in range(3)]
    with pytest.raises(DataError, match="animated or with several pages"):
        decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), name="x")


def test_gif_is_not_accepted() -> None:
    """Guards the list of decoders: only those listed are ever run."""
    with pytest.raises(DataError, match="accepted format"):
        decode(encoded(Image.fromarray(GREY), "GIF"), name="x")


def test_decompression_bomb() -> None:
    """Guards memory: a few kilobytes that claim 400 megapixels are refused before decoding."""
    with pytest.raises(DataError, match="pixels"):
        decode(encoded(Image.new("1", (20000, 20000)), "PNG"), name="x")


def test_own_pixel_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards our own cap, which is below Pillow's."""
    monkeypatch.setattr(codecs, "MAX_PIXELS", 255)
    with pytest.raises(DataError, match="16x16 is more than 255 pixels"):
        decode(encoded(Image.fromarray(GREY), "PNG"), name="x")


def test_values_of_unknown_range_are_refused() -> None:
    """Guards against a range that is made up: who has none gets no image of more than 8 bits."""
    with pytest.raises(DataError, match="more than 8 bits a value, and no range"):
        decode(encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), name="x")


@pytest.mark.parametrize(
    ("module", "name", "bits"),
    [(codecs, "_to_rgb", 8), (codecs, "_marks", 8), (codecs, "is_deep", 8), (codecs, "scale", 16), (deep, "_declared", 16)],
)
def test_our_own_defects_are_no_damaged_images(module: object, name: str, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a defect of ours that is counted as a damaged image: only what Pillow trips over is."""

    def defect(*_: object) -> None:
        raise TypeError("a defect")

    monkeypatch.setattr(module, name, defect)
    data = encoded(Image.fromarray(GREY if bits == 8 else GREY.astype(np.uint16) * 200), "PNG")
    with pytest.raises(TypeError, match="a defect"):
        codecs.extent_of(data, "x") if name == "_declared" else decode(data, name="x", pixel_range=(0.0, 65535.0))


@pytest.mark.parametrize("kind", [OSError, SyntaxError, ValueError, RuntimeError, TypeError, struct.error])
def test_what_pillow_trips_over_is_the_fault_of_the_file(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the types that Pillow's decoders were seen to raise for damaged images: each is one line with the file's name."""

    def trip(self: object) -> None:
        raise kind("bad data")

    monkeypatch.setattr(Image.Image, "load", trip)
    monkeypatch.setattr(ImageFile.ImageFile, "load", trip)
    with pytest.raises(DataError, match=r"^x: cannot be decoded \(bad data\)$"):
        decode(b"P6 1 1 255 abc", name="x")


def test_lab_is_refused() -> None:
    """Guards against colour spaces that Pillow cannot convert by itself."""
    profile = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    image = ImageCms.applyTransform(Image.new("RGB", (4, 4)), profile)
    with pytest.raises(DataError, match="LAB"):
        decode(encoded(image, "TIFF"), name="x")


def test_png_bytes_are_stable_and_exact(picture: object) -> None:
    """Guards the codec: equal pixels and text give equal bytes, and decoding gives the pixels and our text keys back."""
    text = {"gda:synthetic": "abc", "gda:b": "2", "Title": "x"}
    data = encode_png(picture(1), text)
    assert data == encode_png(picture(1).copy(), dict(reversed(text.items())))
    image = decode(data, name="x")
    assert np.array_equal(to_array(image), picture(1))
    assert image.info == {"gda:synthetic": "abc", "gda:b": "2"}


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8)])
def test_only_rgb_bytes_are_encoded(bad: np.ndarray) -> None:
    """Guards against float or transposed arrays that would be stored as noise."""
    with pytest.raises(ValueError, match="expected uint8"):
        encode_png(bad)


def test_pixel_digest_is_of_pixels_and_shape(picture: object) -> None:
    """Guards the identity of pictures: independent of codec and memory layout, dependent on shape and every value."""
    rgb = picture(1)
    assert pixel_digest(rgb) == pixel_digest(decoded(encoded(Image.fromarray(rgb), "BMP")))
    assert pixel_digest(rgb) == pixel_digest(np.asfortranarray(rgb))
    assert pixel_digest(rgb) != pixel_digest(rgb.reshape(12, 10, 3))
    changed = rgb.copy()
    changed[-1, -1, -1] ^= 1
    assert pixel_digest(rgb) != pixel_digest(changed)


def test_resize_and_crop_takes_the_centre() -> None:
    """Guards geometry: the short side is scaled, the long one cropped evenly; a fitting image passes untouched."""
    rgb = np.zeros((10, 30, 3), dtype=np.uint8)
    rgb[:, 10:20] = 255
    assert (to_array(resize_and_crop(Image.fromarray(rgb), 10)) == 255).all()
    small = to_array(resize_and_crop(Image.fromarray(rgb), 5))
    assert small.shape == (5, 5, 3)
    assert small[:, 1:4].min() > 200
    image = Image.fromarray(rgb[:, :10])
    assert resize_and_crop(image, 10) is image
