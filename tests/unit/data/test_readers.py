"""The content of a source decides, not its name: tars, parquet files, arrays and images are recognised by content."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, features

from gda.config.sections import SnapshotConfig
from gda.data.images.codecs import decode, encode_png
from gda.data.images.listing import image_format
from gda.data.sources import parquet
from gda.data.sources.folders import read_folder
from gda.data.sources.readers import open_source
from gda.data.sources.source import Columns, ImageSource, Slice
from gda.data.store.snapshot import Snapshot
from gda.errors import ConfigError, DataError, GdaError, UsageError


def opened(source: Path | str, **columns: Any) -> ImageSource:
    return open_source(str(source), SnapshotConfig(), Columns(**columns))


def found(source: ImageSource) -> list[tuple[str | None, str]]:
    return sorted({(record.split, record.class_name) for record in source.records}, key=str)


def png(number: int) -> bytes:
    return encode_png(np.full((4, 4, 3), number, np.uint8))


def write_tar(path: Path, records: list[dict[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, members in enumerate(records):
            for ending, data in members.items():
                info = tarfile.TarInfo(f"{number:05d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def records(count: int = 4) -> list[dict[str, bytes]]:
    return [{"png": png(number), "cls": str(number % 2).encode()} for number in range(count)]


def write_parquet(path: Path, count: int = 4, names: list[str] | None = None, **columns: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(number), "path": None} for number in range(count)]
    table = pa.table({"image": images, "label": [number % 2 for number in range(count)], **columns})
    if names:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path)
    return path


# --- folders and patterns of tars


def test_a_folder_of_tars_is_read_with_the_splits_of_its_names(tmp_path: Path) -> None:
    """Guards imagenet1k-wds: a folder of tars is read, and validation is not trained on."""
    for split in ("train", "validation"):
        write_tar(tmp_path / "wds" / f"imagenet1k-{split}-0000.tar", records())
    assert found(opened(tmp_path / "wds")) == [("train", "0"), ("train", "1"), ("val", "0"), ("val", "1")]
    assert found(opened(tmp_path / "wds" / "*train*.tar")) == [(None, "0"), (None, "1")]
    write_tar(tmp_path / "wds" / "more.tar", records())
    with pytest.raises(DataError, match=r"is named as a split, more\.tar is not"):
        opened(tmp_path / "wds")


def test_img2dataset_tars(tmp_path: Path) -> None:
    """Guards img2dataset: its lists next to the tars are no source, and the label is in a field of .json or an ending."""
    rows = [
        {"jpg": png(n), "txt": b"a dog", "json": json.dumps({"caption": "x", "kind": ("cat", "dog")[n % 2]}).encode()} for n in range(4)
    ]
    write_tar(tmp_path / "out" / "00000.tar", rows)
    (tmp_path / "out" / "00000.parquet").write_bytes(b"PAR1")
    (tmp_path / "out" / "00000_stats.json").write_text("{}")
    assert found(opened(tmp_path / "out", label="kind")) == [(None, "cat"), (None, "dog")]
    assert found(opened(tmp_path / "out", label="txt")) == [(None, "a dog")]
    reason = opened(tmp_path / "out").rejected[0][1]
    assert "its .json holds caption, kind: set snapshot.label_column" in reason


def test_an_unused_split_field_of_tars(tmp_path: Path) -> None:
    """Guards the field split of a tar's .json, as the column of a table is."""
    rows = [members | {"json": json.dumps({"split": ("train", "test")[n % 2]}).encode()} for n, members in enumerate(records())]
    path = write_tar(tmp_path / "a.tar", rows)
    with pytest.raises(ConfigError, match="column 'split' holds test 2, train 2"):
        opened(path)
    assert found(opened(path, split="split")) == [("test", "1"), ("train", "0")]


