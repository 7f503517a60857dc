"""Outputs of skipped steps, which hold only the reason: a flow with fixed steps also runs where one of them is not needed."""

from pathlib import Path

from gda.artifacts.fingerprint import Fingerprint, digest_of
from gda.artifacts.outcome import Outcome
from gda.errors import DataError
from gda.io.atomic import write_json
from gda.io.publish import publish
from gda.io.up_to_date import prepare
from gda.runtime.reading import read_object

SKIPPED_FILE = "skipped.json"


def publish_skipped(stage: str, out: Path, why: str) -> Outcome:
    """Publish `out` with nothing but `skipped.json` in it; `why` begins with "because". Raises as `prepare` does."""
    workspace = prepare(Fingerprint(stage=stage, config={"skipped": why}, inputs={}, environment={}), out)
    if not workspace.finished:
        write_json(workspace.fresh_staging() / SKIPPED_FILE, {"skipped": why})
        publish(workspace)
    return Outcome(output=out, digest=digest_of({"skipped": why}), summary=f"{out}: skipped, {why}", reused=workspace.finished)


def skipped_because(folder: Path) -> str | None:
    """Why the output at `folder` was skipped; None where it was not. Raises `DataError` for a damaged file."""
    path = folder / SKIPPED_FILE
    if not path.is_file():
        return None
    why = read_object(path).get("skipped")
    if not isinstance(why, str):
        raise DataError(f"{path}: damaged; remove {folder} and make it again")
    return why
