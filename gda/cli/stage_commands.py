"""The parsers of the stages: every command's flags, and the call of the stage's `run`. Imports no stage until one is run."""

import argparse
import importlib.metadata
from pathlib import Path
from typing import Any

from gda.artifacts.outcome import Outcome
from gda.cli import tool_commands
from gda.cli.arm_commands import add_arms, add_classify
from gda.cli.project_commands import add_project_commands
from gda.cli.stage_parser import stage_parser
from gda.config.arm import Arm
from gda.config.load import Config
from gda.errors import UsageError
from gda.runtime.reading import whole_number
from gda.tracking.timings import read_timings

_WEIGHTS = "a directory, demo://glyphs or a hub id ORG/NAME[@REVISION][:VARIANT]"


def build_parser() -> argparse.ArgumentParser:
    """The whole command surface; imports no stage."""
    parser = argparse.ArgumentParser(prog="gda", description="Make image classifiers better with synthetic data, and prove it.")
    parser.add_argument("--version", action="version", version=f"gda {importlib.metadata.version('gda')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for add in (
        _add_inputs,
        _add_snapshot,
        _add_reference,
        _add_finetune,
        _add_tune,
        _add_sample,
        _add_validate,
        _add_ratio,
        add_arms,
        add_classify,
        _add_evaluate,
        _add_compare,
        _add_promote,
    ):
        add(commands)
    add_project_commands(commands)
    tool_commands.add_commands(commands)
    return parser


def _add_inputs(commands: Any) -> None:
    def runner(config: Config, args: argparse.Namespace) -> Outcome:
        from gda.stages import inputs

        return inputs.run(config, out=args.out)

    parser = stage_parser(
        commands, "inputs", "write content digests of what fields name outside the job, so that dvc repro sees a change", runner
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; finished work in it is kept")


def _add_snapshot(commands: Any) -> None:
    def runner(config: Config, args: argparse.Namespace) -> Outcome:
        from gda.data.sources.source import ACCEPTED_SOURCES
        from gda.io.skipped_arms import publish_skipped
        from gda.stages import snapshot
        from gda.training.arms.requirements import no_pool

        if (args.as_kind == "pool") != (args.snapshot is not None):
            raise UsageError("--as pool and --snapshot DIR go together: a pool is held against the real snapshot that it is for")
        source = args.source or (config.snapshot.pool if args.as_kind == "pool" else None)
        if args.if_compared and args.as_kind == "pool" and (why := no_pool(config)) is not None:
            return publish_skipped("snapshot", args.out, f"because {why}")
        if source is None:
            missing = "SOURCE is needed" if args.as_kind != "pool" else "snapshot.pool is null; give SOURCE, or the setting a source"
            raise UsageError(f"{missing}; accepted: {ACCEPTED_SOURCES}")
        return snapshot.run(
            config,
            source=source,
            out=args.out,
            as_synthetic=args.as_kind == "synthetic",
            pool_of=args.snapshot,
            group_column=args.group_column,
            split_column=args.split_column,
            label_column=args.label_column,
            progress=args.progress,
        )

    parser = stage_parser(commands, "snapshot", "freeze a labelled image set: shards, manifest and leak-free splits", runner)
    parser.add_argument(
        "source",
        nargs="?",
        help="image folder; tars, parquet files, .npz (folder, file, pattern); demo://mnist, demo://digits (a pool: snapshot.pool)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; finished work in it is kept")
    parser.add_argument("--as", dest="as_kind", choices=("real", "synthetic", "pool"), default="real", help="what the images are")
    parser.add_argument(
        "--snapshot",
        type=Path,
        metavar="DIR",
        help="with --as pool: the real snapshot; its images, and any near its val or test, are left out",
    )
    parser.add_argument(
        "--if-compared", action="store_true", help="skip a pool where snapshot.pool is null or classify.arms does not name retrieved"
    )
    parser.add_argument("--group-column", help="images of one group stay in one split (default: snapshot.group_column)")
    parser.add_argument("--split-column", help="column that names the split of each image (default: snapshot.split_column)")
    parser.add_argument("--label-column", help="column that names the class of each image (default: snapshot.label_column)")


def _add_reference(commands: Any) -> None:
    def runner(config: Config, args: argparse.Namespace) -> Outcome:
        from gda.stages import reference

        return reference.run(config, snapshot=args.snapshot, out=args.out, progress=args.progress)

    parser = stage_parser(commands, "reference", "cross-fitted classifiers and statistics of the real set, used by validate", runner)
    parser.add_argument("--snapshot", type=Path, required=True, help="the real snapshot, output of gda snapshot")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; finished work in it is kept")


def _add_finetune(commands: Any) -> None:
    def runner(config: Config, args: argparse.Namespace) -> Outcome:
        from gda.generator.weights.hub import with_flags
        from gda.stages import finetune

        base = with_flags(args.base or config.finetune.base, args.revision, args.variant)
        resume = None if args.resume == "latest" else Path(args.resume)
        return finetune.run(config, snapshot=args.snapshot, base=base, out=args.out, resume=resume, progress=args.progress)

    parser = stage_parser(commands, "finetune", "fine-tune a text-to-image diffusion model on the training images", runner)
    parser.add_argument("--snapshot", type=Path, required=True, help="the real snapshot, output of gda snapshot")
    parser.add_argument("--base", help=f"base weights: {_WEIGHTS} (default: finetune.base)")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id, as @REVISION in it")
    parser.add_argument("--variant", help="variant of a hub id's weights such as fp16, as :VARIANT in it")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; finished work in it is kept")
    parser.add_argument(
        "--resume",
        metavar="latest|PATH",
        default="latest",
        help="continue from the newest checkpoint of the same work (always done), or from this checkpoint or work folder of it",
    )


def _add_tune(commands: Any) -> None:
    def runner(config: Config, args: argparse.Namespace) -> Outcome:
        from gda.stages import tune

        if not 0 <= args.worker < args.workers:
            raise UsageError(f"--worker {args.worker} --workers {args.workers}: expected 0 <= I < N")
        return tune.run(
            config,
            generator=args.generator,
            snapshot=args.snapshot,
            out=args.out,
            worker=args.worker,
            workers=args.workers,
            progress=args.progress,
        )

    parser = stage_parser(
        commands, "tune", "choose the sampling settings: FID over a grid, then CAS of the survivors on validation", runner
    )
    parser.add_argument("--generator", required=True, help=_WEIGHTS)
    parser.add_argument("--snapshot", type=Path, required=True, help="the real snapshot, output of gda snapshot")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; finished work in it is kept")
    parser.add_argument("--worker", type=int, default=0, metavar="I", help="this worker's number, from 0")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="how many share the FID of the points; the command without it then chooses"
    )


