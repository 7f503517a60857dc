"""Modules and folders of the package stay small enough to be found and read."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES, MOST_MODULES = 400, 15
MODULES = sorted(path for room in ("gda", "components", "pipelines", "manifests") for path in (ROOT / room).rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES if path.is_relative_to(ROOT / "gda")})


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_every_room_is_looked_at() -> None:
    """Guards the two tests below against looking at nothing."""
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
