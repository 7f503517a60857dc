"""The MLflow run that holds a registered classifier: it ends, even where the process that made it is killed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlflow

from gda import tracking
from gda.artifacts.fingerprint import digest_of
from gda.io.atomic import work_root, write_bytes
from gda.io.locks import locked
from gda.tracking.replay import IDENTITY, REGISTERING, end_runs, with_key

_WAIT = 300.0  # seconds for another process that registers the same classifier


@contextmanager
def registering(client: Any, what: dict[str, str], name: str) -> Iterator[None]:
    """An active MLflow run named `name` for the registration of `what`; earlier ones of it that never ended are ended.

    A note in the folder of kept runs is written first, by which the next command of any kind ends the run of a killed process.
    Raises `TryAgainError` where another process is registering the same.
    """
    key = digest_of({"register": what})
    path = work_root() / tracking.UNLOGGED / REGISTERING / f"{key[:32]}.json"
    with locked(path.with_suffix(".lock"), busy="another process is registering this classifier", wait=_WAIT):
        write_bytes(path, json.dumps({"key": key}).encode())
        experiment = tracking.ensure_experiment(client)
        end_runs(client, experiment, key)
        client.create_run(experiment, run_name=name, tags={IDENTITY: key})
        begun, *twins = (run for run in with_key(client, experiment, key) if run.info.status == "RUNNING")
        for twin in twins:  # made by a request whose reply was lost
            client.set_terminated(twin.info.run_id, "KILLED")
        explained = tracking.explained(lambda: client.list_artifacts(begun.info.run_id))
        with tracking.default_server(), mlflow.start_run(run_id=begun.info.run_id), explained:
            yield
        path.unlink(missing_ok=True)
