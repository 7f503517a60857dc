"""The run form of the pipelines: the settings that people change as typed fields, all others in one JSON text; and their configuration."""

import json
from collections.abc import Mapping
from typing import Any

from gda.config.load import Config, dump_config, parse_config
from gda.errors import ConfigError
from gda.flow import EXTRA_NODES, GRAPH
from gda.runtime.reading import parse_json
from gda.steps.graph import Outside, settings_of

# Field of the form -> field of the configuration. `num_seeds` and `guidance_scale` are written otherwise there (see `_as_configured`).
FORM = {
    "data": "snapshot.source",
    "pool": "snapshot.pool",
    "base_model": "finetune.base",
    "method": "finetune.method",
    "num_train_steps": "finetune.num_train_steps",
    "images_per_class": "sample.images_per_class",
    "guidance_scale": "sample.guidance_scale",
    "classifier": "classify.model",
    "image_size": "classify.image_size",
    "ratio": "classify.ratio",
    "classifier_train_steps": "classify.num_train_steps",
    "num_seeds": "classify.seeds",
    "fid_max_ratio": "validate.fid_max_ratio",
    "alpha": "promote.alpha",
    "min_seeds": "promote.min_seeds",
    "model_name": "promote.model_name",
    "seed": "seed",
}
# Whole numbers, which pipelines may hand on as floating point.
_WHOLE = ("num_train_steps", "images_per_class", "image_size", "classifier_train_steps", "min_seeds", "seed")


def filled_in(form: Mapping[str, Any], settings: str) -> Config:
    """The configuration of a run: the form's fields over the JSON object `settings`.

    Raises `ConfigError` for an unknown field of the form, and for a JSON setting that is also a field of the form: each has one place.
    """
    if unknown := sorted(form.keys() - FORM.keys()):
        raise ConfigError(f"form: unknown field {unknown[0]!r}; accepted: {', '.join(FORM)}")
    content = _parsed(settings)
    for name, value in form.items():
        *parents, leaf = FORM[name].split(".")
        section = content
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(f"settings: {parent} is not a section")
        if leaf in section:
            raise ConfigError(f"settings: {FORM[name]} is the field {name} of the run's form; leave it out of the JSON")
        section[leaf] = _as_configured(name, value)
    return parse_config(content, where="run")


def split_up(config: Config) -> tuple[dict[str, Any], str]:
    """The form's fields and the JSON text that `filled_in` makes `config` of. Raises `ConfigError` for seeds that do not fit the form."""
    content = dump_config(config)
    form: dict[str, Any] = {}
    for name, path in FORM.items():
        *parents, leaf = path.split(".")
        section = content
        for parent in parents:
            section = section[parent]
        form[name] = _as_typed(name, section.pop(leaf))
    return form, json.dumps(content, sort_keys=True)


def step_settings(config: Config, outside: Outside | None = None) -> dict[str, str]:
    """Each step's settings: its own sections and what they name `outside` as JSON, by the name of its node in the flow."""
    return {node.name: settings_of(config, node, outside) for node in (*GRAPH, *EXTRA_NODES)}


def classifier_runs(config: Config) -> list[dict[str, str]]:
    """Every classifier to train, as arm and seed; both text, as numbers in pipelines become floating point."""
    return [{"arm": str(arm), "seed": str(seed)} for arm in config.classify.arms for seed in config.classify.seeds_of(arm)]


def _parsed(settings: str) -> dict[str, Any]:
    content = parse_json(settings or "{}", "settings", error=ConfigError)
    if not isinstance(content, dict):
        raise ConfigError(f"settings: expected a JSON object of sections, got {type(content).__name__}")
    return content


def _as_configured(name: str, value: Any) -> Any:
    if name == "num_seeds":
        return list(range(int(value)))
    if name == "guidance_scale":  # 0 in the form: as tuned
        return float(value) or None
    if name in _WHOLE and isinstance(value, float) and value.is_integer():
        return int(value)
    return (value or None) if name == "pool" else value


def _as_typed(name: str, value: Any) -> Any:
    if name == "num_seeds":
        if value != list(range(len(value))):
            raise ConfigError(f"classify.seeds {value}: a run's form counts seeds from 0")
        return len(value)
    if name == "guidance_scale":
        return value or 0.0
    return (value or "") if name == "pool" else value
