"""A published folder lists its files, and all code that reads it, or reports it as up to date, compares them."""

import json
import os
from pathlib import Path

import pytest

from gda.artifacts.contents import damaged_files, file_digest, require_whole
from gda.artifacts.decision import Decision
from gda.artifacts.document import dump_document, read_document
from gda.artifacts.fingerprint import Fingerprint
from gda.errors import DataError
from gda.io.atomic import write_bytes
from gda.io.publish import publish
from gda.io.up_to_date import prepare

RECIPE = Fingerprint(stage="test", config={"a": 1}, inputs={"x": "0" * 64})


def published(folder: Path) -> Path:
    """An output of a card, weights in a separate folder, and features that may be removed."""
    workspace = prepare(RECIPE, folder / "out")
    for name in ("card.json", "part/model.safetensors", "features/a.safetensors"):
        (workspace.staging / name).parent.mkdir(exist_ok=True)
        write_bytes(workspace.staging / name, b"0123456789" * 10)
    return publish(workspace)


def flip(path: Path) -> None:
    """Another byte in the middle; size and time of change stay."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(bytes(data))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def edit_fingerprint(path: Path) -> None:
    """An input of another digest in `fingerprint.json`."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"config": {"a": 1}, "environment": {"torch": "9"}}))


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_sound_output_is_up_to_date(tmp_path):
    """The healthy twin: an untouched output is finished; hidden files, notes and removed features are no damage."""
    out = published(tmp_path)
    (out / ".DS_Store").write_bytes(b"x")
    (out / "notes.txt").write_bytes(b"x")
    for path in (out / "features").iterdir():
        path.unlink()
    (out / "features").rmdir()
    assert prepare(RECIPE, out).finished
    assert damaged_files(out) == []


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("card.json", flip),
        ("part/model.safetensors", flip),
        ("part/model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1])),
        ("part/model.safetensors", Path.unlink),
        ("part/model.fp16.safetensors", lambda path: path.write_bytes(b"another")),
    ],
    ids=["card flipped", "weights flipped", "weights cut", "weights gone", "weights added"],
)
def test_a_damaged_output_is_not_up_to_date(tmp_path, name, damage):
    """Flipped, cut, removed and added files are found and named, with a remedy."""
    out = published(tmp_path)
    damage(out / name)
    with pytest.raises(DataError, match=f"{name}.*remove .*out and run the same command"):
        prepare(RECIPE, out)


def test_an_edited_fingerprint_is_found(tmp_path):
    """What an output was made from cannot be rewritten unseen."""
    out = published(tmp_path)
    edit_fingerprint(out / "fingerprint.json")
    with pytest.raises(DataError, match=r"fingerprint\.json: damaged or edited"):
        require_whole(out)


def test_a_change_after_a_look_is_seen(tmp_path):
    """The digest that this process remembers of a file never outlives a change of the file that keeps size and time."""
    out = published(tmp_path)
    path = out / "card.json"
    os.utime(path, (1, 1))
    before = file_digest(path)
    assert file_digest(path) == before
    flip(path)
    assert file_digest(path) != before


def test_documents_are_compared_when_they_are_read(tmp_path):
    """An edited document is refused by the reader that every stage uses."""
    decision = Decision(promoted=False, reasons=("no",), candidate=None, rival="real", model_name="m")
    workspace = prepare(RECIPE, tmp_path / "out")
    write_bytes(workspace.staging / "decision.json", dump_document(decision))
    path = publish(workspace) / "decision.json"
    assert read_document(path, Decision) == decision
    path.write_bytes(dump_document(decision.model_copy(update={"promoted": True})))
    with pytest.raises(DataError, match=r"decision\.json: damaged or exchanged"):
        read_document(path, Decision)
