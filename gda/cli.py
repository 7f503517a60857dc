"""The command line: `gda <stage>`. Parses, calls the stage's `run`, prints one closing line, logs to MLflow, maps errors to exit codes."""

import argparse
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from gda.artifacts import Outcome
from gda.config import Arm, Config, dump_config, load_config
from gda.errors import ConfigError, GdaError, TryAgainError, UsageError

PARAMS_FILE = Path("params.yaml")
Runner = Callable[[Config, argparse.Namespace], Outcome]


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


def build_parser() -> argparse.ArgumentParser:
    """The whole command surface; imports no stage."""
    parser = argparse.ArgumentParser(prog="gda", description="Make image classifiers better with synthetic data, and prove it.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for add in (
        _add_snapshot,
        _add_reference,
        _add_finetune,
        _add_tune,
        _add_sample,
        _add_validate,
        _add_classify,
        _add_evaluate,
        _add_promote,
    ):
        add(commands)
    _add_tools(commands)
    return parser


def _stage(commands: Any, name: str, help_text: str, runner: Runner) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text)
    parser.add_argument("--params", type=Path, metavar="FILE", help="configuration (default: params.yaml where there is one)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="override one field; may be repeated")
    parser.add_argument("--quiet", action="store_true", help="no progress bars and no closing line")
    parser.add_argument("--json", action="store_true", help="the closing line as one JSON object on stdout")
    parser.set_defaults(runner=runner)
    return parser


def _add_snapshot(commands: Any) -> None:
    def runner(config: Config, args: argparse.Namespace) -> Outcome:
        from gda.stages import snapshot

        return snapshot.run(
            config,
            source=args.source,
            out=args.out,
            as_synthetic=args.as_kind == "synthetic",
            group_column=args.group_column,
            split_column=args.split_column,
            progress=args.progress,
        )

    parser = _stage(commands, "snapshot", "freeze a labelled image set: shards, manifest and leak-free splits", runner)
    parser.add_argument("source", help="image folder, tar pattern, Hugging Face imagefolder, .npz or demo://mnist")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--as", dest="as_kind", choices=("real", "synthetic"), default="real", help="what the images are")
    parser.add_argument("--group-column", help="images of one group stay in one split")
    parser.add_argument("--split-column", help="column that names the split of each image")


def _add_reference(commands: Any) -> None:
    def runner(config: Config, args: argparse.Namespace) -> Outcome:
        from gda.stages import reference

        return reference.run(config, snapshot=args.snapshot, out=args.out, progress=args.progress)

    parser = _stage(commands, "reference", "cross-fitted classifiers and statistics of the real set, used by validate", runner)
    parser.add_argument("--snapshot", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)


def _add_finetune(commands: Any) -> None:
    def runner(config: Config, args: argparse.Namespace) -> Outcome:
        from gda.stages import finetune

        return finetune.run(config, snapshot=args.snapshot, base=args.base, out=args.out, progress=args.progress)

    parser = _stage(commands, "finetune", "fine-tune a text-to-image diffusion model on the training images", runner)
    parser.add_argument("--snapshot", type=Path, required=True)
    parser.add_argument("--base", help="base weights: demo://glyphs or a directory (default: finetune.base)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--resume", choices=("latest",), default="latest", help="continue from the newest checkpoint of the same recipe (always done)"
    )


def _add_tune(commands: Any) -> None:
    def runner(config: Config, args: argparse.Namespace) -> Outcome:
        from gda.stages import tune

        return tune.run(config, generator=args.generator, snapshot=args.snapshot, out=args.out, progress=args.progress)

    parser = _stage(commands, "tune", "choose the sampling guidance: FID sweep, then CAS of the survivors on validation", runner)
    parser.add_argument("--generator", required=True)
    parser.add_argument("--snapshot", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)


def _add_sample(commands: Any) -> None:
    def runner(config: Config, args: argparse.Namespace) -> Outcome:
        from gda.stages import sample

        if args.plan_only:
            return sample.show_plan(config, snapshot=args.snapshot, out=args.out, zero_shot=args.zero_shot)
        worker, workers = _worker(args)
        return sample.run(
            config,
            generator=args.generator,
            snapshot=args.snapshot,
            settings=args.settings,
            out=args.out,
            zero_shot=args.zero_shot,
            worker=worker,
            workers=workers,
            progress=args.progress,
        )

    parser = _stage(commands, "sample", "draw a synthetic snapshot from a generator, shard by shard", runner)
    parser.add_argument("--generator", required=True, help="directory of a generator, or demo://glyphs")
    parser.add_argument("--snapshot", type=Path, required=True, help="the real snapshot whose classes are drawn")
    parser.add_argument("--settings", type=Path, help="settings.json of tune; needed while sample.guidance_scale is null")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--zero-shot", action="store_true", help="the control set: drawn from a base that was not fine-tuned")
    parser.add_argument("--worker", type=int, default=0, metavar="I", help="this worker's number, from 0")
    parser.add_argument("--workers", default="auto", metavar="N", help="how many share the plan; auto: all CPUs of this machine")
    parser.add_argument("--plan-only", action="store_true", help="print the plan and draw nothing")


def _worker(args: argparse.Namespace) -> tuple[int, int]:
    if args.workers == "auto":
        return 0, 1
    if not args.workers.isdigit() or not 0 <= args.worker < int(args.workers):
        raise UsageError(f"--worker {args.worker} --workers {args.workers}: expected 0 <= I < N")
    return args.worker, int(args.workers)


def _add_validate(commands: Any) -> None:
    def runner(config: Config, args: argparse.Namespace) -> Outcome:
        from gda.stages import validate

        return validate.run(
            config,
            synthetic=args.synthetic,
            snapshot=args.snapshot,
            reference=args.reference,
            generator=args.generator,
            out=args.out,
            strict=args.strict,
            progress=args.progress,
        )

    parser = _stage(commands, "validate", "decide whether a synthetic set may be used, and say why", runner)
    parser.add_argument("--synthetic", type=Path, required=True)
    parser.add_argument("--snapshot", type=Path, required=True)
    parser.add_argument("--generator", type=Path)
    parser.add_argument("--reference", type=Path, help="output of gda reference (default: computed)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--strict", action="store_true", help="a refusal exits with 4")


def _add_classify(commands: Any) -> None:
    def runner(config: Config, args: argparse.Namespace) -> Outcome:
        from gda.stages import classify

        return classify.run(
            config,
            snapshot=args.snapshot,
            arm=Arm(args.arm),
            seed=args.seed,
            out=args.out,
            synthetic=args.synthetic,
            verdict=args.verdict,
            with_seeds=configured_seeds(config, Arm(args.arm)) if args.all_seeds else (),
            progress=args.progress,
        )

    parser = _stage(commands, "classify", "train one classifier of one arm", runner)
    parser.add_argument("--snapshot", type=Path, required=True)
    parser.add_argument("--synthetic", type=Path)
    parser.add_argument("--verdict", type=Path)
    parser.add_argument("--arm", choices=[str(arm) for arm in Arm], required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument(
        "--all-seeds", action="store_true", help="train the arm's other configured seeds beside it; their commands then only publish"
    )
    parser.add_argument("--out", type=Path, required=True)


def configured_seeds(config: Config, arm: Arm) -> tuple[int, ...]:
    """Seeds that the configuration gives an arm."""
    from gda.flow import PAIRED_ARMS

    return config.classify.seeds if arm in PAIRED_ARMS else config.classify.control_seeds


def _add_evaluate(commands: Any) -> None:
    def runner(config: Config, args: argparse.Namespace) -> Outcome:
        from gda.stages import evaluate

        return evaluate.run(
            config,
            runs=args.runs,
            snapshot=args.snapshot,
            synthetic=args.synthetic,
            zero_shot=args.zero_shot,
            tuning=args.tuning,
            verdict=args.verdict,
            out=args.out,
            progress=args.progress,
            timings=read_timings(),
        )

    parser = _stage(commands, "evaluate", "test every classifier once, measure CAS and the paired gain, write the report", runner)
    parser.add_argument("--runs", type=Path, action="append", required=True, help="a classifier, or a folder of them; may be repeated")
    parser.add_argument("--snapshot", type=Path, required=True)
    parser.add_argument("--synthetic", type=Path)
    parser.add_argument("--zero-shot", type=Path)
    parser.add_argument("--tuning", type=Path)
    parser.add_argument("--verdict", type=Path)
    parser.add_argument("--out", type=Path, required=True)


def _add_promote(commands: Any) -> None:
    def runner(config: Config, args: argparse.Namespace) -> Outcome:
        from gda.stages import promote

        return promote.run(
            config, evaluation=args.evaluation, verdict=args.verdict, out=args.out, dry_run=args.dry_run, progress=args.progress
        )

    parser = _stage(commands, "promote", "register the candidate; make it champion if the gate holds", runner)
    parser.add_argument("--evaluation", type=Path, required=True)
    parser.add_argument("--verdict", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="where decision.json goes")
    parser.add_argument("--dry-run", action="store_true", help="decide and record, but leave the registry alone")


def _add_tools(commands: Any) -> None:
    from gda import tools

    tools.add_commands(commands)


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
    if not outcome.reused and outcome.digest:
        _write_timing(args.command, outcome.output, seconds)
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


def _timings_folder() -> Path:
    from gda.io.publish import work_root

    return work_root() / "timings"


def _write_timing(command: str, output: Path, seconds: float) -> None:
    folder = _timings_folder()
    folder.mkdir(parents=True, exist_ok=True)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    content = {
        "stage": command,
        "output": output.name,
        "seconds": seconds,
        "peak_mib": peak / (1024 if sys.platform == "linux" else 1024**2),
    }
    (folder / f"{command}-{output.name}.json").write_text(json.dumps(content), "utf-8")


def read_timings() -> dict[str, float]:
    """Seconds by step of the graph, from the newest run of each; classifier runs of one arm are summed."""
    totals: dict[str, float] = {}
    for path in sorted(_timings_folder().glob("*.json"), key=lambda p: p.stat().st_mtime):
        content = json.loads(path.read_text("utf-8"))
        stage, output = content["stage"], content["output"]
        name = f"classify {output.rsplit('-', 1)[0]}" if stage == "classify" else stage
        if stage in ("sample", "tune") and "zero_shot" in output:
            name = f"{stage} zero-shot"
        totals[name] = totals.get(name, 0.0) + float(content["seconds"])
    return totals


def _fail(error: GdaError, args: argparse.Namespace) -> int:
    if os.environ.get("GDA_DEBUG"):
        traceback.print_exc()
    print(f"gda {args.command}: {error}", file=sys.stderr)
    return error.exit_code


def _prepare_process() -> None:
    """One compute thread a process, quiet libraries, and SIGTERM as an interruption."""
    from gda.parallel import single_threaded

    single_threaded()
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
    "HF_HUB_OFFLINE": "1",
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
