"""Images of more than 8 bits: their range is declared by the files, measured over the set or configured, and always reported."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gda.data.images.codecs import decode, extent_of, to_array
from gda.data.images.deep import Extent, range_of
from gda.data.store.snapshot import Snapshot
from gda.errors import DataError


def png16(values: np.ndarray) -> bytes:
    """A 16-bit PNG of [height, width] grey, [height, width, 3] RGB or [height, width, 4] RGBA."""
    height, width, *rest = values.shape
    colour = {(): 0, (3,): 2, (4,): 6}[tuple(rest)]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(values: np.ndarray, **tags: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF", **tags)
    return buffer.getvalue()


def write_set(root: Path, make: Any, count: int = 14) -> Path:
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for index in range(count):
            data = make(np.random.default_rng([ord(name), index]))
            (root / name / str(index)).write_bytes(data)
    return root


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda rng: png16(rng.integers(0, 4096, (8, 8))), "values 0 to 4095 become"),
        (lambda rng: png16(rng.integers(0, 1024, (8, 8, 3))), "values 0 to 1023 become"),
        (lambda rng: tiff(rng.integers(0, 4096, (8, 8)).astype(np.uint16)), "values 0 to 4095 become"),
        (lambda rng: pnm(rng.integers(0, 4096, (8, 8, 3)), 65535), "values 0 to 4095 become 0 to 255 (measured"),
        (lambda rng: pnm(rng.integers(0, 4096, (8, 8, 3)), 4095), "values 0 to 65535 become 0 to 255 (as the files say"),
        (lambda rng: pnm(rng.integers(0, 4096, (8, 8)), 65535), "values 0 to 4095 become 0 to 255 (measured"),
        (lambda rng: tiff(rng.random((8, 8)).astype(np.float32)), "values 0 to 1 become"),
    ],
    ids=["12-bit grey", "10-bit RGB", "12-bit TIFF", "PPM of 65535", "PPM of 4095", "PGM of 65535", "float TIFF"],
)
def test_a_sets_range_is_measured_and_reported(tmp_path: Path, take: Any, make: Any, message: str) -> None:
    """Guards contrast: the whole set is scaled alike, uses the whole of 0 to 255, and the closing line says from what."""
    outcome = take(write_set(tmp_path / "in", make))
    assert message in outcome.summary
    assert "28 images of more than 8 bits" in Snapshot.open(outcome.output).index.provenance["pixel_range"]


def test_the_range_can_be_set(tmp_path: Path, take: Any) -> None:
    """Guards snapshot.pixel_range: it decides, changes the content, and must ascend."""
    source = write_set(tmp_path / "in", lambda rng: png16(rng.integers(0, 4096, (8, 8))))
    measured, chosen = take(source), take(source, "out2", pixel_range=(0.0, 65535.0))
    assert measured.digest != chosen.digest
    assert "values 0 to 65535 become 0 to 255 (snapshot.pixel_range)" in chosen.summary
    with pytest.raises(ValueError, match="the lower one first"):
        take(source, "out3", pixel_range=(5.0, 5.0))


def test_colours_keep_their_lower_byte() -> None:
    """Guards 16-bit RGB and RGBA, which Pillow alone reads by the higher byte; alpha is laid over white."""
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 3))  # lower bytes only
    rgb = to_array(decode(png16(values), name="x", pixel_range=(0.0, 255.0)))
    assert np.array_equal(rgb, values)
    clear = np.concatenate([values, np.zeros((5, 7, 1), int)], axis=2)
    assert (to_array(decode(png16(clear), name="x", pixel_range=(0.0, 255.0))) == 255).all()
    assert extent_of(png16(values), "x") == Extent(float(values.min()), float(values.max()))


def test_files_that_say_their_range() -> None:
    """Guards metadata: a TIFF's MaxSampleValue and a PGM's largest value win over what was measured."""
    grey = np.full((4, 4), 1000, np.uint16)
    found = [extent_of(tiff(grey, tiffinfo={281: 4095}), "x")]
    assert range_of(found, None).range == (0.0, 4095.0)  # type: ignore[arg-type, union-attr]
    pgm = b"P5 4 4 4095\n" + grey.astype(">u2").tobytes()
    found_range = range_of([extent_of(pgm, "x")], None)  # type: ignore[list-item]
    assert found_range is not None
    assert to_array(decode(pgm, name="x", pixel_range=found_range.range))[0, 0, 0] == round(1000 / 4095 * 255)


def pnm(values: np.ndarray, largest: int, comment: bytes = b"") -> bytes:
    """A binary PGM of [height, width] or PPM of [height, width, 3]."""
    height, width, *rest = values.shape
    header = b"%s\n%s%d %d\n%d\n" % (b"P6" if rest else b"P5", comment, width, height, largest)
    return header + values.astype(">u2" if largest > 255 else "u1").tobytes()


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)], ids=["P5", "P6"])
def test_binary_ppm_and_pgm(shape: tuple[int, ...]) -> None:
    """Guards netpbm: at 65535 the range is measured as for a 16-bit PNG, at 4095 the header says it, also behind a comment."""
    values = np.random.default_rng(1).integers(0, 4096, shape)
    values.flat[0] = 4095
    as_png = to_array(decode(png16(values), name="x", pixel_range=(0.0, 4095.0)))
    for largest, comment, wanted in [(65535, b"", (0.0, 4095.0)), (4095, b"", (0.0, 65535.0)), (4095, b"# made by hand\n", (0.0, 65535.0))]:
        data = pnm(values, largest, comment)
        found = range_of([each for each in [extent_of(data, "x")] if each], None)
        assert found is not None
        assert found.range == wanted
        assert np.abs(to_array(decode(data, name="x", pixel_range=found.range)).astype(int) - as_png).max() <= (largest == 4095)
        with pytest.raises(DataError, match="x: has more than 8 bits a value, and no range of them is known"):
            decode(data, name="x")


def test_ppm_of_8_bits_and_damaged_ones() -> None:
    """Guards netpbm of 8 bits, read as ever; one that is cut short and one in plain text are refused by name."""
    values = np.random.default_rng(2).integers(0, 256, (4, 5, 3))
    assert extent_of(pnm(values, 255), "x") is None
    assert np.array_equal(to_array(decode(pnm(values, 255), name="x")), values)
    for cut in (1, 2):
        with pytest.raises(DataError, match="x: is cut short"):
            extent_of(pnm(values, 4095)[:-cut], "x")
        with pytest.raises(DataError, match="x: "):
            decode(pnm(values, 4095)[:-cut], name="x", pixel_range=(0.0, 65535.0))
    with pytest.raises(DataError, match="x: a PPM of more than 8 bits in plain text is not read"):
        decode(b"P3 1 1 4095 1 2 3\n", name="x", pixel_range=(0.0, 65535.0))


def test_ranges_of_sets() -> None:
    """Guards the rule: bits for whole numbers, 1 or 255 for floats, the extremes for all else; mixtures are refused."""
    for low, high, floating, wanted in [
        (3, 200, False, (0, 255)),
        (0, 40000, False, (0, 65535)),
        (-1000, 3000, False, (-1000, 3000)),
        (0, 0.5, True, (0, 1)),
        (0, 254.5, True, (0, 255)),
        (-2.5, 7, True, (-2.5, 7)),
    ]:
        found = range_of([Extent(low, high, floating)], None)
        assert found is not None
        assert found.range == wanted
    assert range_of([], None) is None
    with pytest.raises(DataError, match=r"others floats; set snapshot.pixel_range"):
        range_of([Extent(0, 1, True), Extent(0, 4000)], None)


def test_values_that_cannot_be_scaled() -> None:
    """Guards NaN, and 16-bit grey with alpha, whose lower byte nobody reads: refused by name."""
    with pytest.raises(DataError, match="x: holds NaN or infinity"):
        decode(tiff(np.full((2, 2), np.nan, np.float32)), name="x", pixel_range=(0.0, 1.0))