def _add_sample(commands: Any) -> None:
    def runner(config: Config, args: argparse.Namespace) -> Outcome:
        from gda.generator.sampling.request import image_to_image
        from gda.io.skipped_arms import publish_skipped
        from gda.stages import sample
        from gda.training.arms.requirements import not_compared

        index, count = _worker(args)
        if args.if_compared and args.image_to_image and not any(arm.data.others == "img2img" for arm in config.classify.arms):
            return publish_skipped("sample", args.out, f"because {not_compared(Arm.IMG2IMG)}")
        if args.image_to_image:
            config = image_to_image(config)
        if args.plan_only:
            return sample.show_plan(
                config,
                generator=args.generator,
                snapshot=args.snapshot,
                settings=args.settings,
                out=args.out,
                zero_shot=args.zero_shot,
                workers=sample.Workers(index=index, count=count).count,
            )
        return sample.run(
            config,
            generator=args.generator,
            snapshot=args.snapshot,
            settings=args.settings,
            out=args.out,
            zero_shot=args.zero_shot,
            worker=index,
            workers=count,
            progress=args.progress,
        )

    parser = stage_parser(commands, "sample", "generate a synthetic snapshot, shard by shard", runner)
    parser.add_argument("--generator", required=True, help=_WEIGHTS)
    parser.add_argument("--snapshot", type=Path, required=True, help="the real snapshot whose classes are sampled")
    parser.add_argument("--settings", type=Path, help="settings.json of tune; needed while sample.guidance_scale is null")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; finished work in it is kept")
    parser.add_argument("--zero-shot", action="store_true", help="generate the control set of a base that was not fine-tuned")
    parser.add_argument("--if-compared", action="store_true", help="skip the image-to-image set where classify.arms does not name its arm")
    parser.add_argument("--image-to-image", action="store_true", help="the control set: real training images, noised and denoised again")
    parser.add_argument("--worker", type=int, default=0, metavar="I", help="this worker's number, from 0")
    parser.add_argument(
        "--workers", default="auto", metavar="N", help="workers that share the plan; auto: this command alone, one process per GPU or CPU"
    )
    parser.add_argument("--plan-only", action="store_true", help="print the plan, its cost and its time on this machine; generate nothing")


