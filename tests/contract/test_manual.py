"""The manual's site: reference pages are complete, and links to source files do not break it."""

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gda.cli.stage_commands import build_parser
from gda.config.load import Config, dump_config
from gda.errors import GdaError, TryAgainError

SITE = Path(__file__).parents[2] / "docs/site"


@pytest.fixture(scope="module", autouse=True)
def _importable():
    sys.path.insert(0, str(SITE))
    yield
    sys.path.remove(str(SITE))


@pytest.fixture(scope="module")
def pages():
    """The generated pages by path."""
    import reference

    return reference.pages()


def test_every_field_of_the_configuration_has_a_row(pages):
    """Protects users from a setting that is in the code and not in the manual, and each row from an empty description."""
    page = pages["reference/configuration.md"]
    sections = {title: text for title, _, text in (part.partition("\n") for part in page.split("\n## ")[1:])}
    fields = {(section, key) for section, values in dump_config(Config()).items() if isinstance(values, dict) for key in values}
    rows = {
        (section, line.split("`")[1]): line for section, text in sections.items() for line in text.splitlines() if line.startswith("| `")
    }
    assert rows.keys() == fields
    assert "| `num_train_steps` | whole number from 1 to 10,000,000 | `300` | " in rows["finetune", "num_train_steps"]
    assert "`reject`, `replace_rejected`" in rows["validate", "on_fail"]
    assert not [name for name, line in rows.items() if not line.split(" | ")[3].strip(" |")]


def test_every_command_and_flag_is_listed(pages):
    """The commands page names each command, flag and required argument."""
    page = pages["reference/commands.md"]
    commands = next(action.choices for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, parser in commands.items():
        part = page.split(f"## gda {name}\n")[1].split("\n## ")[0] + page.split("## Every stage\n")[1].split("\n## ")[0]
        for action in parser._actions:
            assert action.help, f"gda {name}: {action.dest} has no help"
            for flag in action.option_strings:
                assert f"`{flag}`" in part or f"`{flag} " in part or flag in ("-h", "--help")
    assert "| `--snapshot SNAPSHOT` | yes |" in page


def test_every_exit_code_is_listed(pages):
    """The page has a row per kind of error, with its code."""
    rows = pages["reference/exit_codes.md"].splitlines()
    assert any(row.startswith(f"| {TryAgainError.exit_code} | ") and row.endswith("`TryAgainError` |") for row in rows)
    assert {f"`{kind.__name__}`" for kind in GdaError.__subclasses__()} <= {row.split(" | ")[-1].removesuffix(" |") for row in rows}


def test_documents_are_listed_with_their_fields(pages):
    """Documents of every module of artifacts, each field with a type in words."""
    page = pages["reference/documents.md"]
    assert "\n## Verdict\n" in page
    assert "\n## Decision\n" in page
    assert "| `promoted` | true or false |" in page
    assert "$ref" not in page


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[gda/flow.py](../gda/flow.py)", "gda/flow.py"),
        ("[graph](../gda/flow.py)", "graph (`gda/flow.py`)"),
        ("[`flow`](../gda/flow.py)", "`flow`"),
        ("[changes](../CHANGELOG.md)", "[changes](CHANGELOG.md)"),
        ("[gate](gate.md#power)", "[gate](gate.md#power)"),
        ("[paper](https://arxiv.org/abs/2304.08466)", "[paper](https://arxiv.org/abs/2304.08466)"),
        ("[gone](nowhere.md)", "[gone](nowhere.md)"),
        ("![picture](report.png)", "![picture](report.png)"),
    ],
)
def test_links_that_leave_the_manual_become_names(text, expected):
    """Source files are not copied into the site; a dead link stays one, so that the strict build reports it."""
    import hooks

    files = SimpleNamespace(get_file_from_path=lambda path: path == "gate.md" or None)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))
    assert hooks.on_page_markdown(text, page, None, files) == expected
