"""`python -m pipelines`: compile and lint the pipelines; upload, run and schedule them."""

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from gda.errors import GdaError, TryAgainError, UsageError
from pipelines.options import CompileOptions
from pipelines.registry import PIPELINES
from pipelines.server_commands import add_server_commands as add_server_commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 1 findings or a defect, 2 usage, 5 something is missing, 75 try again."""
    args = _parser().parse_args(argv)
    try:
        return int(args.command(args))
    except GdaError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", TryAgainError.exit_code)
    except BrokenPipeError:
        return 0
    except Exception as error:
        if os.environ.get("GDA_DEBUG"):
            traceback.print_exc()
        return _fail(f"internal error: {type(error).__name__}: {' '.join(str(error).split())} (GDA_DEBUG=1 shows where)", 1)


def _fail(message: str, code: int) -> int:
    print(f"pipelines: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines", description="Compile and lint the pipelines; upload, run and schedule them."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_compile(commands)
    _add_lint(commands)
    add_server_commands(commands)
    return parser


def _add_compile(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    defaults = CompileOptions()
    parser = commands.add_parser("compile", help="write the pipelines as files, for an image, a queue and a width of loops")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all ({', '.join(PIPELINES)})")
    parser.add_argument("--image", default=defaults.image, help="REGISTRY/NAME@sha256:DIGEST of the image that every step runs in")
    parser.add_argument("--queue", default="", help="Kueue queue of steps with accelerators")
    parser.add_argument("--priority", default="", help="Kueue priority class of these steps")
    parser.add_argument("--parallelism", type=int, default=defaults.parallelism, metavar="N", help="pods of a loop that run at once")
    parser.add_argument("--namespace", default=defaults.namespace, help="of the objects for GitOps (default: gda)")
    parser.add_argument("--out", type=Path, help="folder for the files (default: pipelines/compiled)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 and the difference where the files are not these")
    parser.set_defaults(command=_compile)


def _compile(args: argparse.Namespace) -> int:
    from pipelines.compiling import COMPILED, checked_image, checked_label, compile_pipeline

    if not 1 <= args.parallelism <= 50:
        raise UsageError(f"--parallelism {args.parallelism}: accepted: 1 to 50")
    if not args.namespace:
        raise UsageError("--namespace: accepted: the name of a namespace")
    options = CompileOptions(
        image=checked_image(args.image),
        queue=checked_label("--queue", args.queue),
        priority=checked_label("--priority", args.priority),
        parallelism=args.parallelism,
        namespace=checked_label("--namespace", args.namespace),
    )
    folder = args.out or COMPILED
    texts = {file: text for name in args.names or PIPELINES for file, text in compile_pipeline(name, options).items()}
    if args.check:
        return _differences(texts, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            (folder / file).write_text(text, "utf-8")
            print(f"wrote {folder / file}")
    except OSError as error:
        raise UsageError(f"--out {folder}: {error.strerror}; accepted: a folder that can be written to") from None
    return 0


def _differences(texts: dict[str, str], folder: Path) -> int:
    found = 0
    for file, text in texts.items():
        path = folder / file
        there = path.read_text("utf-8") if path.is_file() else ""
        if there != text:
            found = 1
            sys.stdout.writelines(difflib.unified_diff(there.splitlines(True), text.splitlines(True), str(path), "as compiled now", n=1))
            print(f"{path}: is not what the pipeline compiles to; run python -m pipelines compile")
    return found


def _add_lint(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("lint", help="look for what the compiler lets through and the cluster does not run")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a compiled pipeline")
    parser.add_argument("--image", default="", help="that every step must run in")
    parser.set_defaults(command=_lint)


def _lint(args: argparse.Namespace) -> int:
    from pipelines.documents import read_compiled
    from pipelines.scope_lint import lint
    from pipelines.size import estimate
    from pipelines.steps import EXEMPT

    compiled = {path: read_compiled(path) for path in args.files}
    for path, (spec, platform) in compiled.items():
        print(f"{path}: {estimate(spec, platform, EXEMPT['widths'])}")
    found = [f"{path}: {finding}" for path, parts in compiled.items() for finding in lint(*parts, image=args.image, **EXEMPT)]
    print("\n".join(found) or "nothing found")
    return 1 if found else 0
