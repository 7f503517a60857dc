"""JSON schemas of the documents that other tools read, generated from the models: `python -m gda.schemas` rewrites them."""

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from gda.artifacts.document import Document
from gda.artifacts.evaluation import Metrics
from gda.artifacts.verdict import Verdict

SCHEMAS: dict[str, type[Document]] = {"metrics": Metrics, "verdict": Verdict}
_FOLDER = Path(__file__).parent


class _Written(GenerateJsonSchema):
    """Schemas of what is written, where fields with a default are present too, but for those that are left out at a value."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        return "serialization_exclude_if" not in field


def schema_text(name: str) -> str:
    """The schema of `metrics.json` or `verdict.json` as it is checked in: of what is written, so fields with a default are required."""
    schema = SCHEMAS[name].model_json_schema(mode="serialization", schema_generator=_Written)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = f"{name}.json"
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def schema_path(name: str) -> Path:
    """Where the schema is checked in."""
    return _FOLDER / f"{name}.schema.json"
