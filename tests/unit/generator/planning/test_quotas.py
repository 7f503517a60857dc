"""Quotas: each mode shares as it says, and a table that is not exact is refused in one line that names the place."""

import json
import unicodedata
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gda.config.sections import SampleConfig
from gda.errors import ConfigError
from gda.generator.planning.quotas import apportion, class_quotas, read_quotas

REAL = {"cat": 50, "dog": 30, "eel": 1}
NAMES = list(REAL)


def _quotas(real=REAL, *, zero_shot=False, **fields):
    return class_quotas(SampleConfig(**fields), real, zero_shot=zero_shot)


def test_each_mode_shares_as_it_says():
    """Equal, histogram, multiple and table, by hand, in label order."""
    assert _quotas(images_per_class=7) == {"cat": 7, "dog": 7, "eel": 7}
    # 300 in all: of 81 real images 50, 30 and 1 make 185.19, 111.11 and 3.70.
    assert _quotas(quota="histogram", images_per_class=100) == {"cat": 185, "dog": 111, "eel": 4}
    assert _quotas(quota="multiple", real_multiple=2.5) == {"cat": 125, "dog": 75, "eel": 3}
    assert list(_quotas(quota="histogram")) == NAMES


def test_multiples_round_to_the_nearest_and_are_never_zero():
    """A half goes up, the decimal that was written counts and not its binary neighbour, and no class is lost."""
    assert _quotas({"a": 10, "b": 5, "c": 1}, quota="multiple", real_multiple=0.1) == {"a": 1, "b": 1, "c": 1}
    assert _quotas({"a": 100, "b": 50, "c": 45}, quota="multiple", real_multiple=0.29) == {"a": 29, "b": 15, "c": 13}


@given(
    weights=st.lists(st.integers(1, 1000), min_size=1, max_size=12),
    mean=st.integers(1, 50),
)
def test_shares_are_exact_in_sum_and_fair(weights, mean):
    """All images are shared, everyone has one, more weight never means fewer, and no share is off by an image unless lifted to 1."""
    named = {f"c{i}": weight for i, weight in enumerate(weights)}
    shares = apportion(mean * len(weights), named)
    assert list(shares) == list(named)
    assert sum(shares.values()) == mean * len(weights)
    assert min(shares.values()) >= 1
    ordered = sorted(named, key=lambda name: named[name])
    assert all(shares[a] <= shares[b] for a, b in pairwise(ordered) if named[a] < named[b])
    exact = {name: Fraction(weight * mean * len(weights), sum(weights)) for name, weight in named.items()}
    if min(exact.values()) >= 1:
        assert all(abs(shares[name] - exact[name]) < 1 for name in named)


def test_ties_go_to_the_earlier_class():
    """Equal remainders are broken by label order, so that equal inputs give equal plans."""
    assert apportion(5, {"a": 1, "b": 1, "c": 1}) == {"a": 2, "b": 2, "c": 1}
    assert apportion(4, {"a": 1, "b": 1, "c": 1}) == {"a": 2, "b": 1, "c": 1}


def test_a_class_too_small_for_a_share_takes_it_from_all_others():
    """Classes lifted to one image cost the others in proportion, also where that makes another one small."""
    assert apportion(10, {"a": 1000, "b": 500, "c": 1, "d": 1}) == {"a": 5, "b": 3, "c": 1, "d": 1}
    assert apportion(4, {"a": 100, "b": 26, "c": 1}) == {"a": 2, "b": 1, "c": 1}


def test_the_zero_shot_control_keeps_the_proportions():
    """The control has the set's quotas, or as many a class as it is given, shared as the set's are."""
    table = {"quota": "multiple", "real_multiple": 2.0}
    assert _quotas(zero_shot=True, **table) == _quotas(**table) == {"cat": 100, "dog": 60, "eel": 2}
    assert _quotas(zero_shot=True, zero_shot_images_per_class=27, **table) == {"cat": 50, "dog": 30, "eel": 1}
    assert _quotas(zero_shot=True, zero_shot_images_per_class=27, quota="histogram") == {"cat": 50, "dog": 30, "eel": 1}
    assert _quotas(zero_shot=True, zero_shot_images_per_class=9) == {"cat": 9, "dog": 9, "eel": 9}
    assert _quotas(zero_shot=False, zero_shot_images_per_class=9) == {"cat": 100, "dog": 100, "eel": 100}


