"""The command line: `gda <stage>`. Parses, calls the stage's `run`, prints one closing line, logs to MLflow, maps errors to exit codes."""

import argparse
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NoReturn

from gda.artifacts.outcome import Outcome
from gda.bookkeeping import at_work, log_kept, note, prepare_process
from gda.cli.next_step import next_step
from gda.cli.stage_commands import build_parser
from gda.config.load import Config, load_config
from gda.config.renamed import renamed_flag
from gda.errors import ConfigError, GdaError, TryAgainError
from gda.io.atomic import work_root, write_bytes
from gda.runtime.disks import storage_problem
from gda.runtime.failed_processes import FAILURE_VARIABLE
from gda.runtime.interruption import ignore_signals, stop_requested
from gda.runtime.logs import logs_are_json, set_up_logs
from gda.runtime.parallel import is_first_process
from gda.runtime.progress import reporting
from gda.tracking import masked
from gda.tracking.job import StepTimes, step_times

PARAMS_FILE = Path("params.yaml")
_log = logging.getLogger(__name__)
_INTERRUPTED = "interrupted; the same command continues where it stopped"


def program(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `main` as the whole process and exit with its code, also when a signal arrives in its last instants."""
    try:
        code = main(argv)
        ignore_signals()
    except KeyboardInterrupt:
        code = _interrupted()
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (see gda/errors.py)."""
    try:
        prepare_process()
        parser = build_parser()
        if (renamed := renamed_flag(sys.argv[1:] if argv is None else argv)) is not None:
            parser.error(renamed)
        args = parser.parse_args(argv)
        set_up_logs(getattr(args, "log_format", None))
    except KeyboardInterrupt:
        return _interrupted()
    if args.command is None:
        parser.print_help()
        return 2
    try:
        return _run(args)
    except KeyboardInterrupt:
        return _fail(TryAgainError(_INTERRUPTED), args)
    except GdaError as error:
        return _fail(TryAgainError(_INTERRUPTED) if stop_requested() else error, args)
    except BrokenPipeError:
        return 0
    except Exception as error:
        if stop_requested():
            return _fail(TryAgainError(_INTERRUPTED), args)
        if (problem := storage_problem(error)) is not None:
            return _fail(problem, args)
        what = masked(f"{type(error).__name__}: {error}")
        print(f"gda {args.command}: internal error: {what}{_traceback_kept(args.command)}", file=sys.stderr)
        return 1


def _run(args: argparse.Namespace) -> int:
    args.progress = not getattr(args, "quiet", False)
    if hasattr(args, "tool"):
        code = int(args.tool(args))
        _say(args, log_kept())
        return code
    params = args.params if args.params is not None else (PARAMS_FILE if PARAMS_FILE.exists() else None)
    if args.params is not None and not args.params.exists():
        raise ConfigError(f"--params {args.params}: no such file")
    config = load_config(params, tuple(args.set))
    with reporting(args.command, shown=args.progress and is_first_process()), step_times() as times:
        _run_stages(args, config, times)
    return 0


def _run_stages(args: argparse.Namespace, config: Config, times: StepTimes) -> None:
    for one in args.each(config, args) if hasattr(args, "each") else (args,):
        with at_work(one, config) if is_first_process() else nullcontext():  # others under torchrun publish nothing
            started = time.perf_counter()
            outcome = one.runner(config, one)
            seconds = time.perf_counter() - started
            _close(one, config, outcome, seconds, times)
    # For people: a program that reads the output expects the closing line last.
    if sys.stdout.isatty() and not (args.quiet or args.json) and (step := next_step(args, outcome)) is not None:
        print(f"next: {step}", flush=True)


def _close(args: argparse.Namespace, config: Config, outcome: Outcome, seconds: float, times: StepTimes) -> None:
    if not is_first_process():  # under torchrun
        return
    _say(args, note(args, config, outcome, seconds, times))
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


def _say(args: argparse.Namespace, problem: str | None) -> None:
    if problem is not None:
        print(f"{args.command}: {masked(problem)}", file=sys.stderr)


def _interrupted() -> int:
    print(f"gda: {_INTERRUPTED}", file=sys.stderr)
    return TryAgainError.exit_code


def _fail(error: GdaError, args: argparse.Namespace) -> int:
    if os.environ.get("GDA_DEBUG"):
        print(masked(traceback.format_exc()), file=sys.stderr)
    message = f"gda {args.command}: {masked(str(error))}"
    if failure := os.environ.get(FAILURE_VARIABLE):
        with suppress(OSError, GdaError):
            write_bytes(Path(failure), json.dumps({"command": args.command, "exit_code": error.exit_code}).encode())
    if logs_are_json():
        _log.error(message, extra={"stage": args.command, "exit_code": error.exit_code})
    else:
        print(message, file=sys.stderr)
    return error.exit_code


def _traceback_kept(command: str) -> str:
    """Write the traceback of a defect of gda to a file and name it; print it if no file can be written, or with `GDA_DEBUG`."""
    text = masked(traceback.format_exc())
    path = work_root() / "defects" / f"{time.strftime('%Y%m%d-%H%M%S')}-{command}-{os.getpid()}.txt"
    if not os.environ.get("GDA_DEBUG"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, text.encode())
        except (OSError, GdaError):
            pass
        else:
            return f" (a defect of gda; its traceback is in {path})"
    print(text, file=sys.stderr)
    return " (a defect of gda; its traceback is above)"


if __name__ == "__main__":
    program()
