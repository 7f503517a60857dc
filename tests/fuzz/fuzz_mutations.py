"""Strategies that turn a valid file into its neighbours: some still valid, most not, some hostile."""

import json
import random
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

# What parsers and their users stumble over, as values of a field.
HOSTILE: tuple[Any, ...] = (
    None, True, "", " ", "\x00", "\ud800", "\u202e", "../../etc/passwd", "a" * 5000, -1, 0,
    2**31, 2**63, 10**39, 10**300, 1e308, float("nan"),
    float("inf"), -0.0, [], {}, [[]], [None], {"": None}, {"a": {"b": {"c": []}}}, [0] * 300, "9" * 400, "1e999", "NaN", "\u00e9" * 40,
)  # fmt: skip
_BYTES = (
    b"\x00",
    b"\xff",
    b"\xfe\xff",
    b"\xef\xbb\xbf",
    b"\xe9",
    b"{",
    b"[" * 3000,
    b'"',
    b"\\ud800",
    b"9" * 5000,
    b"1e999",
    b"NaN",
    b"-",
    b"\r",
    b"}",
)
_YAML = (
    b"&a ", b"*a", b"<<: *a\n", b"? ", b": ", b"| ", b">-\n", b"!!binary ", b"!!python/object:os.system ", b"!!set ", b"\t",
    b"%YAML 9.9\n", b"---\n", b"...\n", b"0x1F", b".inf", b".nan", b"2001-01-01", b"a: &a [*a]\n", b"[", b"{", b"- ", b"\xe9", b"'",
    b"a: &a [1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c]\n"
    b"e: [*d,*d,*d,*d,*d,*d,*d,*d]\n",
)  # fmt: skip

Mutation = Callable[[bytes, random.Random], bytes]


def flip(data: bytes, rng: random.Random) -> bytes:
    """One bit of one byte."""
    if not data:
        return b"\x00"
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]


def cut(data: bytes, rng: random.Random) -> bytes:
    """A slice is missing, or everything after it."""
    start = rng.randrange(len(data) + 1)
    return data[:start] + (b"" if rng.random() < 0.4 else data[start + rng.randrange(1, 64) :])


def repeat(data: bytes, rng: random.Random) -> bytes:
    """A slice is there several times."""
    start = rng.randrange(len(data) + 1)
    part = data[start : start + rng.randrange(1, 200)]
    return data[:start] + part * rng.randrange(2, 5) + data[start:]


def insert(data: bytes, rng: random.Random) -> bytes:
    """Bytes that are a trap somewhere."""
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.choice(_BYTES) + data[place:]


def insert_yaml(data: bytes, rng: random.Random) -> bytes:
    """A piece of YAML syntax, at the start of a line or anywhere."""
    places = [0, *(i + 1 for i, byte in enumerate(data) if byte == 10)]
    place = rng.choice(places) if rng.random() < 0.6 else rng.randrange(len(data) + 1)
    return data[:place] + rng.choice(_YAML) + data[place:]


def numbers(data: bytes, rng: random.Random) -> bytes:
    """Four or eight bytes become a large or negative number, as lengths and offsets are written."""
    place = rng.randrange(len(data) + 1)
    value = rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0xFFFF, 1 << 40))
    width = rng.choice((4, 8))
    return data[:place] + (value % (1 << 8 * width)).to_bytes(width, rng.choice(("little", "big"))) + data[place + width :]


def json_value(data: bytes, rng: random.Random) -> bytes:
    """A field of a JSON document becomes hostile, goes, or has a sibling that is unknown."""
    content = json.loads(data)
    places = list(_places(content))
    if not places:
        return json.dumps(rng.choice(HOSTILE)).encode("utf-8", "surrogatepass")
    holder, key = rng.choice(places)
    match rng.randrange(4):
        case 0 if isinstance(holder, dict):
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(("extra", "", "a" * 300))] = rng.choice(HOSTILE)
        case _:
            holder[key] = rng.choice(HOSTILE)
    return json.dumps(content).encode("utf-8", "surrogatepass")


def json_gentle(data: bytes, rng: random.Random) -> bytes:
    """The same JSON content in another formatting."""
    content = json.loads(data)
    if isinstance(content, dict):
        content = dict(rng.sample(list(content.items()), len(content)))
    return (json.dumps(content, indent=rng.choice((None, 1, 4)), ensure_ascii=rng.random() < 0.5) + rng.choice(("", "\n", "  \n"))).encode()


def yaml_gentle(data: bytes, rng: random.Random) -> bytes:
    """The same YAML content with comments, empty lines or a byte order mark."""
    lines = data.split(b"\n")
    lines.insert(rng.randrange(len(lines) + 1), rng.choice((b"", b"# a remark", b"   ")))
    return rng.choice((b"", b"\xef\xbb\xbf")) * (not data.startswith(b"\xef\xbb\xbf")) + b"\n".join(lines)


def same(data: bytes, _: random.Random) -> bytes:
    """As it was."""
    return data


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(items):
        yield value, key
        yield from _places(child)


BINARY: tuple[Mutation, ...] = (flip, flip, cut, repeat, insert, numbers, numbers)
JSON: tuple[Mutation, ...] = (json_value, json_value, json_value, flip, cut, repeat, insert)
YAML: tuple[Mutation, ...] = (insert_yaml, insert_yaml, flip, cut, repeat, insert)
TEXT: tuple[Mutation, ...] = (flip, cut, repeat, insert)


@st.composite
def neighbours(draw: st.DrawFn, seeds: tuple[bytes, ...], harsh: tuple[Mutation, ...], gentle: tuple[Mutation, ...]) -> bytes:
    """A file near one of `seeds`: by gentle mutations alone in four of ten, else by one to three harsh ones."""
    data = draw(st.sampled_from(seeds))
    kinds = gentle if draw(st.integers(0, 9)) < 4 else harsh
    for kind, seed in draw(st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 2**48)), min_size=1, max_size=3)):
        rng = random.Random(seed)
        try:
            data = kind(data, rng)
        except Exception:  # a mutation of content after one of bytes, which no parser reads any more
            data = flip(data, rng)
    return data
