"""Codecs and marks: reading returns what was stored, and a synthetic image stays marked wherever its file goes."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from gda.data.export import export_snapshot
from gda.data.images.codecs import (
    PNG,
    SYNTHETIC_MARK,
    Codec,
    compression,
    decode,
    encode,
    encode_png,
    pixel_digest,
    stored_pixels,
    to_array,
)
from gda.data.store.classes import make_classes
from gda.data.store.in_memory import load_images
from gda.data.store.snapshot import Snapshot, commit_snapshot
from gda.data.store.verify import verify_snapshot
from gda.data.store.writer import ImageRecord, encode_record, write_image_shard
from gda.errors import DataError
from gda.io.shards import read_shard

CODECS = (PNG, Codec("webp"), Codec("jpeg", 90))
CLASSES = make_classes(["a", "b"])
DIGEST = "5f" * 32
Sampled = Callable[[Codec], Snapshot]

codecs = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.format)


def smooth(number: int, side: int = 24) -> np.ndarray:
    """uint8 [side, side, 3] that JPEG does not turn into something else entirely."""
    blobs = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(blobs).resize((side, side), Image.Resampling.BICUBIC))


def records(count: int = 6, start: int = 0) -> list[ImageRecord]:
    """Records as `sample` makes them."""
    return [
        ImageRecord(
            key=f"s{number}",
            rgb=smooth(number),
            label=number % 2,
            class_name=CLASSES[number % 2].name,
            meta={"seed": 2**62 + number, "prompt": "a", "generator_digest": DIGEST},
        )
        for number in range(start, start + count)
    ]


@pytest.fixture
def sampled(tmp_path: Path) -> Sampled:
    """sampled(codec) -> a synthetic snapshot of six images, as `sample` writes it."""

    def make(codec: Codec) -> Snapshot:
        folder = tmp_path / f"sampled-{codec.format}"
        folder.mkdir()
        rows = write_image_shard(folder, name="train-000000.tar", split="train", records=records(), codec=codec)
        commit_snapshot(folder, kind="synthetic", classes=CLASSES, rows=rows, provenance={"generator": DIGEST}, licence="x")
        return Snapshot.open(folder)

    return make


@codecs
def test_equal_pixels_give_equal_bytes(codec: Codec) -> None:
    """Guards reproducible sampling: bytes depend on pixels, codec and text alone, not on the order of the texts or the array's layout."""
    text = {SYNTHETIC_MARK: DIGEST, "gda:b": "x=1"}
    data = encode(smooth(1), codec, text)
    assert data == encode(np.asfortranarray(smooth(1)), codec, dict(reversed(text.items())))
    assert decode(data, name="x").info == text
    assert decode(encode(smooth(1), codec), name="x").info == {}


@codecs
def test_a_reader_gets_the_stored_pixels(codec: Codec) -> None:
    """Guards pixel hashes: they are those of the decoded image; the two lossless codecs change none, jpeg some but little."""
    rgb = smooth(2)
    data = encode(rgb, codec, {SYNTHETIC_MARK: DIGEST})
    found = to_array(decode(data, name="x"))
    assert np.array_equal(found, stored_pixels(rgb, data, codec))
    assert np.array_equal(found, rgb) == codec.lossless
    assert np.abs(found.astype(int) - rgb).mean() < 4
    assert encode_record(records(1)[0], codec).extension == {"png": "png", "webp": "webp", "jpeg": "jpg"}[codec.format]


def test_jpeg_keeps_colour_at_full_resolution() -> None:
    """Guards sampled images against halved colour: a red and blue board of single columns stays one."""
    board = np.zeros((16, 16, 3), np.uint8)
    board[:, ::2, 0] = board[:, 1::2, 2] = 255
    found = to_array(decode(encode(board, Codec("jpeg", 95)), name="x"))
    assert found[:, ::2, 0].min() > 200
    assert found[:, 1::2, 0].max() < 55


def test_jpeg_quality_reaches_the_file() -> None:
    """Guards the setting: fewer bytes and larger errors at a lower quality."""
    sizes, errors = [], []
    for quality in (30, 75, 98):
        data = encode(smooth(3, 64), Codec("jpeg", quality))
        sizes.append(len(data))
        errors.append(np.abs(to_array(decode(data, name="x")).astype(int) - smooth(3, 64)).mean())
    assert sizes[0] < sizes[1] < sizes[2]
    assert errors[0] > errors[1] > errors[2]


