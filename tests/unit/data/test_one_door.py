"""Access to the test split: only one reader decodes its images, and openings are counted by its content, whatever its path."""

import ast
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gda.artifacts.document import dump_document
from gda.data.export import export_snapshot
from gda.data.images.codecs import LANCZOS
from gda.data.store.in_memory import RecordReader, decode_split, load_images
from gda.data.store.replace import replace_records
from gda.data.store.snapshot import INDEX_FILE, Snapshot, digest_rows
from gda.data.store.verify import verify_snapshot
from gda.data.test_split.ledger import count_test_openings, ledger_path, read_ledger, record_test_opening
from gda.data.test_split.opening import open_test
from gda.errors import DataError, MissingError, UsageError
from gda.gate.checks.audit import audit_images
from gda.io.manifest import write_manifest
from gda.io.shards import iterate_shard, read_record, read_shard

SOURCES = Path(__file__).parents[3] / "gda"
SPLITS = ("train", "val", "test")
# All that reads a record of a snapshot: three of gda.io.shards, and what decodes a whole split.
READERS = ("read_shard", "iterate_shard", "read_record", "decode_split")
# Where test images may be read: behind the ledger, and to compare checksums.
MAY_READ_TEST = {
    "gda/data/export.py",
    "gda/data/store/in_memory.py",
    "gda/data/store/verify.py",
    "gda/data/test_split/opening.py",
    "gda/io/shards.py",
}
READING_MODULES = MAY_READ_TEST | {
    "gda/data/store/replace.py",
    "gda/gate/checks/audit.py",
    "gda/generator/sampling/reproduce.py",
    "gda/project/show.py",
    "gda/report/gallery.py",
    "gda/suitability.py",
}


@pytest.fixture
def source(image_folder: Any) -> Path:
    path: Path = image_folder({f"{split}/{name}": 4 for split in SPLITS for name in "ab"})
    return path


@pytest.fixture
def snapshot(source: Path, take: Any) -> Snapshot:
    return Snapshot.open(take(source).output)


def test_every_other_reader_refuses_the_test_split(snapshot: Snapshot, tmp_path: Path) -> None:
    """Guards the test split at run time: the error of every other reader names `open_test`, and no line is written to the ledger."""
    shard, key = snapshot.path / "test-000000.tar", snapshot.manifest("test")["key"].iloc[0]
    (tmp_path / "replaced").mkdir()
    readers: dict[str, Callable[[], object]] = {
        "load_images": lambda: load_images(snapshot, "test", size=8),  # type: ignore[arg-type]
        "RecordReader": lambda: RecordReader(snapshot, "test"),  # type: ignore[arg-type]
        "decode_split": lambda: decode_split(snapshot, "test", 8, None, LANCZOS),
        "read_shard": lambda: list(read_shard(shard)),
        "iterate_shard": lambda: list(iterate_shard(shard)),
        "read_record": lambda: read_record(shard, 0),
        "audit_images": lambda: audit_images(snapshot, size=8),
        "replace_records": lambda: replace_records(snapshot, {key}, [], tmp_path / "replaced", provenance={}),
    }
    for name, read in readers.items():
        with pytest.raises(UsageError, match="open_test"):
            pytest.fail(f"{name} gave {read()!r:.80}")
    assert read_ledger() == []


def test_training_images_are_read_as_before(snapshot: Snapshot) -> None:
    """Guards against a guard that shuts everything: the same readers give training and validation images."""
    for split in ("train", "val"):
        keys = load_images(snapshot, split, size=8).keys
        assert len(RecordReader(snapshot, split).load(keys, size=8)) == len(keys) == 8
        assert [record.key for record in read_shard(snapshot.path / f"{split}-000000.tar")] == list(keys)


def _calls() -> Iterator[tuple[str, str, bool]]:
    """Module, name and whether test images are requested, of every use of a reader of records in the package."""
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and (name := getattr(node.func, "attr", getattr(node.func, "id", ""))) in READERS:
                yield path.relative_to(SOURCES.parent).as_posix(), name, any(word.arg == "of_test" for word in node.keywords)


