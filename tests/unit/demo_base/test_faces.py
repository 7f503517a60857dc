"""The handwriting faces: what the list declares, and that nothing else than what it declares gets in."""

import hashlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gda.demo_base.faces import HANDWRITING, Face, face_files, fetch_faces
from gda.errors import DataError, MissingError

DATA = b"a face"
FACE = Face(package="@maker/plain", version="1.0.0", file="plain.woff", licence="OFL-1.1", sha256=hashlib.sha256(DATA).hexdigest())

# Writes an archive for each package requested, as `npm pack --json` does, with the files laid next to it.
NPM = f"""#!{sys.executable}
import json, pathlib, sys, tarfile
here = pathlib.Path(__file__).parent
if (here / "error").exists():
    sys.exit((here / "error").read_text())
into = pathlib.Path(sys.argv[sys.argv.index("--pack-destination") + 1])
specs = []
for spec in sys.argv[sys.argv.index("--pack-destination") + 2:]:
    name = spec.strip("@").replace("/", "-").replace("@", "-") + ".tgz"
    with tarfile.open(into / name, "w:gz") as tar:
        for path in (here / "files").iterdir():
            tar.add(path, "package/files/" + path.name)
    specs.append({{"id": spec, "filename": name}})
print(json.dumps(specs))
"""

Npm = Callable[..., None]


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Npm:
    """Puts an npm first in the path whose every package holds `files`, or which fails with `error`."""

    def install(files: dict[str, bytes] | None = None, error: str | None = None) -> None:
        bin_folder = tmp_path / "bin"
        (bin_folder / "files").mkdir(parents=True)
        (bin_folder / "npm").write_text(NPM)
        (bin_folder / "npm").chmod(0o755)
        for name, data in (files or {}).items():
            (bin_folder / "files" / name).write_bytes(data)
        if error is not None:
            (bin_folder / "error").write_text(error)
        monkeypatch.setenv("PATH", str(bin_folder), prepend=os.pathsep)

    return install


def test_every_face_is_declared_exactly() -> None:
    """A rebuild must find the same bytes: exact versions and digests, each file once, and licences that allow rendering."""
    assert len(HANDWRITING) >= 60
    assert len({face.file for face in HANDWRITING}) == len(HANDWRITING)
    for face in HANDWRITING:
        assert re.fullmatch(r"\d+\.\d+\.\d+", face.version), face
        assert re.fullmatch(r"[0-9a-f]{64}", face.sha256), face
        assert face.licence in ("OFL-1.1", "Apache-2.0"), face
        assert face.style == "handwritten"


def test_faces_are_fetched_once(tmp_path: Path, npm: Npm, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there already is not fetched again, and needs no npm."""
    npm({FACE.file: DATA})
    assert fetch_faces(tmp_path / "faces", [FACE]) == 1
    assert (tmp_path / "faces" / FACE.file).read_bytes() == DATA
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fetch_faces(tmp_path / "faces", [FACE]) == 0


def test_another_file_under_the_name_is_refused(tmp_path: Path, npm: Npm) -> None:
    """A registry that serves other bytes changes no base: nothing is written."""
    npm({FACE.file: b"another face"})
    with pytest.raises(DataError, match=r"plain\.woff has sha256 .*, @maker/plain@1\.0\.0 is declared with "):
        fetch_faces(tmp_path / "faces", [FACE])
    assert not (tmp_path / "faces").exists()


def test_a_package_without_the_file_is_named(tmp_path: Path, npm: Npm) -> None:
    """A wrong name in the list is an error that says which."""
    npm({"other.woff": DATA})
    with pytest.raises(DataError, match=r"@maker/plain@1\.0\.0: holds no files/plain\.woff"):
        fetch_faces(tmp_path / "faces", [FACE])


def test_what_npm_prints_is_reported(tmp_path: Path, npm: Npm) -> None:
    """A registry out of reach is given in npm's words."""
    npm(error="npm error code E404")
    with pytest.raises(MissingError, match="npm pack: exit code 1: npm error code E404"):
        fetch_faces(tmp_path / "faces", [FACE])


def test_without_npm_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Node.js learns what is missing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="npm: not found"):
        fetch_faces(tmp_path / "faces", [FACE])


def test_faces_at_hand_are_checked(tmp_path: Path) -> None:
    """A missing or changed face stops a rebuild before it starts, and a missing one says how to fetch it."""
    with pytest.raises(MissingError, match=r"python -m gda\.demo_base\.pretrain faces --out"):
        face_files(tmp_path, [FACE])
    (tmp_path / FACE.file).write_bytes(DATA)
    assert face_files(tmp_path, [FACE]) == [tmp_path / FACE.file]
    (tmp_path / FACE.file).write_bytes(DATA + b"!")
    with pytest.raises(DataError, match="has sha256"):
        face_files(tmp_path, [FACE])
