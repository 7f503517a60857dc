"""The boundary of every format: what a parser cannot take is one line with the file, within bounds of time and memory; valid files pass."""

import errno
import json
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gda.cli.main import main
from gda.config.load import load_config
from gda.errors import ConfigError, DataError, MissingError, UsageError
from gda.io.manifest import MANIFEST_FILE, write_manifest
from gda.runtime.reading import PickledError, parse_json, parse_yaml, parser, read_bytes, read_npz, read_object, whole_number
from gda.training.networks.models import parse_model_args
from gda.training.networks.sizes import require_sizes_of

_BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi")
)
_MERGES = "a: &a {x: 1}\n" + "".join(f"{new}: &{new} {{<<: [{','.join([f'*{old}'] * 10)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi"))
BAD_YAML = {
    "Latin-1": ("seed: 0 # r\xe9glage\n".encode("latin-1"), "not text in UTF-8"),
    "refers to itself": (b"seed: &a [*a]\n", "alias refers to itself"),
    "refers to itself by a key": (b"&a snapshot: &b {x: *b}\n", "alias refers to itself"),
    "aliases that multiply": (_BOMB.encode(), "aliases expand"),
    "merges that multiply": (_MERGES.encode(), "aliases expand"),
    "a key twice": (b"seed: 1\nseed: 2\n", "duplicate key"),
    "a huge number": (b"seed: " + b"9" * 5000 + b"\n", "not valid YAML"),
    "a large number": (b"seed: " + b"9" * 60 + b"\n", "more than 40 digits"),
    "deep": (b"a: " + b"[" * 200 + b"]" * 200, "levels deep|nested too deep"),
    "very deep": (b"a: " + b"[" * 3_000, "nested too deep"),
    "a list for a key": (b"? [a, b]\n: 1\n", "params.yaml"),
    "a date": (b"seed: 2001-01-01\n", "params.yaml"),
    "bytes": (b"seed: !!binary aGk=\n", "params.yaml"),
    "Python": (b"seed: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    "a null byte": (b"seed: \x00\n", "not valid YAML"),
    "large": (b"# " + b"x" * (1 << 20), "larger than the 0.125 MiB"),
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_params_that_cannot_be_read(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards exit 2 with the file and the reason, soon, for every file that is no configuration."""
    content, reason = BAD_YAML[name]
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    began = time.process_time()
    with pytest.raises(ConfigError, match=reason) as caught:
        load_config(path, ())
    assert str(path) in str(caught.value)
    assert time.process_time() - began < 5
    assert main(["config", "show", "--params", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf", b"# r\xc3\xa9glage\n"])
def test_params_that_can_be_read(prefix: bytes, tmp_path: Path) -> None:
    """The healthy twin: aliases, merges, comments and a byte order mark are fine."""
    (tmp_path / "p.yaml").write_bytes(prefix + b"classify:\n  seeds: &s [0, 1]\n  control_seeds: *s\nseed: 7\n")
    config = load_config(tmp_path / "p.yaml", ())
    assert config.seed == 7
    assert config.classify.control_seeds == config.classify.seeds == (0, 1)
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}", "x") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}


@pytest.mark.parametrize("text", ["{", "\xff", "[" * 100_000, "9" * 5000, '{"a": "\\ud800"}', "NaN", "1e999", "", "1" + "0" * 60])
def test_json_that_cannot_be_read(text: str) -> None:
    """Guards every JSON document: no stack overflow, no number that overflows, no text that cannot be printed."""
    with pytest.raises(DataError, match=r"^x\.json: not valid JSON in UTF-8 \(.+\)$"):
        parse_json(text.encode("latin-1"), "x.json")


def test_json_that_can_be_read() -> None:
    """The healthy twin, at the bounds: 64 levels, 40 digits, a pair of surrogates, infinity where a format has it."""
    deep = "[" * 63 + "1" + "]" * 63
    assert parse_json(deep, "x") == json.loads(deep)
    assert parse_json("9" * 40, "x") == int("9" * 40)
    assert parse_json(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}', "x") == {"a": "\U0001f600"}
    assert parse_json("Infinity", "x", finite=False) == float("inf")
    with pytest.raises(DataError, match="key 'a' twice"):
        parse_json('{"a": 1, "a": 2}', "x", unique=True)


def test_files_that_are_none(tmp_path: Path) -> None:
    """Guards against waiting for ever on a pipe, and against reading a file of any size into memory."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "big").write_bytes(b"x" * 2000)
    for name, reason in (("pipe", "not a regular file"), (".", "cannot be read"), ("none", "No such file"), ("big", "larger than")):
        with pytest.raises(DataError, match=reason):
            read_bytes(tmp_path / name, limit=1000)
    assert read_bytes(tmp_path / "big", limit=2000) == b"x" * 2000


def test_a_disk_that_fails_is_no_fault_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards exit 5 while reading: a failing disk is not a bad file, at our boundary and in a library's parser."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "x")

    with pytest.raises(MissingError, match="Input/output error"), parser("x", "a whole file"):
        fail()
    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(MissingError, match="Input/output error"):
        read_object(tmp_path / "x.json")


RECIPE: dict[str, Any] = {"stage": "x", "config": {}, "inputs": {"a": "0"}, "environment": {}}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (json.dumps(RECIPE), 0), ('{"stage": "x", "config": {}}', 0), ('{"stage":1}', 3), ("x", 3), ("[]", 3), ("null", 3),
        ('{"stage": "x"}', 3),
        (json.dumps(RECIPE | {"inputs": {"a": 1}}), 3), (json.dumps(RECIPE | {"config": []}), 3), (json.dumps(RECIPE | {"more": 1}), 3),
        (json.dumps(RECIPE | {"stage": "\ud800"}), 3), ("[" * 9999, 3), (json.dumps(RECIPE | {"environment": {"a": None}}), 3),
    ],
)  # fmt: skip
def test_lineage_of_any_fingerprint(content: str, code: int, tmp_path: Path) -> None:
    """Guards exit 3 for every fingerprint that is none, 0 for those that are."""
    (tmp_path / "fingerprint.json").write_text(content)
    assert main(["lineage", str(tmp_path)]) == code
    assert main(["lineage", str(tmp_path), "--json"]) == code


def _npz(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def test_npz_of_absurd_lengths(tmp_path: Path) -> None:
    """Guards memory: a header that says more than its file has, a member that is too long, a pickle; a real file is read."""
    np.savez_compressed(tmp_path / "good.npz", mu=np.arange(3.0))
    arrays, held = read_npz(tmp_path / "good.npz", ("mu", "sigma"), limit=1 << 20)
    assert held == ("mu",)
    assert arrays["mu"].tolist() == [0, 1, 2]
    head = b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904,)}".ljust(117) + b"\n"
    with pytest.raises(DataError, match=r"not a whole \.npz"):
        read_npz(_npz(tmp_path / "a.npz", mu=head + b"\0" * 64), ("mu",), limit=1 << 20)
    np.savez_compressed(tmp_path / "long.npz", mu=np.zeros(1_000_000))
    with pytest.raises(DataError, match="at most 1 MiB"):
        read_npz(tmp_path / "long.npz", ("mu",), limit=1 << 20)
    np.savez(tmp_path / "pickled.npz", mu=np.array([{}], dtype=object))
    with pytest.raises(PickledError, match="is pickled"):
        read_npz(tmp_path / "pickled.npz", ("mu",), limit=1 << 20)