def _worker(args: argparse.Namespace) -> tuple[int, int]:
    if args.workers == "auto":
        return 0, 1
    if (workers := whole_number(args.workers)) is None:
        raise UsageError(f"--workers {args.workers[:30]}: expected a number or auto")
    return args.worker, workers


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
            accepted=args.accepted,
            strict=args.strict,
            progress=args.progress,
        )

    parser = stage_parser(commands, "validate", "decide whether a synthetic set may be used, and say why", runner)
    parser.add_argument("--synthetic", type=Path, required=True, help="the synthetic snapshot")
    parser.add_argument("--snapshot", type=Path, required=True, help="the real snapshot, output of gda snapshot")
    parser.add_argument("--generator", help=_WEIGHTS)
    parser.add_argument("--reference", type=Path, help="output of gda reference (default: computed)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; finished work in it is kept")
    parser.add_argument("--accepted", type=Path, help="where to put the set that the verdict is about, after replacements")
    parser.add_argument("--strict", action="store_true", help="a refusal exits with 4")


def _add_ratio(commands: Any) -> None:
    def runner(config: Config, args: argparse.Namespace) -> Outcome:
        from gda.stages import ratio

        return ratio.run(
            config, snapshot=args.snapshot, synthetic=args.synthetic, verdict=args.verdict, out=args.out, progress=args.progress
        )

    parser = stage_parser(commands, "ratio", "find how many synthetic images help: accuracy on validation by ratio, and its peak", runner)
    parser.add_argument("--snapshot", type=Path, required=True, help="the real snapshot, output of gda snapshot")
    parser.add_argument("--synthetic", type=Path, required=True, help="the synthetic snapshot")
    parser.add_argument("--verdict", type=Path, required=True, help="verdict.json of gda validate")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; finished work in it is kept")


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

    parser = stage_parser(commands, "evaluate", "test every classifier once, measure CAS and the paired gain, write the report", runner)
    parser.add_argument("--runs", type=Path, action="append", required=True, help="a classifier, or a folder of them; may be repeated")
    parser.add_argument("--snapshot", type=Path, required=True, help="the real snapshot, output of gda snapshot")
    parser.add_argument("--synthetic", type=Path, help="the synthetic snapshot")
    parser.add_argument("--zero-shot", type=Path, help="the zero-shot control set")
    parser.add_argument("--tuning", type=Path, help="output of gda tune")
    parser.add_argument("--verdict", type=Path, help="verdict.json of gda validate")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; finished work in it is kept")


def _add_compare(commands: Any) -> None:
    def runner(config: Config, args: argparse.Namespace) -> Outcome:
        from gda.stages import compare

        return compare.run(config, evaluations=args.evaluations, out=args.out)

    parser = stage_parser(commands, "compare", "gain by the number of real images, of several evaluations on one test split", runner)
    parser.add_argument("evaluations", type=Path, nargs="+", metavar="EVALUATION", help="output of gda evaluate")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; finished work in it is kept")


def _add_promote(commands: Any) -> None:
    def runner(config: Config, args: argparse.Namespace) -> Outcome:
        from gda.stages import promote

        return promote.run(
            config,
            evaluation=args.evaluation,
            verdict=args.verdict,
            out=args.out,
            dry_run=args.dry_run,
            register_only=args.register_only,
            progress=args.progress,
        )

    parser = stage_parser(commands, "promote", "register the candidate; make it champion if the gate holds", runner)
    parser.add_argument("--evaluation", type=Path, required=True, help="output of gda evaluate")
    parser.add_argument("--verdict", type=Path, required=True, help="verdict.json of gda validate")
    parser.add_argument("--out", type=Path, help="where decision.json goes")
    parser.add_argument("--dry-run", action="store_true", help="decide and record, but leave the registry alone")
    parser.add_argument("--register-only", action="store_true", help="decide, and register the candidate as challenger, but leave champion")