def test_names_do_not_decide(tmp_path: Path) -> None:
    """Guards folders such as birds.targets and set[1], and tars without an ending."""
    for name in ("birds.targets", "set[1].tar.old"):
        for kind in ("a", "b"):
            (tmp_path / name / kind).mkdir(parents=True)
            (tmp_path / name / kind / "0.png").write_bytes(png(1))
        assert found(opened(tmp_path / name)) == [(None, "a"), (None, "b")]
    assert found(opened(write_tar(tmp_path / "birds", records()))) == [(None, "0"), (None, "1")]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.tar.gz", gzip.compress(b"x" * 600), UsageError, r"is compressed \(gzip\); unpack it first: gunzip -k"),
        ("a.tgz", gzip.compress(b"x"), UsageError, "compressed"),
        ("a.tar", gzip.compress(b"x"), UsageError, "compressed"),
        ("a.zip", b"PK\x03\x04", UsageError, "is a zip, 7z or rar archive; unpack it"),
        ("a.parquet", b"nothing", DataError, "not a parquet file"),
        ("a.parquet", b"PAR1" + bytes(40) + b"PAR1", DataError, "cannot be read as parquet"),
        ("notes.txt", b"hello", UsageError, "none of the accepted sources"),
    ],
)
@pytest.mark.parametrize("in_folder", [False, True])
def test_what_is_not_read(tmp_path: Path, name: str, content: bytes, error: type[GdaError], message: str, in_folder: bool) -> None:
    """Guards the message: it says what the file is and what to type, in a folder too."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    if in_folder and name == "notes.txt":
        error, message = DataError, "holds no class folders"
    with pytest.raises(error, match=message):
        opened(tmp_path / "in" if in_folder else tmp_path / "in" / name)


def test_folders_of_two_kinds(tmp_path: Path) -> None:
    """Guards folders with images and archives, or two kinds of archives: refused rather than half read."""
    write_tar(tmp_path / "in" / "a.tar", records())
    write_parquet(tmp_path / "in" / "b.parquet")
    with pytest.raises(DataError, match="holds parquet and tar files"):
        opened(tmp_path / "in")
    (tmp_path / "in" / "x.png").write_bytes(png(1))
    with pytest.raises(DataError, match="holds 1 images and 2 archives"):
        opened(tmp_path / "in")


# --- parquet


def test_parquet_of_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards data/*.parquet: bytes are those of the file, labels are named, splits come from names, the scratch folder goes."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / "work"))
    for split in ("train", "test"):
        write_parquet(tmp_path / "hf" / "data" / f"{split}-00000-of-00001.parquet", names=["cat", "dog"])
    source = opened(tmp_path / "hf")
    assert found(source) == [("test", "cat"), ("test", "dog"), ("train", "cat"), ("train", "dog")]
    payload = source.records[1].payload
    assert isinstance(payload, Slice)
    assert payload.read() == png(1)
    assert source.scratch is not None
    source.scratch.cleanup()
    assert list((tmp_path / "work").iterdir()) == []


def test_parquet_that_would_grow_beyond_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards memory: a row group of more bytes than are accepted is refused, with what helps, before it is unpacked."""
    path = write_parquet(tmp_path / "a.parquet", count=8)
    unpacked = pq.ParquetFile(path).metadata.row_group(0).total_byte_size
    monkeypatch.setattr(parquet, "_MOST_BYTES", unpacked)
    assert len(opened(path).records) == 8
    monkeypatch.setattr(parquet, "_MOST_BYTES", unpacked - 1)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("it was unpacked"))
    with pytest.raises(DataError, match=rf"a\.parquet: row group 0 is {unpacked} bytes unpacked; accepted: .* write smaller groups"):
        opened(path)


def test_columns_of_parquet(tmp_path: Path) -> None:
    """Guards label, group and split columns of parquet files, and an unused split column."""
    path = write_parquet(tmp_path / "a.parquet", split=["train", "train", "test", "test"], kind=list("xyxy"), patient=[1, 1, 2, 2])
    source = opened(path, split="split", label="kind", group="patient")
    assert [(record.split, record.class_name, record.group) for record in source.records] == [
        ("train", "x", "1"),
        ("train", "y", "1"),
        ("test", "x", "2"),
        ("test", "y", "2"),
    ]
    with pytest.raises(ConfigError, match="column 'split'"):
        opened(path)
    with pytest.raises(UsageError, match="no column 'breed'; it has image, label"):
        opened(path, label="breed", split="split")


# --- .npz