def test_no_new_reader_goes_by_unseen() -> None:
    """Guards the list above: a module that reads records is named here, and few may request test images."""
    calls = list(_calls())
    assert {module for module, _, _ in calls} == READING_MODULES
    assert {module for module, _, of_test in calls if of_test} == MAY_READ_TEST


def test_other_places_that_open_archives_are_known() -> None:
    """Guards against further readers: only one module each reads the tars of snapshots, of users' archives, and of fonts."""
    found = {
        path.relative_to(SOURCES.parent).as_posix()
        for path in SOURCES.rglob("*.py")
        if any(word in path.read_text() for word in ("read_members", "tarfile.open", "webdataset."))
    }
    assert found == {"gda/io/shards.py", "gda/data/sources/archives.py", "gda/demo_base/faces.py"}


def test_comparing_checksums_is_no_opening(snapshot: Snapshot) -> None:
    """Guards `gda verify`: it says of test images whether they are whole, and nothing else."""
    assert verify_snapshot(snapshot.path) == []
    assert read_ledger() == []


def test_openings_are_counted_by_the_test_split(source: Path, take: Any, picture: Any) -> None:
    """Guards against other shots of training images making a used test split a new one."""
    first = Snapshot.open(take(source, "first").output)
    second = Snapshot.open(take(source, "second", shots=2).output)
    assert first.digest != second.digest
    assert first.split_digest("test") == second.split_digest("test")
    for number, snapshot in enumerate((first, second)):
        open_test(snapshot, "evaluate", size=8, work=f"w{number}")
    assert count_test_openings(first.split_digest("test"), "evaluate") == 2


def test_other_names_do_not_make_it_another(snapshot: Snapshot, tmp_path: Path) -> None:
    """Guards against renaming: the same pictures under other keys and labels are the split that was looked at already."""
    other = tmp_path / "renamed"
    other.mkdir()
    rows = snapshot.manifest().assign(key=lambda found: "x" + found["key"])
    for shard in snapshot.index.shards:
        (other / shard.name).write_bytes((snapshot.path / shard.name).read_bytes())
    changes = {"manifest_sha256": write_manifest(other, rows, synthetic=False), "digest": digest_rows(rows, snapshot.classes)}
    (other / INDEX_FILE).write_bytes(dump_document(snapshot.index.model_copy(update=changes)))
    renamed = Snapshot.open(other)
    assert renamed.split_digest("test") != snapshot.split_digest("test")
    open_test(snapshot, "evaluate", size=8, work="w0")
    with pytest.raises(DataError, match="is not where the manifest places it"):  # its tars have the old keys, but it was opened
        open_test(renamed, "evaluate", size=8, work="w1")
    assert [count_test_openings(one.split_digest("test"), "evaluate") for one in (snapshot, renamed)] == [2, 2]


def test_openings_are_counted_across_work_folders(snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a new GDA_WORK_DIR starting at none: the ledger lies in the user's own place unless GDA_LEDGER names another."""
    monkeypatch.delenv("GDA_LEDGER")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for number in range(2):
        monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path / f"work{number}"))
        open_test(snapshot, "evaluate", size=8, work=f"w{number}")
        assert count_test_openings(snapshot.split_digest("test"), "evaluate") == number + 1
    assert ledger_path() == tmp_path / "state/gda/test_ledger.jsonl"
    assert not list(tmp_path.glob("work*/test_ledger.jsonl"))