def test_classes_without_training_images_are_an_error_not_zero():
    """Proportional quotas of a class without training images would be zero: refused by name; equal quotas do without."""
    for quota in ("histogram", "multiple"):
        with pytest.raises(ConfigError, match=rf"sample\.quota: {quota} .*'dog'; accepted: equal or table"):
            _quotas({"cat": 5, "dog": 0}, quota=quota)
    assert _quotas({"cat": 5, "dog": 0}, images_per_class=2) == {"cat": 2, "dog": 2}


def test_more_than_can_be_meant_is_refused():
    """A multiple that leads beyond ten million images per class is a slip, and is named before a plan fills the memory."""
    with pytest.raises(ConfigError, match=r"class 'cat' would have 20,000,000 images; accepted: .* 10,000,000"):
        _quotas({"cat": 2000}, quota="multiple", real_multiple=10_000.0)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("q.yaml", "eel: 3\ncat: 1\ndog: 2\n"),
        ("q.YML", "{eel: 3, 'cat': 1, dog: 0x2}"),
        ("q.json", '\ufeff{"cat": 1, "dog": 2, "eel": 3}'),
        ("q.csv", "class,images\ndog,2\neel,3\ncat,1\n"),
        ("q.csv", '\ufeffclass, images\r\n"dog", 2\r\n\r\neel,3\r\ncat,1'),
    ],
)
def test_tables_are_read_in_three_forms(tmp_path, file, text):
    """YAML, JSON and CSV say the same, in any order; the quotas are in label order."""
    (tmp_path / file).write_bytes(text.encode())
    quotas = _quotas(quota="table", quota_file=str(tmp_path / file))
    assert list(quotas.items()) == [("cat", 1), ("dog", 2), ("eel", 3)]


@pytest.mark.parametrize("name", ["007", "1e3", "null", "on", "café"])
def test_class_names_are_text_as_written(tmp_path, name):
    """A class that looks like a number, a truth value or nothing is found in every form, and so is one with its accent apart."""
    written = unicodedata.normalize("NFD", name)
    for file, text in (
        ("q.yaml", f"{written}: 4\n"),
        ("q.json", json.dumps({written: 4}, ensure_ascii=False)),
        ("q.csv", f"class,images\n{written},4\n"),
    ):
        (tmp_path / file).write_text(text, "utf-8")
        assert read_quotas(str(tmp_path / file), [name]) == {name: 4}


