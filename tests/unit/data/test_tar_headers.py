"""Extended headers of other tools' tars: read where they make sense, refused within bounded time where they do not."""

import io
import tarfile
import time
from pathlib import Path

import pytest

from gda.errors import DataError
from gda.io.shards import read_members


def header(name: bytes, size: bytes, kind: bytes) -> bytes:
    """A header with a right checksum around any size field."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: bytes, data: bytes, kind: bytes = b"0") -> bytes:
    return header(name, b"%011o\0" % len(data), kind) + data + bytes(-len(data) % 512)


def names(content: bytes) -> list[str]:
    return [found.name for found in read_members(io.BytesIO(content), "a.tar", foreign=True)]


PLAIN = member(b"a.png", b"1")
END = bytes(1024)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "record",
    [
        b"0 path=y\n",
        b"-5 path=y\n",
        b"+9 path=y\n",
        b"00000 path=y\n",
        b"9 path=y\n0 path=y\n",  # ends where it starts, behind a line end
        b"3 path=y\n",
        b"99999999999999999999 path=y\n",
        b"999 path=y\n",
        b"path=y\n",
        b"9 path-y\n",
        b"9 path=yy",
        b"11 size=-1\n",
        b"13 size=1_0\n",
        b"11 path=\xff\xfe\n",
        b"22 GNU.sparse.major=1\n",
        b"\0" * 20,
    ],
)
def test_pax_records_that_make_no_sense(record: bytes) -> None:
    """Guards against records that send the reader back or nowhere, or say what no file can be: one `DataError`, at once."""
    with pytest.raises(DataError, match=r"a\.tar: damaged extended header at byte 0"):
        names(member(b"x", record, b"x") + PLAIN + END)


def test_pax_size_beyond_the_file() -> None:
    """Guards memory: a size that the file cannot hold is refused before anything is allocated."""
    with pytest.raises(DataError, match="truncated"):
        names(member(b"x", b"22 size=9999999999999\n", b"x") + PLAIN + END)


@pytest.mark.parametrize("size", [b"-0000000777\0", b"0000000_001\0", b"\xff" * 12, b"0o000000001\0", b"00000000009\0"])
def test_size_fields_that_are_no_octal_number(size: bytes) -> None:
    """Guards against negative sizes, with which the reader would go backwards."""
    with pytest.raises(DataError, match="damaged header at byte 0"):
        names(header(b"a.png", size, b"0") + END)


def test_gnu_long_names_of_odd_content() -> None:
    """Guards GNU long names: an empty one says nothing, one that is not UTF-8 is an error of the file."""
    assert names(member(b"././@LongLink", b"", b"L") + PLAIN + END) == ["a.png"]
    with pytest.raises(DataError, match="damaged extended header"):
        names(member(b"././@LongLink", b"\xff\xfe\0", b"L") + PLAIN + END)


def test_an_extended_header_is_bounded() -> None:
    """Guards time: a million tiny records, or a header of many MiB, end at once."""
    started = time.perf_counter()
    with pytest.raises(DataError, match="damaged extended header"):
        names(member(b"x", b"6 a=b\n" * 1_000_000, b"x") + PLAIN + END)
    assert len(names(member(b"x", b"6 a=b\n" * 100_000, b"x") + PLAIN + END)) == 1
    assert time.perf_counter() - started < 5.0


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_are_read(kind: int, tmp_path: Path) -> None:
    """Guards the healthy case: long names, and times that need PAX records, as tar writes them."""
    name = "folder/" + "n" * 150 + ".png"
    with tarfile.open(tmp_path / "a.tar", "w", format=kind) as tar:
        for each in (name, "b.png"):
            info = tarfile.TarInfo(each)
            info.size, info.mtime = 3, 1.5 if kind == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(b"abc"))
    assert names((tmp_path / "a.tar").read_bytes()) == [name, "b.png"]
