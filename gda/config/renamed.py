"""The one table of renamed keys, values and flags: errors name the new word, and `gda config convert` rewrites an old params.yaml."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gda.errors import ConfigError

# Key of a section before -> its name now. Those of `classify` are renamed in `classify.trainings.NAME` as well.
KEYS: Mapping[str, Mapping[str, str]] = {
    "snapshot": {"shots_draw": "few_shot_seed"},
    "reference": {"num_updates": "num_train_steps"},
    "finetune": {"train_batch_size": "batch_size", "lr_warmup_steps": "warmup_steps"},
    "tune": {"cas_num_updates": "cas_num_train_steps"},
    "validate": {"redraw_rounds": "replacement_rounds", "max_dropped_fraction": "max_replaced_fraction"},
    "classify": {
        "num_updates": "num_train_steps",
        "mixed_num_updates": "mixed_num_train_steps",
        "last_layer_updates": "last_layer_num_train_steps",
        "warmup_updates": "warmup_steps",
        "clip_grad": "max_grad_norm",
        "precision": "mixed_precision",
    },
    "ratio": {"num_updates": "num_train_steps", "kept": "keep_fraction"},
}
# Value before -> value now, by section and the key's name now.
VALUES: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "validate": {"on_fail": {"drop_and_redraw": "replace_rejected"}},
    "classify": {"mixed_precision": {"fp32": "no"}},
}
# Flag of a command before -> its name now.
FLAGS: Mapping[str, Mapping[str, str]] = {
    "verify": {"--redraw": "--reproduce"},
    "snapshot": {"--beside": "--snapshot"},
    "validate": {"--judged": "--accepted"},
}
# Parameter of a pipeline before -> its name now.
PARAMETERS: Mapping[str, str] = {"num_updates": "classifier_train_steps"}


def refuse_renamed(content: Mapping[str, Any], *, where: str) -> None:
    """Raise `ConfigError` for the first renamed key or value in a nested configuration, naming the new one."""
    for section, name, fields in _sections(content):
        for key, value in fields.items():
            if (new := KEYS.get(section, {}).get(key)) is not None:
                raise ConfigError(f"{where}: {name}.{key} is now {name}.{new}; gda config convert rewrites a params.yaml")
            if (word := _new_value(section, key, value)) is not None:
                raise ConfigError(f"{where}: {name}.{key}: {value} is now {word}; gda config convert rewrites a params.yaml")


def renamed_flag(argv: Sequence[str]) -> str | None:
    """An error message for the first renamed flag of the command line `argv`, None where there is none."""
    flags = FLAGS.get(argv[0], {}) if argv else {}
    given = (word.partition("=")[0] for word in argv[1:])
    return next((f"{flag} is now {flags[flag]}" for flag in given if flag in flags), None)


def convert(text: str, *, where: str) -> tuple[str, list[str]]:
    """The text of a params.yaml with new names, and a line per change; comments, order and layout stay.

    Raises `ConfigError` for text that is no YAML mapping, and where a key is given by both names.
    """
    lines = text.splitlines(keepends=True)
    found = list(_changes(_positioned(text, where), where))
    for (line, column), old, new in sorted({change for change, _ in found}, reverse=True):
        start = column + (lines[line][column : column + 1] in ("'", '"'))
        if lines[line][start : start + len(old)] != old:
            raise ConfigError(f"{where}:{line + 1}: expected {old!r} at column {start + 1}; rename it to {new!r} by hand")
        lines[line] = lines[line][:start] + new + lines[line][start + len(old) :]
    return "".join(lines), list(dict.fromkeys(message for _, message in found))


def _sections(content: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Each section, and each training of `classify`, as the section whose names it has, its own name and its fields."""
    for section, fields in content.items():
        if not isinstance(fields, Mapping):
            continue
        yield section, section, fields
        trainings = fields.get("trainings") if section == "classify" else None
        for name, own in trainings.items() if isinstance(trainings, Mapping) else ():
            if isinstance(own, Mapping):
                yield section, f"{section}.trainings.{name}", own


def _new_value(section: str, key: str, value: Any) -> str | None:
    return VALUES.get(section, {}).get(key, {}).get(value) if isinstance(value, str) else None


def _positioned(text: str, where: str) -> Mapping[str, Any]:
    from ruamel.yaml import YAML, YAMLError

    try:
        content = YAML().load(text)
    except YAMLError as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from None
    if content is not None and not isinstance(content, Mapping):
        raise ConfigError(f"{where}: expected a mapping of sections, found {type(content).__name__}")
    return content or {}


Change = tuple[tuple[int, int], str, str]  # line and column from 0, the text there, and the text in its place


def _changes(content: Mapping[str, Any], where: str) -> Iterator[tuple[Change, str]]:
    """Each change with its message. Keys that a YAML merge brings are changed where they are written."""
    for section, name, fields in _sections(content):
        positions: Any = getattr(fields, "lc", None)
        written = positions.data or {} if positions is not None else {}
        for key in written:
            new = KEYS.get(section, {}).get(key, key)
            if new != key:
                if new in fields:
                    raise ConfigError(f"{where}: {name} has both {key} and {new}, which is its name now; remove one")
                yield (positions.key(key), key, new), f"{name}.{key} -> {name}.{new}"
            if (word := _new_value(section, new, fields[key])) is not None:
                yield (positions.value(key), fields[key], word), f"{name}.{new}: {fields[key]} -> {word}"