def test_an_npz_that_grows_is_refused_before_it_does(tmp_path: Path) -> None:
    """Guards memory: 3 MB of zeros that become 3 GB, and a header that says more than there is."""
    path = tmp_path / "a.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1000, 1000, 1000, 3)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            file.write(header.getvalue())
            for _ in range(300):
                file.write(bytes(1_000_000))
        archive.writestr("arr_1.npy", b"")
    with pytest.raises(DataError, match=r"arr_0\.npy says 3000000000 bytes"):
        opened(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        np.lib.format.write_array_header_1_0(
            header := io.BytesIO(), {"descr": "|u1", "fortran_order": False, "shape": (100, 1000, 1000, 3)}
        )
        archive.writestr("arr_0.npy", header.getvalue() + bytes(300_000_000))
        archive.writestr("arr_1.npy", b"")
    with pytest.raises(DataError, match=r"would grow from 0\.3 MB to 300 MB of memory"):
        opened(path)


@pytest.mark.parametrize("fault", ["compression", "version", "encrypted", "content"])
def test_an_npz_that_zip_cannot_read_is_reported(tmp_path: Path, fault: str) -> None:
    """Guards exit 3: an unknown compression, a later version of the format, encryption, and content that does not unpack."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, np.zeros((6, 8, 8, 3), np.uint8), np.arange(6) % 2)
    data = bytearray(path.read_bytes())
    directory = data.index(b"PK\x01\x02")  # it repeats the header of each entry, two bytes later in its own
    at = {"version": 4, "encrypted": 6, "compression": 8}
    if fault == "content":
        begins = 30 + int.from_bytes(data[26:28], "little") + int.from_bytes(data[28:30], "little")
        data[begins : begins + 8] = b"\xff" * 8
    else:
        value = {"version": b"\xff\x00", "encrypted": b"\x01\x00", "compression": b"\x63\x00"}[fault]
        for start in (at[fault], directory + at[fault] + 2):
            data[start : start + 2] = value
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"a\.npz: not an \.npz of plain arrays"):
        opened(path)


def test_a_compressed_npz_is_read(tmp_path: Path) -> None:
    """Guards the healthy twin: a compressed .npz of flat pictures."""
    np.savez_compressed(tmp_path / "a.npz", np.zeros((6, 8, 8, 3), np.uint8), np.arange(6) % 2)
    assert len(opened(tmp_path / "a.npz").records) == 6


# --- pictures by content


def test_images_are_chosen_by_content(tmp_path: Path) -> None:
    """Guards .jfif, uppercase, no ending and .avif: all of them taken, as what they are."""
    kinds = {"a.jfif": "JPEG", "B.PNG": "PNG", "c": "JPEG", "d.dat": "WEBP", "e.txt": "PNG", "f.JPEG": "JPEG"}
    kinds |= {"g.avif": "AVIF", "h": "AVIF"} if features.check("avif") else {}
    for name, kind in kinds.items():
        (tmp_path / "in" / "cat").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(tmp_path / "in" / "cat" / name, kind)
    (tmp_path / "in" / "cat" / "readme").write_text("BM is no bitmap, P5 is no map")
    source = read_folder(tmp_path / "in", Columns(), progress=False)
    assert len(source.records) == len(kinds)
    assert source.left_out == {"no image (no ending)": 1}
    for record in source.records:
        assert isinstance(record.payload, Slice)
        assert decode(record.payload.read(), name=record.name).size == (8, 8)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"GIF89a", "GIF"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x">', "SVG"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"\xff\x0a\x00", "JPEG XL"),
    ],
)
def test_images_of_other_formats_count_as_unusable(image_folder: Any, take: Any, head: bytes, name: str) -> None:
    """Guards against pictures that vanish because nobody here reads them: counted, and limited by max_bad_fraction."""
    assert image_format(head) == name
    source = image_folder({"cat": 14, "dog": 14})
    (source / "cat" / "photo").write_bytes(head + bytes(100))
    with pytest.raises(DataError, match=rf"1 of 29 images .*cat/photo \({name}, not an accepted format"):
        take(source)


# --- groups and labels


def test_groups_are_kept_and_fields_name_columns(tmp_path: Path, image_folder: Any, take: Any) -> None:
    """Guards snapshot.group_column and label_column: groups are in the manifest and in the digest, and stay on one side."""
    root = image_folder({"x": 40}, "in")
    rows = [f"x/{n}.png,{('cat', 'dog')[n % 2]},p{n // 4},q{n}" for n in range(40)]
    (root / "metadata.csv").write_text("\n".join(["file_name,kind,patient,visit", *rows]) + "\n")
    one = take(root, label_column="kind", group_column="patient", val_fraction=0.3, test_fraction=0.3)
    manifest = Snapshot.open(one.output).manifest()
    assert manifest["group"].str.fullmatch("p[0-9]+").all()
    assert manifest.groupby("group")["split"].nunique().max() == 1
    plain = take(root, "out2", label_column="kind")
    assert "group" not in Snapshot.open(plain.output).manifest().columns
    with pytest.raises(UsageError, match=r"no column 'label'; it has .*snapshot\.label_column names another"):
        take(root, "out3")


def test_groups_are_part_of_the_digest(image_folder: Any, take: Any) -> None:
    """Guards the digest against sets that differ only in their groups: it distinguishes them."""
    root = image_folder({"x": 24}, "in")
    splits = ("train", "train", "val", "test")
    rows = [f"x/{n}.png,{('cat', 'dog')[n // 4 % 2]},{splits[n % 4]},p{n},q{n}" for n in range(24)]
    (root / "metadata.csv").write_text("\n".join(["file_name,label,split,patient,visit", *rows]) + "\n")
    one, other, plain = (
        take(root, "a", columns=("split", "patient")),
        take(root, "b", columns=("split", "visit")),
        take(root, "c", columns=("split", None)),
    )
    assert len({one.digest, other.digest, plain.digest}) == 3
    shown = [Snapshot.open(each.output).manifest()[["key", "split", "pixel_sha256"]] for each in (one, other, plain)]
    assert shown[0].equals(shown[1])
    assert shown[0].equals(shown[2])


def test_one_picture_in_two_classes_is_reported(image_folder: Any, take: Any) -> None:
    """Guards contradicting labels: the closing line names the pair."""
    source = image_folder({"cat": 14, "dog": 14})
    (source / "dog" / "same.png").write_bytes((source / "cat" / "3.png").read_bytes())
    assert "1 pictures are in two classes: cat/3.png (cat) = dog/same.png (dog)" in take(source).summary


def test_where_the_only_image_of_a_class_went(image_folder: Any, take: Any) -> None:
    """Guards long tails: the message says to which split the image fell and what helps."""
    source = image_folder({"cat": 14, "dog": 14, **{f"rare{number}": 1 for number in range(6)}})
    with pytest.raises(DataError, match=r"class 'rare\d'.* has no training images: of its 1 image 1 fell to (test|val).*; give such"):
        take(source)
