"""The ledger of the test split: every opening is one appended line, so that a reviewer can count them."""

import json
import os
from pathlib import Path

from gda.io.publish import storage_errors, work_root
from gda.reading import as_object, parse_json, read_text

LEDGER_FILE = "test_ledger.jsonl"


def record_test_opening(digest: str, purpose: str) -> None:
    """Append {"digest", "purpose"} to the ledger in one write, flushed to disk before any test image is read. Raises `MissingError`."""
    path = work_root() / LEDGER_FILE
    line = json.dumps({"digest": digest, "purpose": purpose}, sort_keys=True) + "\n"
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
