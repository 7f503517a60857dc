"""What each field of the configuration accepts, its default, its value and where that comes from, as commented YAML."""

import inspect
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from gda.config.load import Config, dump_config, load_config, read_params
from gda.errors import ConfigError

_WIDTH = 110


def described_config(params: Path | None, overrides: Sequence[str] = (), *, only: Sequence[str] = (), plain: bool = False) -> str:
    """The whole configuration, or the sections and fields that `only` names, as YAML that can be read back.

    A comment above each field says what it does, what is accepted, its default, and whether the value comes from the file, from `--set`,
    from the recipe or from the default; `plain` leaves the comments out. Raises `ConfigError` for an unknown name in `only`.
    """
    config = load_config(params, tuple(overrides))
    values, defaults = dump_config(config), dump_config(Config())
    given = read_params(params) if params is not None else {}
    chosen = {item.partition("=")[0] for item in overrides}
    whole = CommentedMap()
    for name, value in values.items():
        if not isinstance(value, dict):
            if _named(only, name):
                whole[name] = value
                note = _note(Config, name, value, defaults[name], _source(name, given, chosen, params, ""))
            comment(whole, name, () if plain else note)
            continue
        section = CommentedMap()
        model = section_model(name)
        for key, own in value.items():
            path = f"{name}.{key}"
            if not _named(only, path):
                continue
            section[key] = own
            recipe = config.classify.recipe if name == "classify" and own != defaults[name][key] else ""
            source = _source(path, given, chosen, params, recipe)
            comment(section, key, () if plain else _note(model, key, own, defaults[name][key], source), indent=2)
        if section:
            whole[name] = section
    if unknown := [name for name in only if not _known(name, values)]:
        raise ConfigError(f"config show {unknown[0]}: no such section or field; the sections are {', '.join(values)}")
    return yaml_text(whole)


def yaml_text(content: CommentedMap) -> str:
    """`content` with its comments as YAML, where nothing is written as null."""
    yaml, text = YAML(), io.StringIO()
    yaml.width = 4096
    yaml.representer.add_representer(type(None), lambda represent, _: represent.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml.dump(content, text)
    return text.getvalue()


def _named(only: Sequence[str], path: str) -> bool:
    return not only or any(path == name or path.startswith(f"{name}.") for name in only)


def _known(name: str, values: Mapping[str, Any]) -> bool:
    section, _, key = name.partition(".")
    return section in values and (not key or (isinstance(values[section], dict) and key in values[section]))


def section_model(name: str) -> type[BaseModel]:
    """The model of a section, by its name in `params.yaml`."""
    kind = next(field.annotation for key, field in Config.model_fields.items() if name in (key, field.alias))
    assert inspect.isclass(kind)
    assert issubclass(kind, BaseModel)
    return kind


def _source(path: str, given: Mapping[str, Any], chosen: set[str], params: Path | None, recipe: str) -> str:
    if path in chosen or any(path.startswith(f"{item}.") for item in chosen):
        return "from --set"
    section, _, key = path.partition(".")
    own = given.get(section)
    if (section in given and not key) or (isinstance(own, dict) and key in own):
        return f"from {params}"
    return f"from the recipe {recipe}" if recipe else ""


def _note(model: type[BaseModel], key: str, value: Any, default: Any, source: str) -> list[str]:
    field = model.model_fields[key]
    facts = [
        f"accepted: {accepted_values(model, key).replace('`', '')}",
        f"default: {json.dumps(default)}" if value != default or source else "",
        source,
    ]
    return [field.description or "", "; ".join(filter(None, facts)) + ("" if source else "; this is the default")]


def comment(into: CommentedMap, key: str, note: Sequence[str], *, indent: int = 0) -> None:
    """Put the sentences of `note`, each on lines of its own, above `key`."""
    if note:
        lines = [line for part in note for line in textwrap.wrap(part, _WIDTH - indent)]
        into.yaml_set_comment_before_after_key(key, before="\n".join(lines), indent=indent)


def accepted_values(model: type[BaseModel], key: str) -> str:
    """What a field accepts, in words, from the schema of its model."""
    schema = model.model_json_schema(by_alias=True)
    own = schema["properties"][model.model_fields[key].alias or key]
    return _type(own, schema.get("$defs", {}))


def _type(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        definition = definitions[name]
        return f"{name}" if definition.get("type") == "object" else _type(definition, definitions)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(each, definitions) for each in schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    kind = schema.get("type")
    if kind == "array":
        if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])}: {_type(schema['prefixItems'][0], definitions)}"
        return f"list of {_type(schema.get('items', {}), definitions)}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"mapping to {_type(values, definitions)}" if isinstance(values, Mapping) and values else "mapping"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
    return words.get(str(kind), "any value") + _range(schema)


def _range(schema: Mapping[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    ends = [
        f"from {low:,}" if low is not None else f"above {above:,}" if above is not None else "",
        f"to {high:,}" if high is not None else f"below {below:,}" if below is not None else "",
    ]
    return (" " + " ".join(end for end in ends if end)) if any(ends) else ""
