"""The reference pages of the manual, made from the configuration, the parsers, the documents and the errors themselves."""

import argparse
import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

import gda.artifacts
from gda.artifacts.document import Document
from gda.cli.stage_commands import build_parser
from gda.config.describe import accepted_values
from gda.config.load import Config, dump_config
from gda.errors import GdaError

_SHARED = {"params", "set", "quiet", "json", "log_format"}  # arguments of every stage


def pages() -> dict[str, str]:
    """Each reference page by its path in the manual."""
    return {
        "reference/configuration.md": configuration(),
        "reference/commands.md": commands(),
        "reference/documents.md": documents(),
        "reference/exit_codes.md": exit_codes(),
    }


def configuration() -> str:
    """Every section and field of the configuration, with what is accepted, its default and what it does."""
    parts = [
        "# Configuration\n\nSections and fields of `params.yaml`. A field that a file leaves out has the default here. "
        "`--set SECTION.FIELD=VALUE` overrides one field of a command; `gda config show` prints the whole.\n\n"
        "`seed`: every random stream is derived from it; a whole number, 0 by default."
    ]
    defaults = dump_config(Config())
    for name, field in Config.model_fields.items():
        section = field.annotation
        if not (inspect.isclass(section) and issubclass(section, BaseModel)):
            continue
        title = field.alias or name
        rows = [
            f"| `{key}` | {_cell(accepted_values(section, key))} | {_default(defaults[title][key])} | {_cell(item.description or '')} |"
            for key, item in section.model_fields.items()
        ]
        parts.append(f"## {title}\n\n| Field | Accepted | Default | What it does |\n|---|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def commands() -> str:
    """Every command of `gda` with its arguments; what all stages take is listed once."""
    listed = next(action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)).choices
    shared = [action for action in listed["snapshot"]._actions if action.dest in _SHARED]
    parts = [
        "# Commands\n\n`gda COMMAND --help` prints the same in the terminal. `python -m pipelines --help` lists those for pipelines, "
        "which [Kubeflow](../kubeflow.md) explains.",
        f"## Every stage\n\nEvery stage takes these as well.\n\n{_table(shared)}",
    ]
    return "\n\n".join([*parts, *(_command(name, parser) for name, parser in listed.items())]) + "\n"


def documents() -> str:
    """Every JSON document that the stages write, with its fields."""
    parts = [
        "# Documents\n\nThe JSON files that the stages write. Each is strict: no field is missing and none is unknown. Every output has a "
        "`fingerprint.json`, which names what it was made from, and lists the SHA-256 of its other files."
    ]
    for kind in _documents():
        rows = [
            f"| `{key}` | {_cell(accepted_values(kind, key))} | {_cell(item.description or '')} |"
            for key, item in kind.model_fields.items()
        ]
        parts.append(f"## {kind.__name__}\n\n{_prose(kind)}\n\n| Field | Type | Meaning |\n|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def exit_codes() -> str:
    """Every exit code of the commands, with the errors that lead to it."""
    rows = [
        "| 0 | done, also where a set was rejected or a gain not proven | |",
        "| 1 | a defect of `gda`; the traceback is kept in a file that the terminal names | |",
    ]
    kinds = sorted(_subclasses(GdaError), key=lambda kind: (kind.exit_code, kind.__name__))
    rows += [f"| {kind.exit_code} | {_cell(_prose(kind))} | `{kind.__name__}` |" for kind in kinds]
    return "# Exit codes\n\n| Code | Meaning | Error |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    stage = {action.dest for action in parser._actions} >= _SHARED
    own = [action for action in parser._actions if not (isinstance(action, argparse._HelpAction) or (stage and action.dest in _SHARED))]
    return f"## gda {name}\n\n{_sentence(parser.description or '')}" + (f"\n\n{_table(own)}" if own else "")


def _table(actions: Sequence[argparse.Action]) -> str:
    rows = [f"| {_argument(action)} | {'yes' if action.required else ''} | {_cell(_meaning(action))} |" for action in actions]
    return "| Argument | Required | Meaning |\n|---|---|---|\n" + "\n".join(rows)


def _argument(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if not action.option_strings:
        return f"`{value}`"
    return ", ".join(f"`{flag}{'' if action.nargs == 0 or action.choices else f' {value}'}`" for flag in action.option_strings)


def _meaning(action: argparse.Action) -> str:
    choices = "one of " + ", ".join(f"`{choice}`" for choice in action.choices) if action.choices else ""
    return "; ".join(part for part in (action.help, choices) if part)


def _documents() -> list[type[Document]]:
    names = sorted(module.name for module in pkgutil.iter_modules(gda.artifacts.__path__))
    modules = [importlib.import_module(f"gda.artifacts.{name}") for name in names]
    found = {
        kind
        for module in modules
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, Document) and kind is not Document
    }
    return sorted(found, key=lambda kind: kind.__name__)


def _subclasses(kind: type[GdaError]) -> Iterator[type[GdaError]]:
    for own in kind.__subclasses__():
        yield own
        yield from _subclasses(own)


def _default(value: Any) -> str:
    text = json.dumps(value)
    return f"`{text}`" if len(text) <= 60 else f"`{text[:57]}...`"


def _prose(kind: type) -> str:
    """The first paragraph of a docstring, on one line."""
    return _sentence(" ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()))


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:] if not text.startswith("`") else text
    return text if text.endswith((".", "`")) or not text else text + "."


def _cell(text: str) -> str:
    """Text for one cell of a table."""
    return text.replace("|", "\\|").replace("{", "&#123;").replace("<", "&lt;")
