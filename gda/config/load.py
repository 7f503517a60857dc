"""The whole configuration: read from YAML and the command line, checked field by field, dumped with all defaults.

Files are read as YAML 1.2 (in PyYAML `1e-4` is a string) and validated through JSON, so that tuples and enums accept what YAML can write.
"""

import json
import math
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from gda.config.renamed import refuse_renamed
from gda.config.sections import (
    ClassifyConfig,
    EvaluateConfig,
    FinetuneConfig,
    PromoteConfig,
    RatioConfig,
    ReferenceConfig,
    SampleConfig,
    Section,
    SnapshotConfig,
    TuneConfig,
    ValidateConfig,
)
from gda.errors import ConfigError
from gda.runtime.reading import YAML_LIMIT, parse_yaml, read_text


class Config(Section):
    """The whole configuration; every random stream is derived from `seed`."""

    seed: int = Field(0, ge=0, le=2**63 - 1, description="every random stream is derived from it")
    snapshot: SnapshotConfig = SnapshotConfig()
    reference: ReferenceConfig = ReferenceConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    tune: TuneConfig = TuneConfig()
    sample: SampleConfig = SampleConfig()
    validate_: ValidateConfig = Field(ValidateConfig(), alias="validate")
    classify: ClassifyConfig = ClassifyConfig()
    ratio: RatioConfig = RatioConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    promote: PromoteConfig = PromoteConfig()

    @model_validator(mode="after")
    def _declared_arm_is_compared(self) -> "Config":
        if self.promote.arm not in self.classify.arms:
            raise ValueError(f"promote.arm {self.promote.arm} is none of classify.arms ({', '.join(self.classify.arms)})")
        return self


def load_config(params: Path | None = None, overrides: tuple[str, ...] = ()) -> Config:
    """Read `params` (YAML 1.2; None means schema defaults) and apply `section.field=value` overrides.

    Raises `ConfigError` with one line that names the field, the value and what is accepted.
    """
    content: dict[str, Any] = read_params(params) if params is not None else {}
    for item in overrides:
        _override(content, item)
    return parse_config(content, where=str(params) if params is not None else "--set", overrides=overrides)


def parse_config(content: dict[str, Any], *, where: str, overrides: Sequence[str] = ()) -> Config:
    """Validate a nested dictionary; the error names the one of `overrides` (`section.field=value`) that it is about, else `where`."""
    _require_finite(content, where)
    refuse_renamed(content, where=where)
    try:
        text = json.dumps(content)
    except (TypeError, ValueError) as error:  # a date, a set, a key that is no text
        raise ConfigError(f"{where}: {error}") from None
    try:
        return Config.model_validate_json(text)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors(include_url=False)[0]["loc"])
        override = next((item for item in overrides if place and (place + ".").startswith(item.partition("=")[0] + ".")), None)
        raise ConfigError(f"{where if override is None else f'--set {override}'}: {_one_line(error)}") from None


def dump_config(config: Config) -> dict[str, Any]:
    """The whole configuration as plain JSON types, with the names in `params.yaml`."""
    return config.model_dump(mode="json", by_alias=True)


def _require_finite(value: Any, where: str, field: str = "") -> None:
    """Refuse NaN and infinity, which JSON cannot express, before validation, and name the field."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: {field}: must be a finite number, got {value}")
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        _require_finite(child, where, f"{field}.{name}".lstrip("."))


def read_params(path: Path) -> dict[str, Any]:
    """The content of a params.yaml, not validated. Raises `ConfigError` for a file that is no mapping."""
    content = parse_yaml(read_text(path, limit=YAML_LIMIT, error=ConfigError), path, error=ConfigError)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(content).__name__}")
    return content


def _override(content: dict[str, Any], item: str) -> None:
    path, equals, text = item.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {item!r}: expected section.field=value")
    value = parse_yaml(text, f"--set {reprlib.repr(item)}", error=ConfigError) if text else None
    *parents, leaf = path.split(".")
    for name in parents:
        content = content.setdefault(name, {})
        if not isinstance(content, dict):
            raise ConfigError(f"--set {item!r}: {name!r} is not a section")
    content[leaf] = value


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return str(first["msg"]).removeprefix("Value error, ")
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {field!r}; {_accepted_keys(first['loc'])}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], dict) else f", got {json.dumps(first['input'], default=str)}"
    return f"{field}: {message[0].lower()}{message[1:]}{given}{more}"


def _accepted_keys(loc: tuple[int | str, ...]) -> str:
    import difflib

    model: type[BaseModel] = Config
    for part in loc[:-1]:
        annotation = next(f.annotation for n, f in model.model_fields.items() if part in (n, f.alias))
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    names = [f.alias or n for n, f in model.model_fields.items()]
    close = difflib.get_close_matches(str(loc[-1]), names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"accepted: {', '.join(names)}"
