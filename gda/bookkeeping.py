"""What every command does around its stage's `run`: one compute thread, quiet libraries, the recorded time and the MLflow run."""

import argparse
import os
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from gda import tracking
from gda.artifacts.outcome import Outcome
from gda.config.load import Config, dump_config
from gda.flow import PROMOTION
from gda.io.atomic import shown_name, work_root
from gda.runtime.interruption import end_on_signals
from gda.tracking.job import StepTimes
from gda.tracking.started import snapshot_digest
from gda.tracking.timings import write_timing


def prepare_process() -> None:
    """Set one compute thread per process and quiet libraries, and treat SIGTERM as an interruption."""
    from gda.generator.weights.hub import offline_by_default
    from gda.runtime.parallel import single_threaded

    single_threaded()
    offline_by_default()
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("GDA_DEBUG"):
        import warnings

        warnings.filterwarnings("ignore")
    end_on_signals()


_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
}


def at_work(args: argparse.Namespace, config: Config) -> AbstractContextManager[None]:
    """A context around a stage's `run`: records the outputs that killed processes published, then notes the output under way.

    Raises `MissingError` where the note cannot be written.
    """
    folder = work_root() / tracking.UNLOGGED
    tracking.settle(folder)
    if (output := _output(args)) is None:
        return nullcontext()
    datasets = {role: path for role in _DATASETS if (path := getattr(args, role, None))}
    return tracking.Started.of(args.command, output, params=_params(args, config), datasets=datasets).written(folder)


def note(args: argparse.Namespace, config: Config, outcome: Outcome, seconds: float, times: StepTimes | None = None) -> str | None:
    """Record the time and the run of a command that did work, and log recorded runs; returns a sentence on those that could not be logged.

    Only stages with heavy imports import MLflow; runs of the others are logged with the next one.
    """
    if not outcome.reused and outcome.digest:
        write_timing(args.command, outcome.output, seconds)
        roles = {role: Path(path) for role in _DATASETS if (path := getattr(args, role, None))}
        if args.command == "snapshot":
            roles["snapshot"] = outcome.output
        datasets = {role: (str(path), digest) for role, path in roles.items() if (digest := snapshot_digest(path))}
        name = f"{args.command} {shown_name(outcome.output)}"
        began = time.time() - seconds
        run = tracking.record(args.command, name, outcome, params=_params(args, config), datasets=datasets, began=began, times=times)
        tracking.keep(run, work_root() / tracking.UNLOGGED)
        if args.command == "classify":
            return None
    return log_kept()


def log_kept() -> str | None:
    """Log the runs that earlier commands recorded, killed ones included; returns a sentence on those that could not be logged."""
    folder = work_root() / tracking.UNLOGGED
    tracking.settle(folder)
    return tracking.flush(folder)


_DATASETS = ("snapshot", "synthetic")


def _params(args: argparse.Namespace, config: Config) -> dict[str, Any]:
    section = dump_config(config).get(args.command, {})
    return section | {"seed": getattr(args, "seed", config.seed)}


def _output(args: argparse.Namespace) -> Path | None:
    """Where the command's output will be; None for a dry run or a plan, which writes none."""
    if args.command == "promote":
        return Path(args.out or PROMOTION) if not args.dry_run else None
    out = getattr(args, "out", None)
    return Path(out) if out is not None and not getattr(args, "plan_only", False) else None