def test_photographs_in_png_are_no_larger_than_at_level_six(picture: Any) -> None:
    """Guards the choice of a fast compression: noise, flat colour and blobs take at most 15% more bytes than Pillow's default."""
    for rgb in (picture(1, 64, 64), smooth(1, 64), np.full((64, 64, 3), 77, np.uint8)):
        usual = encoded_by_pillow(rgb, "PNG", compress_level=6)
        assert len(encode_png(rgb)) <= 1.15 * len(usual)


def encoded_by_pillow(rgb: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("codec", "quality"), [("gif", 90), ("jpeg", 0), ("jpeg", 101)])
def test_no_such_codec(codec: Any, quality: int) -> None:
    """Guards against codecs that would fail only after hours of sampling."""
    with pytest.raises(ValueError, match="no codec"):
        Codec(codec, quality)


@pytest.mark.parametrize("codec", CODECS[1:], ids=lambda codec: codec.format)
def test_what_cannot_be_encoded(codec: Codec) -> None:
    """Guards against text that EXIF would change silently, and against sides that the format cannot hold."""
    for text in ("é", "two\nlines"):
        with pytest.raises(ValueError, match="EXIF takes lines of ASCII"):
            encode(smooth(1), codec, {"gda:a": text})
    side = {"webp": 16384, "jpeg": 65501}[codec.format]
    with pytest.raises(ValueError, match=f"1x{side} is more than {codec.format} can hold"):
        encode(np.zeros((side, 1, 3), np.uint8), codec)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF", "PNG"])
def test_marks_of_images_saved_again_by_other_tools(kind: str) -> None:
    """Guards marks that travel as EXIF into another format; a description that is none of ours is not taken for a mark."""
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = f"a boat\nTitle=x\n{SYNTHETIC_MARK}={DIGEST}"
    assert decode(encoded_by_pillow(smooth(1), kind, exif=exif), name="x").info == {SYNTHETIC_MARK: DIGEST}
    exif[ExifTags.Base.ImageDescription] = "a boat named gda:synthetic"
    assert decode(encoded_by_pillow(smooth(1), kind, exif=exif), name="x").info == {}


def test_rotated_and_marked() -> None:
    """Guards both EXIF fields at once: the image is turned and its mark kept."""
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = f"{SYNTHETIC_MARK}={DIGEST}"
    exif[ExifTags.Base.Orientation] = 6
    image = decode(encoded_by_pillow(smooth(1)[:12], "JPEG", exif=exif), name="x")
    assert image.size == (12, 24)
    assert image.info == {SYNTHETIC_MARK: DIGEST}


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("PNG", {}, "lossless"),
        ("BMP", {}, "lossless"),
        ("JPEG", {}, "jpeg"),
        ("WEBP", {"quality": 80}, "lossy webp"),
        ("WEBP", {"lossless": True}, "lossless"),
        ("WEBP", {"quality": 80, "exif": b"Exif\0\0"}, "lossy webp"),
        ("WEBP", {"lossless": True, "icc_profile": b"odd"}, "lossless"),
        ("WEBP", {"quality": 80, "icc_profile": b"odd"}, "lossy webp"),
    ],
)
def test_compression_is_recognised_by_content(kind: str, options: dict[str, Any], expected: str) -> None:
    """Guards the note about lossy sources: plain and extended WebP of both kinds, with chunks of odd length before the pixels."""
    data = encoded_by_pillow(smooth(1), kind, **options)
    assert compression(data) == expected
    assert compression(data[:13]) in (expected, "lossless")  # cut short, it ends


@codecs
def test_a_set_in_any_format_is_sound(codec: Codec, sampled: Sampled) -> None:
    """Guards shards, verification and loading: names by format, checksums and pixel hashes hold, images come back as stored."""
    snapshot = sampled(codec)
    assert verify_snapshot(snapshot.path) == []
    found = list(read_shard(snapshot.path / "train-000000.tar"))
    assert {record.extension for record in found} == {codec.extension}
    images = load_images(snapshot, "train", size=24)
    expected = [pixel_digest(to_array(decode(record.image, name="x"))) for record in found]
    assert [pixel_digest(image.permute(1, 2, 0).numpy()) for image in images.images] == expected
    assert snapshot.manifest()["pixel_sha256"].tolist() == expected


