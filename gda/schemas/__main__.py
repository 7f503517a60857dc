"""Rewrite the checked-in schemas."""

from gda.schemas import SCHEMAS, schema_path, schema_text

for name in SCHEMAS:
    schema_path(name).write_text(schema_text(name), "utf-8")
    print(schema_path(name))
