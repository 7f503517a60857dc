"""docs/reliability.md names files and tests: each must exist, or the page promises what nobody checks."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/reliability.md"
ROWS = 30
COLUMNS = ("No.", "Fault", "What happens", "Safeguard", "Test", "Negative control", "Figure", "Coverage")
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
_TEST = re.compile(r"`([\w.]+\.py)::(\w+)`")


def _rows() -> list[list[str]]:
    """Cells of the table's numbered rows."""
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("|")]
    assert tuple(cell.strip() for cell in lines[0].strip("|").split("|")) == COLUMNS
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@cache
def _functions(path: Path) -> set[str]:
    """Names of the functions at the top level of a Python file."""
    return {node.name for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}


def _problems(text: str) -> list[str]:
    """The problems of the links in `text`, in words; a test without a link is a problem as well."""
    found = []
    for label, target in _LINK.findall(text):
        path = (PAGE.parent / target).resolve()
        test = _TEST.fullmatch(label)
        if not path.is_relative_to(ROOT) or not path.is_file():
            found.append(f"{target}: no such file")
        elif test is not None and (path.name != test[1] or test[2] not in _functions(path)):
            found.append(f"{target}: has no {test[1]}::{test[2]}")
    bare = _TEST.findall(_LINK.sub("", text))
    return found + [f"{file}::{name}: is not a link" for file, name in bare]


def test_every_link_and_test_exists() -> None:
    """A test that was renamed, or a safeguard that moved, must be followed on the page."""
    assert _problems(PAGE.read_text("utf-8")) == []


def test_every_fault_has_a_row() -> None:
    """Thirty rows, numbered in order, no cell empty; each has a safeguard and a test, or says that it is not built."""
    rows = _rows()
    assert [row[0] for row in rows] == [str(number) for number in range(1, ROWS + 1)]
    for row in rows:
        assert len(row) == len(COLUMNS), row[0]
        assert all(row), row[0]
        named = _LINK.search(row[3]) is not None and _TEST.search(row[4]) is not None
        assert named or row[-1].startswith("**Not built"), row[0]


def test_a_wrong_link_is_found() -> None:
    """The check itself: a file that is not there, a test of another name, a file under another's name, a test without a link."""
    here = "../tests/contract/test_reliability_page.py"
    assert _problems(f"[`test_reliability_page.py::test_a_wrong_link_is_found`]({here})") == []
    assert _problems("[gda/nothing.py](../gda/nothing.py)") == ["../gda/nothing.py: no such file"]
    assert _problems(f"[`test_reliability_page.py::test_gone`]({here})") == [f"{here}: has no test_reliability_page.py::test_gone"]
    assert _problems(f"[`other.py::test_a_wrong_link_is_found`]({here})") == [f"{here}: has no other.py::test_a_wrong_link_is_found"]
    assert _problems("`a.py::test_x`") == ["a.py::test_x: is not a link"]
