"""Tar shards: the same bytes for the same records, readable by WebDataset, strict when read back."""

import hashlib
import io
import json
import os
import random
import tarfile
from itertools import islice
from pathlib import Path

import pytest
import webdataset

from gda.errors import DataError
from gda.io.shards import TAR_BLOCK, ShardRecord, iterate_shard, read_members, read_record, read_shard, write_shard


def make_records(count: int = 3) -> list[ShardRecord]:
    return [ShardRecord(key=f"k-{i}", extension="png", image=bytes([i]) * (400 * i + 1), label=i, meta={"number": i}) for i in range(count)]


def write_foreign(path: Path, names: list[str], tar_format: int, **entry: object) -> None:
    """A tar as another tool writes it; `entry` sets attributes of every member."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            for attribute, value in entry.items():
                setattr(info, attribute, value)
            tar.addfile(info, io.BytesIO(b"abc") if info.isreg() else None)


def names_in(path: Path) -> list[str]:
    with open(path, "rb") as file:
        return [member.name for member in read_members(file, path.name, foreign=True)]


def test_bytes_are_fixed(tmp_path: Path) -> None:
    """Guards the archive format: a change of these bytes would change every shard that users have."""
    index = write_shard(tmp_path / "train-000000.tar", make_records())
    assert index.sha256 == "3fcf66c1b6d3e7beadc9b5d8edbf517a91ed184678b2ea41a13a709c749aec7d"
    assert index.sha256 == hashlib.sha256((tmp_path / "train-000000.tar").read_bytes()).hexdigest()


def test_records_come_back_in_order(tmp_path: Path) -> None:
    """Guards the round trip of every field."""
    records = list(reversed(make_records()))
    write_shard(tmp_path / "a.tar", records)
    assert list(read_shard(tmp_path / "a.tar")) == records


def test_offsets_find_single_records(tmp_path: Path) -> None:
    """Guards random access through the manifest's offsets."""
    records = make_records()
    index = write_shard(tmp_path / "a.tar", records)
    assert [read_record(tmp_path / "a.tar", offset) for offset in index.offsets] == records
    assert [offset for offset, _ in iterate_shard(tmp_path / "a.tar")] == index.offsets


def test_webdataset_reads_our_shards(tmp_path: Path) -> None:
    """Guards compatibility: WebDataset sees the same keys, images, labels and metadata."""
    write_shard(tmp_path / "a.tar", make_records())
    found = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [(r["__key__"], r["png"], int(r["cls"]), json.loads(r["json"])) for r in found] == [
        (r.key, r.image, r.label, r.meta) for r in make_records()
    ]


def test_python_tarfile_reads_our_shards(tmp_path: Path) -> None:
    """Guards the header format against a second, independent reader."""
    write_shard(tmp_path / "a.tar", make_records())
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert [(m.name, m.mtime, m.uid, m.gid) for m in tar][:2] == [("k-0.png", 0, 0, 0), ("k-0.cls", 0, 0, 0)]
        assert len(tar.getmembers()) == 9


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 70000])
@pytest.mark.parametrize("key", ["k", "0123456789abcdef" * 5, "_-A"])
def test_headers_are_those_of_tarfile(tmp_path: Path, key: str, size: int) -> None:
    """Guards the headers that are put together here: byte for byte those of the standard library, for every length of name and content."""
    image = random.Random(size).randbytes(size)
    write_shard(tmp_path / "a.tar", [ShardRecord(key=key, extension="webp", image=image, label=12, meta={"a": 1})])
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in ((f"{key}.webp", image), (f"{key}.cls", b"12"), (f"{key}.json", b'{"a":1}')):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    written = (tmp_path / "a.tar").read_bytes()
    assert expected.getvalue()[: len(written)] == written


def test_any_changed_header_byte_gives_the_same_result(tmp_path: Path) -> None:
    """Guards the quick parser of our own headers: what it does not know byte for byte goes to the full one."""
    write_shard(tmp_path / "a.tar", make_records(1))
    whole = (tmp_path / "a.tar").read_bytes()
    for position in (*range(148), *range(156, TAR_BLOCK)):  # all but the checksum's own field
        damaged = bytearray(whole)
        damaged[position] ^= 0x11
        (tmp_path / "a.tar").write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.tar: damaged header at byte 0"):
            list(read_shard(tmp_path / "a.tar"))


def test_shards_that_another_tool_packed_again(tmp_path: Path) -> None:
    """Guards readers of our own layout with other people's headers: owners and times do not matter, links do."""
    write_shard(tmp_path / "a.tar", make_records(2))
    with tarfile.open(tmp_path / "a.tar") as tar, tarfile.open(tmp_path / "b.tar", "w", format=tarfile.USTAR_FORMAT) as other:
        for member in tar:
            member.mtime, member.uname = 1_700_000_000, "somebody"
            other.addfile(member, tar.extractfile(member))
    assert list(read_shard(tmp_path / "b.tar")) == make_records(2)
    write_foreign(tmp_path / "c.tar", ["k.png"], tarfile.USTAR_FORMAT, type=tarfile.SYMTYPE, linkname="/etc/passwd", size=0)
    with pytest.raises(DataError, match="link or a special file"):
        list(read_shard(tmp_path / "c.tar"))