WHOLE = r"accepted: a whole number of images from 1 to 10,000,000$"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("q.yaml", "cat: 1\ndog: 2\n", r"1 class is missing: 'eel'; every class needs a whole number of images from 1 to 10,000,000$"),
        ("q.json", "{}", r"3 classes are missing: 'cat', 'dog', 'eel'; every class needs"),
        ("q.csv", "class,images\ncat,1\n", r"2 classes are missing: 'dog', 'eel';"),
        ("q.yaml", "cat: 1\ndog: 2\neels: 3\n", r"'eels' is no class; did you mean 'eel'\?$"),
        ("q.csv", "class,images\ncat,1\nowl,3\n", r"line 3: 'owl' is no class; the classes are 'cat', 'dog', 'eel'$"),
        ("q.yaml", "cat: 0\ndog: 2\neel: 3\n", rf"class 'cat': found 0; {WHOLE}"),
        ("q.csv", "class,images\ncat,1\n\ndog,0\neel,3\n", rf"line 4: class 'dog': found 0; {WHOLE}"),
        ("q.json", '{"cat": -1}', rf"class 'cat': found -1; {WHOLE}"),
        ("q.csv", "class,images\ncat,-1\n", rf"line 2: class 'cat': found -1; {WHOLE}"),
        ("q.yaml", "cat: 2.5\n", rf"class 'cat': found float 2\.5; {WHOLE}"),
        ("q.json", '{"cat": 2.0}', rf"class 'cat': found float 2\.0; {WHOLE}"),
        ("q.csv", "class,images\ncat,2.0\n", rf"line 2: class 'cat': found '2\.0'; {WHOLE}"),
        ("q.csv", "class,images\ncat,\n", rf"line 2: class 'cat': found ''; {WHOLE}"),
        ("q.csv", "class,images\ncat,1_000\n", rf"line 2: class 'cat': found '1_000'; {WHOLE}"),
        ("q.csv", "class,images\ncat,٣\n", rf"line 2: class 'cat': found '٣'; {WHOLE}"),
        ("q.csv", "class,images\ncat," + "9" * 5000 + "\n", rf"line 2: class 'cat': found '9+'; {WHOLE}"),
        ("q.yaml", "cat: true\n", rf"class 'cat': found bool True; {WHOLE}"),
        ("q.yaml", "cat:\n", rf"class 'cat': found nothing; {WHOLE}"),
        ("q.yaml", "cat: '5'\n", rf"class 'cat': found str '5'; {WHOLE}"),
        ("q.yaml", "cat: [5]\n", rf"class 'cat': found list \[5\]; {WHOLE}"),
        ("q.yaml", "cat: 10000001\n", rf"class 'cat': found 10000001; {WHOLE}"),
        ("q.yaml", "cat: 1\ncat: 1\n", r"not valid YAML in UTF-8 \(line 2: found duplicate key \"cat\""),
        ("q.json", '{"cat": 1, "cat": 1}', r"not valid JSON in UTF-8 \(key 'cat' twice\)$"),
        ("q.csv", "class,images\ncat,1\ncat,1\n", r"line 3: class 'cat' is named twice$"),
        ("q.csv", "cat,1\ndog,2\neel,3\n", r"line 1: expected the header 'class,images', found 'cat,1'$"),
        ("q.csv", "", r"line 1: expected the header 'class,images', found ''$"),
        ("q.csv", "class,images\ncat,1,2\n", r"line 2: expected 2 columns, found 3$"),
        ("q.csv", 'class,images\n"cat,1\n', r"not valid CSV in UTF-8 \(unexpected end of data\)$"),
        ("q.yaml", "- cat\n", r"expected a mapping of class name to images, found list \['cat'\]$"),
        ("q.yaml", "", r"expected a mapping of class name to images, found nothing$"),
        ("q.txt", "cat: 1\n", r"unknown kind of file '\.txt'; accepted: \.yaml, \.yml, \.json or \.csv$"),
    ],
)
def test_a_bad_table_is_one_line_that_names_the_place(tmp_path, file, text, message):
    """A table is exact or refused: missing, unknown or repeated classes, and what is no positive whole number."""
    (tmp_path / file).write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=rf"^sample\.quota_file .*{file}: {message}") as caught:
        _quotas(quota="table", quota_file=str(tmp_path / file))
    assert "\n" not in str(caught.value)


def test_a_table_that_cannot_be_read_is_named(tmp_path):
    """No file, none given, a folder, and bytes that are no text."""
    with pytest.raises(ConfigError, match=r"sample\.quota_file: is null, but sample\.quota is table; accepted: a \.yaml"):
        _quotas(quota="table")
    (tmp_path / "folder.csv").mkdir()
    for name in ("none.yaml", "none.csv", "folder.csv"):
        with pytest.raises(ConfigError, match=rf"{name}: cannot be read \("):
            read_quotas(str(tmp_path / name), NAMES)
    for name, kind in (("latin.csv", "CSV"), ("latin.yaml", "YAML")):
        (tmp_path / name).write_bytes(b"class,images\ncaf\xe9,1\n")
        with pytest.raises(ConfigError, match=rf"{name}: not valid {kind} in UTF-8 \("):
            read_quotas(str(tmp_path / name), NAMES)
