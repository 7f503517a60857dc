"""Recipes: equal work has an equal digest, a difference is shown field by field."""

import pytest

from gda.artifacts.fingerprint import Fingerprint, canonical_json, digest_of


def test_digest_ignores_key_order_and_sees_values():
    """Dictionaries that are equal digest alike; any changed value does not."""
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_nan_has_no_digest():
    """NaN is unequal to itself, so it must not name work."""
    with pytest.raises(ValueError):
        canonical_json({"a": float("nan")})


def test_difference_names_the_fields():
    """A refused resume can state what changed."""
    one = Fingerprint(stage="s", config={"lr": 1, "steps": 5}, inputs={"data": "x"})
    two = Fingerprint(stage="s", config={"lr": 2, "steps": 5}, inputs={"data": "y"})
    assert one.difference(two) == ["config.lr: 1 -> 2", "inputs.data: x -> y"]
    assert one.digest != two.digest