def test_second_writer_of_equal_bytes_is_welcome(tmp_path: Path) -> None:
    """Guards idempotence: two workers that sample one shard do not fail, and leave no temporary file behind."""
    first = write_shard(tmp_path / "a.tar", make_records())
    assert write_shard(tmp_path / "a.tar", make_records()) == first
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_second_writer_of_other_bytes_is_refused(tmp_path: Path) -> None:
    """Guards create-only: a shard that was committed is never replaced."""
    write_shard(tmp_path / "a.tar", make_records(3))
    before = (tmp_path / "a.tar").read_bytes()
    with pytest.raises(DataError, match="other content"):
        write_shard(tmp_path / "a.tar", make_records(2))
    assert (tmp_path / "a.tar").read_bytes() == before


@pytest.mark.parametrize("key", ["", "a.b", "../x", "a/b", "ä", "x" * 81, "a b"])
def test_unsafe_keys_are_refused(tmp_path: Path, key: str) -> None:
    """Guards against keys that are paths, that WebDataset would split at a dot, or that do not fit a tar header."""
    with pytest.raises(DataError, match="key"):
        write_shard(tmp_path / "a.tar", [ShardRecord(key=key, extension="png", image=b"x", label=0)])
    assert list(tmp_path.iterdir()) == []


def test_repeated_keys_and_empty_shards_are_refused(tmp_path: Path) -> None:
    """Guards the identity of records inside a shard, and against shards that hold nothing."""
    with pytest.raises(DataError, match="twice"):
        write_shard(tmp_path / "a.tar", make_records(1) * 2)
    with pytest.raises(DataError, match="at least one"):
        write_shard(tmp_path / "a.tar", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_of_other_tools(tmp_path: Path, tar_format: int) -> None:
    """Guards users' tars: names over 100 bytes in each of the three ways to write them, and folders, which are skipped."""
    long = "folder/" * 14 + "n" * 60 + ".png"
    write_foreign(tmp_path / "a.tar", [long, "b.png"], tar_format)
    assert names_in(tmp_path / "a.tar") == [long, "b.png"]


def test_folders_and_dot_slash_of_other_tools(tmp_path: Path) -> None:
    """Guards users' tars made with `tar cf a.tar .`."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "b.png").write_bytes(b"abc")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "d", arcname=".")
    assert names_in(tmp_path / "a.tar") == ["b.png"]


@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "a/../../x.png", "a\\x.png"])
def test_names_that_leave_the_archive(tmp_path: Path, name: str) -> None:
    """Guards against path traversal through member names."""
    write_foreign(tmp_path / "a.tar", [name], tarfile.PAX_FORMAT)
    with pytest.raises(DataError, match="leaves the archive"):
        names_in(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices(tmp_path: Path, kind: bytes) -> None:
    """Guards against members that are not plain files."""
    write_foreign(tmp_path / "a.tar", ["x.png"], tarfile.PAX_FORMAT, type=kind, linkname="/etc/passwd", size=0)
    with pytest.raises(DataError, match=r"a\.tar.*x\.png.*link or a special file"):
        names_in(tmp_path / "a.tar")


def test_absurd_size_takes_no_memory(tmp_path: Path) -> None:
    """Guards against a header that claims eight gigabytes: refused by the file's length before anything is read."""
    info = tarfile.TarInfo("x.png")
    info.size = 8 * 1024**3 - 1
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match=r"'x\.png': truncated \(1024 of 8589934592 bytes\)"):
        names_in(tmp_path / "a.tar")


@pytest.mark.parametrize("foreign", [False, True])
def test_a_file_cut_short_while_it_is_read(tmp_path: Path, foreign: bool) -> None:
    """Guards readers against a shard that shrinks under them: an error, never half a member."""
    write_shard(tmp_path / "a.tar", [ShardRecord(key=f"k{i}", extension="png", image=b"x" * 100_000, label=i) for i in range(3)])
    with open(tmp_path / "a.tar", "rb") as file:
        members = read_members(file, "a.tar", foreign=foreign)
        assert [member.name for member in islice(members, 3)] == ["k0.png", "k0.cls", "k0.json"]
        os.truncate(tmp_path / "a.tar", 150_000)
        with pytest.raises(DataError, match=r"'k1\.png': truncated while it was read"):
            next(members)


@pytest.mark.parametrize(
    "names",
    [
        ["a.png", "a.cls", "b.json"],
        ["a.png", "b.cls", "a.json"],
        ["a.png", "a.json", "a.cls"],
        ["a.png", "a.cls"],
        ["a.cls", "a.cls", "a.json"],
        ["a.png", "a.png", "a.cls", "a.json"],
    ],
)
def test_members_that_are_no_record(tmp_path: Path, names: list[str]) -> None:
    """Guards against an image with another one's label: a record is an image, its label and its metadata, in this order."""
    write_foreign(tmp_path / "a.tar", names, tarfile.USTAR_FORMAT)
    with pytest.raises(DataError, match=r"a\.tar: record 'a' is not an image, \.cls and \.json in this order \(found a\."):
        list(read_shard(tmp_path / "a.tar"))
