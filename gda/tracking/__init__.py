"""MLflow runs: one per stage, with datasets named by digest; a generator also becomes a version of a registered model.

`MLFLOW_TRACKING_URI`, its credentials and `MLFLOW_EXPERIMENT_NAME` in the environment are honoured; SQLite is only the default.
MLflow is imported only when something is logged. `docs/tracking.md` lists what is recorded where, and every error with its remedy.
"""

from gda.tracking.complaints import complaint_of, explained, mlflow_errors
from gda.tracking.replay import flush
from gda.tracking.runs import UNLOGGED, RunRecord, keep, record
from gda.tracking.secrets import masked
from gda.tracking.server import (
    DEFAULT_TRACKING_URI,
    connect,
    default_server,
    ensure_experiment,
    experiment_name,
    shown_uri,
    tracking_uri,
)
from gda.tracking.started import Started, settle

__all__ = [
    "DEFAULT_TRACKING_URI",
    "UNLOGGED",
    "RunRecord",
    "Started",
    "complaint_of",
    "connect",
    "default_server",
    "ensure_experiment",
    "experiment_name",
    "explained",
    "flush",
    "keep",
    "masked",
    "mlflow_errors",
    "record",
    "settle",
    "shown_uri",
    "tracking_uri",
]