def test_manifests_that_are_forged(tmp_path: Path, manifest_rows: Any) -> None:
    """Guards `snapshot.json` and manifest that were edited together: wrong types, empty fields and texts a million times are refused."""
    import hashlib

    import pyarrow as pa
    import pyarrow.parquet as pq

    from gda.io.manifest import read_manifest

    digest = write_manifest(tmp_path, manifest_rows, synthetic=False)
    assert len(read_manifest(tmp_path, digest)) == len(manifest_rows)
    table, n = pq.read_table(tmp_path / MANIFEST_FILE), len(manifest_rows)
    forged = {
        "label": (["x"] * n, "not a Parquet file with the columns"),
        "key": ([None] * n, "'key' has empty fields"),
        "width": ([2**40] * n, "not a Parquet file with the columns"),
        "offset": ([[1]] * n, "not a Parquet file with the columns"),
    }
    for column, (values, reason) in forged.items():
        other = table.set_column(table.column_names.index(column), column, pa.array(values))
        pq.write_table(other, tmp_path / MANIFEST_FILE)
        with pytest.raises(DataError, match=reason):
            read_manifest(tmp_path, hashlib.sha256((tmp_path / MANIFEST_FILE).read_bytes()).hexdigest())
    for texts in (pa.array(["x" * 40_000] * 2_000), pa.array(["x" * 40_000] * 2_000).dictionary_encode()):
        pq.write_table(pa.table({"key": texts, "split": texts}), tmp_path / MANIFEST_FILE)
        with pytest.raises(DataError, match="that expand to"):
            read_manifest(tmp_path, hashlib.sha256((tmp_path / MANIFEST_FILE).read_bytes()).hexdigest())