def test_a_hash_of_the_pixels_before_jpeg_is_refused(sampled: Sampled) -> None:
    """Guards `gda verify`: with the hash of the pixels before encoding the set is not sound."""
    snapshot = sampled(Codec("jpeg", 90))
    rows = snapshot.manifest()
    rows.loc[2, "pixel_sha256"] = pixel_digest(smooth(2))
    commit_snapshot(snapshot.path, kind="synthetic", classes=CLASSES, rows=rows, provenance={}, licence="x")
    assert verify_snapshot(snapshot.path) == [f"{snapshot.path / 'train-000000.tar'}: record 's2': pixels differ from the manifest"]


@codecs
def test_threads_encode_alike(codec: Codec) -> None:
    """Guards encoding during sampling: four threads give the same bytes as one."""
    many = records(40)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda record: encode_record(record, codec), many)) == [encode_record(record, codec) for record in many]


def source_of(kind: str, snapshot: Snapshot, root: Path) -> Path | str:
    """The images of a sampled set in the forms in which users may pass them back."""
    if kind == "tars":
        return str(snapshot.path / "*.tar")
    export_snapshot(snapshot.path, "hf" if kind == "hf" else "imagefolder", root / "exported")
    return root / "exported" / ("train" if kind == "class folders" else "")


@codecs
@pytest.mark.parametrize("kind", ["class folders", "split folders", "hf", "tars"])
def test_marked_images_of_every_format_are_not_real(kind: str, codec: Codec, sampled: Sampled, take: Any, tmp_path: Path) -> None:
    """Guards the real set against sampled images that come back, exported or as tars: refused by name, for any max_bad_fraction."""
    with pytest.raises(DataError, match=r"is marked as synthetic .*--as synthetic"):
        take(source_of(kind, sampled(codec), tmp_path), max_bad_fraction=1.0)
    assert not (tmp_path / "out").exists()


@codecs
@pytest.mark.parametrize("kind", ["class folders", "split folders", "hf", "tars"])
def test_imported_images_keep_their_mark(kind: str, codec: Codec, sampled: Sampled, take: Any, tmp_path: Path) -> None:
    """Guards the round trip: same pictures, same number per class, and each image still names its generator."""
    snapshot = sampled(codec)
    again = Snapshot.open(take(source_of(kind, snapshot, tmp_path), as_synthetic=True).output)
    assert verify_snapshot(again.path) == []
    assert sorted(again.manifest()["pixel_sha256"]) == sorted(snapshot.manifest()["pixel_sha256"])
    assert sorted(again.manifest()["label"]) == sorted(snapshot.manifest()["label"])
    marks = [decode(record.image, name="x").info for record in read_shard(again.path / "train-000000.tar")]
    assert marks == [{SYNTHETIC_MARK: DIGEST}] * 6


def test_arrays_carry_no_mark(sampled: Sampled, take: Any, tmp_path: Path) -> None:
    """States the only way to lose a mark; images imported as synthetic are marked again."""
    export_snapshot(sampled(PNG).path, "npz", tmp_path / "exported")
    again = Snapshot.open(take(tmp_path / "exported" / "train.npz", as_synthetic=True).output)
    assert [info.name for info in again.classes] == ["a", "b"]
    marks = [decode(record.image, name="x").info for record in read_shard(again.path / "train-000000.tar")]
    assert marks == [{SYNTHETIC_MARK: "unknown"}] * 6
    assert again.index.provenance["source_compression"] == "none 6"


def test_lossy_sources_are_noted(sampled: Sampled, image_folder: Any, take: Any, tmp_path: Path) -> None:
    """Guards the comparison: an import that came as JPEG says so where it is seen and in the provenance; real sets and PNG do not warn."""
    export_snapshot(sampled(Codec("jpeg", 90)).path, "imagefolder", tmp_path / "jpeg")
    folder = tmp_path / "jpeg" / "train"
    Image.fromarray(smooth(50)).save(folder / "a" / "more.webp", quality=80)
    Image.fromarray(smooth(51)).save(folder / "a" / "more.png")
    outcome = take(folder, "lossy", as_synthetic=True)
    assert "; jpeg 6 and lossy webp 1 came compressed with loss" in outcome.summary
    assert Snapshot.open(outcome.output).index.provenance["source_compression"] == "jpeg 6, lossless 1, lossy webp 1"
    assert "with loss" not in take(image_folder({"a": 3, "b": 3}, "plain"), "plain-out", as_synthetic=True).summary
    real = image_folder({"a": 14, "b": 14}, "real", start=100)
    Image.fromarray(smooth(52)).save(real / "a" / "photo.jpg")
    outcome = take(real, "real-out")
    assert "with loss" not in outcome.summary
    assert Snapshot.open(outcome.output).index.provenance["source_compression"] == "jpeg 1, lossless 28"
