"""The record of a pipeline run: its first step writes it, and its last step reports the outcome from it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from gda.artifacts.document import Document, read_document
from gda.config.load import Config, dump_config, parse_config
from gda.errors import DataError, GdaError, UsageError
from gda.flow import WATCHED
from gda.io.atomic import write_bytes
from gda.stages.inputs import contents_of
from gda.steps.form import filled_in
from gda.steps.graph import Outside

RUN_FILE = "run.json"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}"
_ACCEPTED = "accepted: letters, digits, dots, dashes and underscores"
_MOST_LISTED = 20


class PipelineRunRecord(Document):
    """`run.json`: the resolved configuration and the code of a run, or why it could not be configured.

    `run` is its unique name, `run_id` the id that the server lists it by, `title` what people call it, which other runs may share;
    `outside` is the content, when the run began, of what the configuration names outside the job.
    """

    run: str
    code: str
    config: dict[str, Any] | None
    error: str | None = None
    run_id: str = ""
    title: str = ""
    outside: dict[str, dict[str, Any]] = Field(default_factory=dict)


def configure_run(
    form: Mapping[str, Any], settings: str, *, data_root: Path, run: str, code: str, run_id: str = "", title: str = ""
) -> tuple[Config, Outside]:
    """Resolve and write down the configuration of a run, and the content of what it names outside the job.

    Raises `ConfigError`, or `DataError` for a missing path, after recording the error.
    """
    path = _file(data_root, run)
    named = {"run": run, "code": code, "run_id": run_id, "title": title}
    try:
        config = filled_in(form, settings)
        outside = contents_of(config, WATCHED, hub_ids=False)
    except GdaError as error:
        _write(path, PipelineRunRecord(**named, config=None, error=str(error)))
        raise
    _write(path, PipelineRunRecord(**named, config=dump_config(config), outside=outside))
    return config, outside


def read_run(data_root: Path, run: str) -> PipelineRunRecord:
    """What `configure` wrote for `run`. Raises `DataError` where the run did not get so far."""
    return read_document(_file(data_root, run), PipelineRunRecord)


def find_run(data_root: Path, named: str) -> PipelineRunRecord:
    """The run that a person means: by its unique name, by the server's id, or by a title that one run alone has.

    Raises `DataError` that lists the runs if none has that name or several have that title, and `UsageError` for a text that is no
    run's title and cannot be a name.
    """
    if re.fullmatch(_NAME, named) and _file(data_root, named).is_file():
        return read_run(data_root, named)
    records = [read_document(path, PipelineRunRecord) for path in sorted((data_root / "runs").glob(f"*/{RUN_FILE}"))]
    found = [record for record in records if named and named == record.run_id] or [
        record for record in records if named and named == record.title
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"run {named!r}: {len(found)} runs have this title; accepted: one of {', '.join(r.run for r in found)}")
    if not re.fullmatch(_NAME, named):
        raise UsageError(f"run {named!r}: no run has this title; {_ACCEPTED}")
    there = ", ".join(record.run for record in records[-_MOST_LISTED:]) or "none yet"
    raise DataError(f"run {named!r}: not found below {data_root}; accepted: a run's name, id or title, names: {there}")


def config_of_run(record: PipelineRunRecord) -> Config | None:
    """The configuration of a run that was configured, else None."""
    return None if record.config is None else parse_config(record.config, where=record.run)


def _file(data_root: Path, run: str) -> Path:
    if not re.fullmatch(_NAME, run):
        raise UsageError(f"run {run!r}: {_ACCEPTED}")
    return data_root / "runs" / run / RUN_FILE


def _write(path: Path, record: PipelineRunRecord) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (record.model_dump_json(indent=2) + "\n").encode())
