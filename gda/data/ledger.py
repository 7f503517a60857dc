"""The ledger of the test split: every opening is one appended line, so that a reviewer can count them."""

import json
import os
from pathlib import Path

from gda.io.publish import storage_errors, work_root
from gda.reading import as_object, parse_json, read_text

LEDGER_FILE = "test_ledger.jsonl"


def record_test_opening(digest: str, purpose: str, *, work: str | None = None) -> None:
    """Append a line to the ledger in one write, flushed to disk before any test image is read. Raises `MissingError`.

    `work` is the digest of the recipe that the images are opened for: a killed process that goes on opens them again for the same.
    """
    path = work_root() / LEDGER_FILE
    entry = {"digest": digest, "purpose": purpose} | ({"work": work} if work else {})
    line = json.dumps(entry, sort_keys=True) + "\n"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_ledger() -> list[dict[str, str]]:
    """Every recorded opening, oldest first; empty when there was none. Raises `DataError` for a damaged line."""
    path: Path = work_root() / LEDGER_FILE
    lines = read_text(path).splitlines() if path.exists() else []
    return [as_object(parse_json(line, f"{path} line {number}"), f"{path} line {number}") for number, line in enumerate(lines, start=1)]


def count_test_openings(digest: str, purpose: str) -> int:
    """How many pieces of work opened this test split for this purpose; one that was killed and went on is one. Raises as `read_ledger`."""
    lines = [line for line in read_ledger() if (line["digest"], line["purpose"]) == (digest, purpose)]
    return len({line.get("work") or number for number, line in enumerate(lines)})
