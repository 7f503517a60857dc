"""A run of the pipeline as its first step wrote it down, so that its last one can say what became of it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gda.artifacts import Document, read_document
from gda.config import Config, dump_config, parse_config
from gda.errors import GdaError, UsageError
from gda.io.publish import write_bytes
from gda.steps.form import filled_in

RUN_FILE = "run.json"


class RunRecord(Document):
    """`run.json`: the resolved configuration and the code of a run, or why it could not be configured."""

    run: str
    code: str
    config: dict[str, Any] | None
    error: str | None = None


def configure(form: Mapping[str, Any], settings: str, *, data_root: Path, run: str, code: str) -> Config:
    """Resolve and write down the configuration of a run. Raises `ConfigError` after writing down what is wrong with it."""
    path = _file(data_root, run)
    try:
        config = filled_in(form, settings)
    except GdaError as error:
        _write(path, RunRecord(run=run, code=code, config=None, error=str(error)))
        raise
    _write(path, RunRecord(run=run, code=code, config=dump_config(config)))
    return config


def read_run(data_root: Path, run: str) -> RunRecord:
    """What `configure` wrote for `run`. Raises `DataError` where the run did not get so far."""
    return read_document(_file(data_root, run), RunRecord)


def config_of_run(record: RunRecord) -> Config | None:
    """The configuration of a run that was configured, else None."""
    return None if record.config is None else parse_config(record.config, where=record.run)


def _file(data_root: Path, run: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}", run):
        raise UsageError(f"run {run!r}: accepted: letters, digits, dots, dashes and underscores")
    return data_root / "runs" / run / RUN_FILE


def _write(path: Path, record: RunRecord) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (record.model_dump_json(indent=2) + "\n").encode())
