"""The ledger of test splits: every opening is one appended line, which identifies the split by its content, not by its path.

Its place and its limits: docs/adr/0020-one-door-to-the-test-split.md.
"""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gda.artifacts.fingerprint import canonical_json
from gda.errors import DataError, MissingError
from gda.io.atomic import sync, work_root
from gda.runtime.disks import storage_errors
from gda.runtime.reading import as_object, parse_json, read_text

if TYPE_CHECKING:
    from gda.data.store.snapshot import Snapshot

LEDGER_FILE = "test_ledger.jsonl"
LOOK = "judge"
_FIELDS = ("digest", "purpose", "work", "pictures")


def ledger_path() -> Path:
    """`GDA_LEDGER`, or gda/test_ledger.jsonl in the user's state folder (`XDG_STATE_HOME`, else ~/.local/state); never the work folder.

    Raises `MissingError` for a user without a home.
    """
    try:
        named = os.environ.get("GDA_LEDGER") or Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state", "gda", LEDGER_FILE)
        return Path(named).expanduser()
    except RuntimeError:
        raise MissingError(f"{LEDGER_FILE}: there is no home folder for it; set GDA_LEDGER to a file that outlives this process") from None


def record_test_split(snapshot: "Snapshot", purpose: str, *, work: str | None = None) -> None:
    """Append the opening of a snapshot's test split, with its digest and that of its pictures. Raises as `record_test_opening`."""
    pixels = sorted(snapshot.manifest("test")["pixel_sha256"].tolist())
    pictures = hashlib.sha256("\n".join(pixels).encode()).hexdigest()
    record_test_opening(snapshot.split_digest("test"), purpose, work=work, pictures=pictures)


def record_test_opening(digest: str, purpose: str, *, work: str | None = None, pictures: str | None = None) -> None:
    """Append a line to the ledger in one write, flushed to disk before any test image is read. Raises `MissingError`.

    `digest` is that of the test split alone, `pictures` that of its pixels regardless of names and labels. `work` is the digest of the
    fingerprint that the images are opened for; it stays the same when a killed process resumes and opens them again.
    """
    path = ledger_path()
    fields = {"digest": digest, "purpose": purpose, "work": work, "pictures": pictures}
    line = canonical_json({name: value for name, value in fields.items() if value}) + b"\n"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            if os.write(descriptor, line) != len(line):
                raise MissingError(f"{path}: a line was cut short, for the disk is full; make room and take the cut line out")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync(path.parent)


def read_ledger() -> list[dict[str, str]]:
    """Every recorded opening, oldest first; empty when there was none. Raises `DataError` for a damaged line.

    Earlier versions kept a ledger in each work folder, by the digest of the whole snapshot; that of the current work folder is read first.
    """
    return [line for path in dict.fromkeys((work_root() / LEDGER_FILE, ledger_path())) for line in _read(path)]


def count_test_openings(digest: str, purpose: str, *, work: str | None = None, former: str | None = None) -> int:
    """Number of different `work` digests that opened this test split for this purpose; a resumed one counts once. Raises as `read_ledger`.

    Splits of the same pictures count as one. `work` counts even if this ledger lacks it: its predictions may come from elsewhere.
    `former` is the digest of the snapshot, which earlier versions recorded.
    """
    return len(set(_works(digest, purpose, former)) | ({work} if work else set()))


def record_look(snapshot: "Snapshot", work: str) -> int:
    """Number of the look at a snapshot's test split that `work` is, from 1 in the order of first lines; a new one is appended first.

    A look is a comparison on these images: classifiers, the declared arm and its rivals. Repeating the comparison is the same look; the
    same classifiers with another declared arm are a new look. Raises as `record_test_opening` and `read_ledger`.
    """
    digest = snapshot.split_digest("test")
    if work not in _works(digest, LOOK):
        record_test_split(snapshot, LOOK, work=work)
    return _works(digest, LOOK).index(work) + 1


def _works(digest: str, purpose: str, former: str | None = None) -> list[str | int]:
    """Different `work` digests on this test split in the order of their first lines; a line without one counts by itself."""
    lines = read_ledger()
    pictures = {line["pictures"] for line in lines if line["digest"] == digest and "pictures" in line}
    own = [line for line in lines if line["digest"] in (digest, former) or line.get("pictures") in pictures]
    return list(dict.fromkeys(line.get("work") or number for number, line in enumerate(own) if line["purpose"] == purpose))


def _read(path: Path) -> list[dict[str, str]]:
    lines = read_text(path).splitlines() if path.exists() else []
    return [_parse(line, f"{path} line {number}") for number, line in enumerate(lines, start=1)]


def _parse(line: str, where: str) -> dict[str, str]:
    found = as_object(parse_json(line, where), where)
    if not all(isinstance(found.get(name, ""), str) for name in _FIELDS) or not {"digest", "purpose"} <= found.keys():
        raise DataError(f"{where}: is no opening of a test split; accepted: an object with the texts digest and purpose")
    return found
