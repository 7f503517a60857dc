"""Modules and folders of the package stay small enough to be found and read."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES, MOST_MODULES = 400, 15
MODULES = sorted(path for room in ("gda", "components", "pipelines", "manifests") for path in (ROOT / room).rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES if path.is_relative_to(ROOT / "gda")})


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_room_is_looked_at() -> None:
    """Guards the two tests below against an empty list of files."""
    assert ROOT / "gda/stages/classify.py" in MODULES
    assert ROOT / "gda/generator/weights" in FOLDERS


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_module_is_short(path: Path) -> None:
    """Protects readers from a module that does several things."""
    assert len(path.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("folder", FOLDERS, ids=_name)
def test_a_folder_has_few_modules(folder: Path) -> None:
    """Protects readers from a list of files that has to be searched, and shows them what a folder is for."""
    modules = [path.name for path in folder.glob("*.py") if path.name not in ("__init__.py", "__main__.py")]
    assert len(modules) <= MOST_MODULES
    assert (folder / "__init__.py").read_text().startswith('"""') or folder == ROOT / "gda"


# Public names of two modules: each with the reason.
SHARED_NAMES = {
    "run": "every stage has its entry under this name",
    "main": "every command has its entry under this name",
    "build": "every module of pipelines that defines one has it under this name",
    "ROOT": "the folder of the checkout, in programs that are run from it",
}


def _public_names(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        for target in node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []:
            found |= {each.id for each in ast.walk(target) if isinstance(each, ast.Name)}
    return {name for name in found if not name.startswith("_")}


def test_one_public_name_has_one_meaning() -> None:
    """Protects readers from a name with several meanings: no two modules define the same one, except those listed."""
    modules: dict[str, list[str]] = {}
    for path in MODULES:
        for name in _public_names(path):
            modules.setdefault(name, []).append(_name(path))
    shared = {name: where for name, where in modules.items() if len(where) > 1}
    assert len(modules) > 1000
    assert not {name: where for name, where in shared.items() if name not in SHARED_NAMES}
    assert shared.keys() == SHARED_NAMES.keys(), "an exception that nothing needs"
