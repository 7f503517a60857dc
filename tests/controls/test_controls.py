"""Safeguards that can be taken out: the list keeps to code, tests and page, and one is tried. `make controls` tries all."""

import ast
from pathlib import Path

import pytest
from control import ROOT, Control
from control_runner import copied, try_control
from safeguards import CONTROLS

PAGE = ROOT / "docs/reliability.md"
_NAMES = [f"{control.row}-{control.what}" for control in CONTROLS]


def _cell(row: int) -> str:
    """The negative controls that the page names for a row."""
    line = next(line for line in PAGE.read_text("utf-8").splitlines() if line.startswith(f"| {row} |"))
    return line.split(" | ")[5]


@pytest.mark.parametrize("control", CONTROLS, ids=_NAMES)
def test_every_control_keeps_to_the_project(control: Control) -> None:
    """A line that was written otherwise, or a test that was renamed, must be followed in the list and on the page."""
    before = (ROOT / control.file).read_text("utf-8")
    assert ast.dump(ast.parse(control.edited(before))) != ast.dump(ast.parse(before))
    for test in control.tests:
        file, name = test.split("::")
        functions = [node.name for node in ast.parse((ROOT / file).read_text("utf-8")).body if isinstance(node, ast.FunctionDef)]
        assert name in functions, test
    cell = _cell(control.row)
    assert control.what in cell
    assert all(f"`{test.rsplit('::', 1)[1]}`" in cell for test in control.tests), cell


def test_controls_have_names_of_their_own() -> None:
    """Two of one name would be one on the page."""
    assert len(set(_NAMES)) == len(CONTROLS)


def test_a_safeguard_taken_out_is_noticed(tmp_path: Path) -> None:
    """The runner itself: the named test fails without the safeguard; an edit that changes nothing that matters is reported as unnoticed."""
    control = next(control for control in CONTROLS if control.tests == ("tests/unit/io/test_publish.py::test_commit_new_never_replaces",))
    project = copied(tmp_path)
    before = (project / control.file).read_text("utf-8")
    assert try_control(control, project).problem == ""
    assert (project / control.file).read_text("utf-8") == before
    harmless = Control(row=3, what="nothing", file=control.file, edits=(("import errno\n", "import errno\n\n"),), tests=control.tests)
    assert try_control(harmless, project).problem == "all tests pass"
    broken = Control(row=3, what="all", file=control.file, edits=(("import errno\n", "import ernno\n"),), tests=control.tests)
    assert "pytest ended with" in try_control(broken, project).problem
