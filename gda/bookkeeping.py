"""What every command does around its stage's `run`, whoever calls it: one compute thread, quiet libraries, its time and its MLflow run."""

import argparse
import json
import os
import signal
import threading
from pathlib import Path
from types import FrameType

from gda import tracking
from gda.artifacts import Outcome
from gda.config import Config, dump_config
from gda.io.publish import work_root
from gda.timings import write_timing


def prepare_process() -> None:
    """One compute thread a process, quiet libraries, and SIGTERM as an interruption."""
    from gda.generator.hub import offline_unless_asked
    from gda.parallel import single_threaded

    single_threaded()
    offline_unless_asked()
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("GDA_DEBUG"):
        import warnings

        warnings.filterwarnings("ignore")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


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


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def note(args: argparse.Namespace, config: Config, outcome: Outcome, seconds: float) -> str | None:
    """Keep the time and the run's record of a command that did work; returns what could not be logged, in a sentence.

    MLflow is only imported by stages that are heavy anyway, the others are logged along with the next one.
    """
    write_timing(args.command, outcome.output, seconds)
    section = dump_config(config).get(args.command, {})
    datasets = {
        role: (str(path), digest)
        for role in ("snapshot", "synthetic")
        if (path := getattr(args, role, None)) and (digest := _digest_of(path))
    }
    if args.command == "snapshot":
        datasets["snapshot"] = (str(outcome.output), outcome.digest)
    run = tracking.record(
        args.command,
        f"{args.command} {outcome.output.name}",
        outcome,
        params=section | {"seed": getattr(args, "seed", config.seed)},
        datasets=datasets,
    )
    folder = work_root() / tracking.UNLOGGED
    tracking.keep(run, folder)
    return tracking.flush(folder) if args.command != "classify" else None


def _digest_of(path: Path) -> str:
    try:
        return str(json.loads((path / "snapshot.json").read_text("utf-8"))["digest"])
    except (OSError, ValueError, KeyError):
        return ""