@pytest.fixture
def manifest_rows() -> Any:
    import pandas as pd

    texts = {"split": "train", "class": "c", "sha256": "0" * 64, "pixel_sha256": "0" * 64, "shard": "train-000000.tar"}
    return pd.DataFrame([{"key": f"k{i}", "label": 0, "width": 8, "height": 8, "offset": i, **texts} for i in range(4)])


@pytest.mark.parametrize(
    "arguments",
    [
        {"layers": 2147483648},
        {"layers": [2, 2, 10**6]},
        {"depth": 1e9},
        {"embed_dim": 2**31},
        {"a": {"num_blocks": 99999}},
        {"layers": [1] * 300},
    ],
)
def test_absurd_sizes_of_a_network(arguments: dict[str, Any], tmp_path: Path) -> None:
    """Guards minutes and memory: sizes beyond any network are refused before timm builds it, in a card's file and in a field."""
    with pytest.raises(DataError, match=r"config\.json: .* does not fit weights"):
        require_sizes_of(arguments, [(64, 3, 7, 7)] * 60, tmp_path / "config.json")
    with pytest.raises(ConfigError, match=r"classify\.model_args_json: .* is larger than"):
        parse_model_args(json.dumps(arguments))


def test_sizes_that_networks_have(tmp_path: Path) -> None:
    """The healthy twin: arguments of real architectures pass."""
    for arguments in (
        {"layers": [3, 4, 23, 3]},
        {"depth": 24, "embed_dim": 1024, "img_size": 448},
        {"drop_path_rate": 0.2, "num_heads": 16},
    ):
        require_sizes_of(arguments, [(4096, 1024)] * 300, tmp_path / "config.json")
        assert parse_model_args(json.dumps(arguments)) == arguments


def test_a_defect_behind_the_boundary_is_not_hidden() -> None:
    """Negative control: only what runs inside the boundary is a fault of the file."""
    with pytest.raises(KeyError):
        parse_json("{}", "x")["a defect"]
    with pytest.raises(UsageError), parser("x", "y"):
        raise UsageError("reported already")


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("007", 7), ("9" * 18, 10**18 - 1)])
def test_whole_numbers(text: str, number: int) -> None:
    """Digits are a number."""
    assert whole_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1_000", " 1", "1.0", "\u00b2", "\u0661", "9" * 19, "9" * 5000, "1\n"], ids=lambda text: ascii(text[:4])
)
def test_what_is_no_whole_number(text: str) -> None:
    """Guards against digits that `str.isdigit` takes and `int` refuses, and against what `int` takes and nobody would write."""
    assert whole_number(text) is None


@pytest.mark.parametrize("workers", ["\u00b2", "9" * 5000, "all"], ids=["superscript", "long", "word"])
def test_a_number_of_workers_that_is_none(workers: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 with what is accepted, not an internal error."""
    assert main(["sample", "--generator", "generator", "--snapshot", "real", "--out", "out", "--workers", workers]) == 2
    assert "expected a number or auto" in capsys.readouterr().err