def test_the_ledger_is_in_the_home_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the usual place of the ledger, and the message to a user without a home, which names the variable to set."""
    for name in ("GDA_LEDGER", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ledger_path() == tmp_path / ".local/state/gda/test_ledger.jsonl"
    monkeypatch.setenv("GDA_LEDGER", "~nobody-of-this-name/x")
    with pytest.raises(MissingError, match="set GDA_LEDGER"):
        ledger_path()


def test_a_ledger_that_cannot_be_written_keeps_the_door_shut(snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against uncounted looks: no line, no images."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GDA_LEDGER", str(tmp_path / "file/ledger.jsonl"))
    with pytest.raises(MissingError, match=r"ledger\.jsonl"):
        open_test(snapshot, "evaluate", size=8)


def test_lines_of_earlier_versions_count(snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards looks of before: lines by the snapshot's digest in the work folder are read, and count where that snapshot is named."""
    monkeypatch.setenv("GDA_WORK_DIR", str(tmp_path))
    old = [{"digest": snapshot.digest, "purpose": "evaluate"} | work for work in ({}, {"work": "w0"}, {"work": "w1"})]
    (tmp_path / "test_ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    open_test(snapshot, "evaluate", size=8, work="w1")
    of_test = snapshot.split_digest("test")
    assert [line["digest"] for line in read_ledger()] == [snapshot.digest] * 3 + [of_test]
    assert count_test_openings(of_test, "evaluate") == 1
    assert count_test_openings(of_test, "evaluate", former=snapshot.digest) == 3


def test_work_counts_that_the_ledger_has_not(snapshot: Snapshot) -> None:
    """Guards the count where kept predictions came along and the ledger did not."""
    open_test(snapshot, "evaluate", size=8, work="w0")
    assert [count_test_openings(snapshot.split_digest("test"), "evaluate", work=work) for work in (None, "w0", "w1")] == [1, 1, 2]


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"digest": 1, "purpose": "evaluate"}', '{"digest": "d", "purp'])
def test_damaged_lines_are_named(line: str) -> None:
    """Guards against openings dropped in silence: a line that records none is named, and nothing is counted."""
    record_test_opening("d", "evaluate")
    with ledger_path().open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match=r"\.jsonl line 2"):
        count_test_openings("d", "evaluate")


def _append(name: str) -> None:
    for number in range(200):
        record_test_opening("d" * 64, "evaluate", work=f"{name}-{number}", pictures="p" * 64)


def test_processes_append_at_once() -> None:
    """Guards lines against each other: those of processes that write at the same time are all there, whole."""
    names = ["one", "two", "three"]
    workers = [multiprocessing.get_context("fork").Process(target=_append, args=(name,)) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert {line["work"] for line in read_ledger()} == {f"{name}-{number}" for name in names for number in range(200)}
    assert count_test_openings("d" * 64, "evaluate") == 600


def test_an_export_is_counted_once(snapshot: Snapshot, tmp_path: Path) -> None:
    """Guards the purposes: handing out test images is noted as that, once for a piece of work, and is no evaluation."""
    export_snapshot(snapshot.path, "imagefolder", tmp_path / "exported")
    of_test = snapshot.split_digest("test")
    assert [count_test_openings(of_test, purpose) for purpose in ("export", "evaluate")] == [1, 0]
    assert read_ledger()[0].keys() == {"digest", "purpose", "work", "pictures"}


def test_pictures_are_identified_by_their_pixels_alone(snapshot: Snapshot, tmp_path: Path) -> None:
    """Guards what counts together: not the order of keys, but every pixel."""
    open_test(snapshot, "evaluate", size=8)
    pixels = pd.Series(snapshot.manifest("test")["pixel_sha256"])
    record_test_opening("other", "evaluate", pictures=read_ledger()[0]["pictures"])
    record_test_opening("third", "evaluate", pictures=pixels.iloc[0])
    assert [count_test_openings(one, "evaluate") for one in (snapshot.split_digest("test"), "other", "third")] == [2, 2, 1]


def test_steps_of_a_pipeline_share_the_ledger_on_their_volume(tmp_path: Path) -> None:
    """Guards the count in a cluster, where a pod's home is gone with it: the ledger is on the volume, unless the task names another."""
    place = f"from gda.steps.step import Place; Place.at({str(tmp_path)!r})"
    code = f"{place}; from gda.data.test_split.ledger import ledger_path; print(ledger_path())"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GDA_", "MLFLOW_"))}
    for given, expected in (({}, tmp_path / "test_ledger.jsonl"), ({"GDA_LEDGER": "/shared/l.jsonl"}, Path("/shared/l.jsonl"))):
        printed = subprocess.run([sys.executable, "-c", code], env=environment | given, capture_output=True, text=True, check=True).stdout
        assert Path(printed.strip()) == expected
