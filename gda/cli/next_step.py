"""The next sensible command after one that was typed by hand."""

import argparse
import os
from pathlib import Path

from gda.artifacts.outcome import Outcome
from gda.runtime.failed_processes import FAILURE_VARIABLE

_OF_DVC = "DVC_ROOT"  # set in every command that DVC runs


def next_step(args: argparse.Namespace, outcome: Outcome) -> str | None:
    """The command to type next, after `args` ended in `outcome`; None inside a job that knows it, and where nothing follows."""
    if os.environ.get(_OF_DVC) or os.environ.get(FAILURE_VARIABLE) or not outcome.digest:
        return None
    out, given = outcome.output, vars(args)
    snapshot, generator = given.get("snapshot"), given.get("generator")
    match args.command:
        case "snapshot" if args.as_kind == "real":
            base = "" if Path("params.yaml").is_file() else " --base BASE"
            return f"gda finetune{base} --snapshot {out} --out models/generator"
        case "finetune":
            return f"gda tune --generator {out} --snapshot {snapshot} --out reports/tuning"
        case "tune":
            return f"gda sample --generator {generator} --snapshot {snapshot} --settings {out}/settings.json --out data/synthetic"
        case "sample" if not (args.zero_shot or args.image_to_image):
            accepted = f"--accepted {out.with_name('accepted')} --out reports/validation"
            return f"gda validate --synthetic {out} --snapshot {snapshot} --generator {generator} {accepted}"
        case "validate" if outcome.refused:
            return f"open {out}/index.html, which shows what failed and what to change"
        case "validate":
            real = f"gda classify --arm real --snapshot {snapshot} --out models/classifiers/real"
            mixed = f"--synthetic {args.accepted or args.synthetic} --verdict {out}/verdict.json"
            return f"{real}, and the same with {mixed} for --arm synthetic and --arm real+synthetic"
        case "classify":
            return f"gda evaluate --runs {_runs(args, out)} --snapshot {snapshot} --out reports/evaluation, once every arm is trained"
        case "evaluate":
            verdict = f" --verdict {args.verdict}" if args.verdict else " --verdict VERDICT"
            return f"open {out}/report.html, and gda promote --evaluation {out}{verdict} --out reports/promotion"
        case "promote":
            return "gda summary, or the version's page in MLflow"
    return None


def _runs(args: argparse.Namespace, out: Path) -> Path:
    return out.parent.parent if args.seed is None else out.parent
