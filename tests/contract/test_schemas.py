"""The schemas of metrics.json and verdict.json: checked in, current, and true of real documents."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gda.artifacts.document import dump_document, read_document
from gda.schemas import SCHEMAS, schema_path, schema_text

FIXTURES = Path(__file__).with_name("fixtures")
DOCUMENTS = [(name, outcome) for name in SCHEMAS for outcome in ("passed", "refused")]


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


@pytest.mark.parametrize("name", SCHEMAS)
def test_checked_in_schemas_are_current(name: str) -> None:
    """Protects against a model changing without its schema; `python -m gda.schemas` rewrites them."""
    assert schema_path(name).read_text("utf-8") == schema_text(name)


@pytest.mark.parametrize(("name", "outcome"), DOCUMENTS)
def test_fixtures_are_valid_and_round_trip(name: str, outcome: str) -> None:
    """Protects readers outside: documents of both outcomes satisfy the schema, and reading and writing keeps their bytes."""
    path = FIXTURES / f"{name}.{outcome}.json"
    jsonschema.validate(load(path), load(schema_path(name)))
    assert dump_document(read_document(path, SCHEMAS[name])) == path.read_bytes()


@pytest.mark.parametrize(("name", "outcome"), DOCUMENTS)
def test_every_field_is_required_and_no_other_is_allowed(name: str, outcome: str) -> None:
    """Protects against a schema so loose that it accepts a document with a field missing or misspelt."""
    schema, document = load(schema_path(name)), load(FIXTURES / f"{name}.{outcome}.json")
    for field in document:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in document.items() if k != field}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document | {"extra": 1}, schema)


def test_the_documented_keys_are_there() -> None:
    """Protects the keys that other tools rely on."""
    metrics, verdict = load(FIXTURES / "metrics.passed.json"), load(FIXTURES / "verdict.passed.json")
    assert len(metrics["arms"]["real+synthetic"]["top1"]) == 6
    assert {"mean", "ci95", "p_value", "seeds"} <= metrics["gain"]["real+synthetic"].keys()
    assert {"value", "low", "high", "floor", "n", "extractor", "reference_digest"} <= verdict["metrics"]["fid"].keys()
    assert "cas" in metrics
    assert verdict["passed"] is True
