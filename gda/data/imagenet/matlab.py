"""Reads a struct array from a MATLAB file, version 5: the part of the format that the devkit's meta.mat needs.

scipy's reader ends the process (a segmentation fault) on some damaged files; this one checks every length and raises `ValueError`.
"""

import math
import struct
import zlib

import numpy as np

Value = int | float | str | None

_HEADER, _ENDIAN, _SMALL = 128, 126, 4  # bytes; position of the byte order mark; most bytes of an element stored within its tag
_MATRIX, _COMPRESSED = 14, 15  # kinds of elements
_STRUCT, _CHAR, _NUMBERS = 2, 4, range(6, 16)  # classes of arrays
_TEXT = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8"}
_DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_ORDERS = {b"IM": "<", b"MI": ">"}


def read_struct(data: bytes, variable: str, *, limit: int) -> list[dict[str, Value]] | None:
    """The entries of the struct array `variable`, None where there is no such variable; a field is a number, a text or None.

    Raises `ValueError` for anything but a sound file of version 5, and for an element that takes more than `limit` bytes unpacked.
    """
    order = _ORDERS.get(data[_ENDIAN:_HEADER])
    if order is None:
        raise ValueError("no header of version 5")
    at = _HEADER
    while at < len(data):
        kind, body, at = _element(data, at, order)
        if kind == _COMPRESSED:
            kind, body, _ = _element(_unpacked(body, limit), 0, order)
        if kind == _MATRIX and (found := _entries(body, variable, order)) is not None:
            return found
    return None


def _unpacked(body: bytes, limit: int) -> bytes:
    try:
        unpacked = zlib.decompressobj().decompress(body, limit + 1)
    except zlib.error as error:
        raise ValueError(f"damaged compression: {error}") from None
    if len(unpacked) > limit:
        raise ValueError(f"more than {limit} bytes unpacked")
    return unpacked


def _element(data: bytes, at: int, order: str) -> tuple[int, bytes, int]:
    """Kind and body of the element at byte `at`, and where the next one starts."""
    if at + 8 > len(data):
        raise ValueError(f"ends within the element at byte {at}")
    kind, size = struct.unpack_from(f"{order}II", data, at)
    start, after = at + 8, at + 8 + size + (0 if kind == _COMPRESSED else -size % 8)
    if kind >> 16:
        kind, size, start, after = kind & 0xFFFF, kind >> 16, at + 4, at + 8
    if start + size > len(data) or (start == at + 4 and size > _SMALL):
        raise ValueError(f"the element at byte {at} has {size} bytes, more than there are")
    return kind, data[start : start + size], after


def _array(body: bytes, order: str) -> tuple[int, tuple[int, ...], str, int]:
    """Class, sizes and name of an array, and where its content starts."""
    _, flags, at = _element(body, 0, order)
    _, sizes, at = _element(body, at, order)
    _, name, at = _element(body, at, order)
    if len(flags) < 4 or len(sizes) % 4:
        raise ValueError("an array without class or sizes")
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    if not shape or min(shape) < 0:
        raise ValueError(f"an array of size {shape}")
    return int(struct.unpack_from(f"{order}I", flags)[0]) & 0xFF, shape, name.decode("latin-1"), at


def _entries(body: bytes, variable: str, order: str) -> list[dict[str, Value]] | None:
    kind, shape, name, at = _array(body, order)
    if name != variable:
        return None
    if kind != _STRUCT:
        raise ValueError(f"{variable} is no struct")
    _, width, at = _element(body, at, order)
    _, names, at = _element(body, at, order)
    step = struct.unpack(f"{order}i", width)[0] if len(width) == 4 else 0
    if step <= 0:
        raise ValueError(f"{variable} has fields without names")
    fields = [names[start : start + step].split(b"\0")[0].decode("latin-1") for start in range(0, len(names), step)]
    entries: list[dict[str, Value]] = []
    for _ in range(math.prod(shape) if fields else 0):
        entry: dict[str, Value] = {}
        for field in fields:
            _, inner, at = _element(body, at, order)
            entry[field] = _value(inner, order) if inner else None
        entries.append(entry)
    return entries


def _value(body: bytes, order: str) -> Value:
    """A text, a single number, or None of everything else."""
    kind, _, _, at = _array(body, order)
    if kind != _CHAR and kind not in _NUMBERS:
        return None
    stored, content, _ = _element(body, at, order)
    if kind == _CHAR:
        encoding = _TEXT.get(stored)
        byte_order = ("-le" if order == "<" else "-be") if encoding == "utf-16" else ""
        return content.decode(encoding + byte_order) if encoding else None
    dtype = np.dtype(f"{order}{_DTYPES[stored]}") if stored in _DTYPES else None
    if dtype is None or len(content) != dtype.itemsize:
        return None
    number = np.frombuffer(content, dtype)[0].item()
    return number if isinstance(number, int | float) else None
