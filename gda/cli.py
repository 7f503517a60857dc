"""The command line: `gda <stage>`. Parses, calls the stage's `run`, prints one closing line, logs to MLflow, maps errors to exit codes."""

import argparse
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from gda.artifacts import Outcome
from gda.commands import build_parser
from gda.config import Config, dump_config, load_config
from gda.errors import ConfigError, GdaError, TryAgainError
from gda.parallel import is_first_process
from gda.timings import write_timing

PARAMS_FILE = Path("params.yaml")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (see gda/errors.py)."""
    _prepare_process()
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 2
    try:
        return _run(args)
    except KeyboardInterrupt:
        return _fail(TryAgainError("interrupted; the same command continues where it stopped"), args)
    except GdaError as error:
        return _fail(error, args)
    except BrokenPipeError:
        return 0
    except Exception as error:
        if os.environ.get("GDA_DEBUG"):
            traceback.print_exc()
        print(f"gda {args.command}: internal error: {type(error).__name__}: {error} (GDA_DEBUG=1 shows where)", file=sys.stderr)
        return 1


def _run(args: argparse.Namespace) -> int:
    args.progress = not getattr(args, "quiet", False)
    if hasattr(args, "tool"):
        return int(args.tool(args))
    params = args.params if args.params is not None else (PARAMS_FILE if PARAMS_FILE.exists() else None)
    if args.params is not None and not args.params.exists():
        raise ConfigError(f"--params {args.params}: no such file")
    config = load_config(params, tuple(args.set))
    started = time.perf_counter()
    outcome = args.runner(config, args)
    seconds = time.perf_counter() - started
    _close(args, config, outcome, seconds)
    return 0


def _close(args: argparse.Namespace, config: Config, outcome: Outcome, seconds: float) -> None:
    if not is_first_process():  # under torchrun
        return
    if not outcome.reused and outcome.digest:
        write_timing(args.command, outcome.output, seconds)
        _track(args, config, outcome)
    if args.json:
        line = {"command": args.command, "output": str(outcome.output), "digest": outcome.digest, "summary": outcome.summary}
        print(
            json.dumps(
                line
                | {"metrics": dict(outcome.metrics), "reused": outcome.reused, "refused": outcome.refused, "seconds": round(seconds, 3)}
            )
        )
    elif not args.quiet:
        print(f"{args.command}: {outcome.summary} ({seconds:.1f} s)", flush=True)


def _track(args: argparse.Namespace, config: Config, outcome: Outcome) -> None:
    """Keep the run's record; MLflow is only imported by stages that are heavy anyway, the others are logged along with the next one."""
    from gda import tracking
    from gda.io.publish import work_root

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
    if args.command != "classify" and (problem := tracking.flush(folder)):
        print(f"{args.command}: {problem}", file=sys.stderr)


def _digest_of(path: Path) -> str:
    try:
        return str(json.loads((path / "snapshot.json").read_text("utf-8"))["digest"])
    except (OSError, ValueError, KeyError):
        return ""


def _fail(error: GdaError, args: argparse.Namespace) -> int:
    if os.environ.get("GDA_DEBUG"):
        traceback.print_exc()
    print(f"gda {args.command}: {error}", file=sys.stderr)
    return error.exit_code


def _prepare_process() -> None:
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


if __name__ == "__main__":
    sys.exit(main())
