"""README and pages: short, linked to what exists, and naming commands and fields that exist."""

import re
from pathlib import Path

import pytest

from gda.cli.stage_commands import build_parser
from gda.config.load import Config

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    {
        *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("*/README.md"),
    }
)
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")
FIELD = re.compile(r"`([a-z]+)\.([a-z][a-z0-9_]*)[`:]")
FILE_ENDINGS = {"md", "json", "csv", "yaml", "py", "html", "npz", "txt", "png", "db", "lock", "safetensors"}


def _name(page):
    return str(page.relative_to(ROOT))


def _headings(page):
    """The anchors that a reader's browser makes of a page's headings."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {"#" + re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_the_readme_is_a_first_look():
    """Protects against a README that grows into a reference again: at most 130 lines, and it has the two commands."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert "make demo" in text
    assert "make test" in text


def test_the_licence_is_there_and_is_the_one_declared():
    """Protects users' lawyers: the file holds the licence that the package's metadata names."""
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page):
    """Every relative link of a page is a file of the project, and every anchor one of its headings."""
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), f"{_name(page)} links to {target}"
        if anchor:
            assert anchor in _headings(found), f"{_name(page)} links to {target}{anchor}"


def test_commands_in_the_pages_exist():
    """Every `gda VERB` that a page shows is a command, so that nobody types one that is gone."""
    verbs = set(next(a.choices for a in build_parser()._actions if a.choices and "snapshot" in a.choices))
    for page in PAGES:
        shown = set(re.findall(r"(?:^|`)gda ([a-z][a-z-]+)", page.read_text(encoding="utf-8"), re.M))
        assert shown <= verbs, f"{_name(page)}: {sorted(shown - verbs)}"


def test_fields_in_the_pages_exist():
    """Every `section.field` of our sections that README or docs name is a field of the configuration."""
    sections = {
        name: set(field.annotation.model_fields) for name, field in Config.model_fields.items() if hasattr(field.annotation, "model_fields")
    }
    assert "classify" in sections
    for page in [p for p in PAGES if "adr" not in p.parts and p.name != "CHANGELOG.md"]:
        for section, field in FIELD.findall(page.read_text(encoding="utf-8")):
            if section in sections and field not in FILE_ENDINGS:
                assert field in sections[section], f"{_name(page)}: {section}.{field}"
