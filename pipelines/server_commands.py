"""`upload`, `run` and `schedule`: what the command line says to a server."""

import argparse
import subprocess
from pathlib import Path
from typing import Any

from gda.errors import UsageError

Commands = Any


def add_server_commands(commands: Commands) -> None:
    """Add the three to the command line."""
    upload = _command(commands, "upload", "make a compiled pipeline a version on the server; twice the same is once", _upload)
    upload.add_argument("--version", help="name of the version (default: the commit that is checked out)")
    upload.add_argument("--file", type=Path, help="the compiled pipeline (default: pipelines/compiled/NAME.yaml)")

    run = _with_parameters(_command(commands, "run", "start a run of a version that was uploaded", _run))
    run.add_argument("--wait", action="store_true", help="until it ends; exit code 1 unless it succeeded")
    run.add_argument("--no-cache", action="store_true", help="run every step again; the run then names no version and carries the pipeline")
    run.add_argument("--timeout", type=int, default=24 * 3600, metavar="SECONDS", help="of --wait")

    schedule = _with_parameters(_command(commands, "schedule", "run a version again and again", _schedule))
    when = schedule.add_mutually_exclusive_group(required=True)
    when.add_argument("--cron", help="six fields: second minute hour day-of-month month day-of-week")
    when.add_argument("--interval", type=int, metavar="SECONDS")
    schedule.add_argument("--max-concurrency", type=int, default=1, metavar="N", help="runs of the schedule at once")
    schedule.add_argument("--catchup", action="store_true", help="make up for runs that were missed")


def _command(commands: Commands, name: str, text: str, function: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("name", metavar="NAME", help="the pipeline")
    parser.add_argument("--host", help="address of the server (default: KF_PIPELINES_ENDPOINT, else this cluster's)")
    parser.add_argument("--namespace", default="", help="of a server with several users")
    parser.add_argument("--token-file", type=Path, help="(default: KF_PIPELINES_SA_TOKEN_PATH); read again for each request")
    parser.add_argument("--ca-cert", type=Path, help="certificates that the server's is checked by")
    parser.set_defaults(command=function)
    return parser


def _with_parameters(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--version", help="name of the version (default: the newest)")
    parser.add_argument("--param", action="append", default=[], metavar="NAME=VALUE", help="may be repeated; over --params-file")
    parser.add_argument("--params-file", type=Path, metavar="FILE", help="JSON object of parameters")
    parser.add_argument("--experiment", default="gda", help="that runs are listed under")
    parser.add_argument("--service-account", help="that the run's pods have (manifests/README.md says which)")
    parser.add_argument("--title", "--run-name", default="", metavar="NAME", help="of the run (default: pipeline and version)")
    parser.add_argument("--pipeline-root", metavar="URI", help="where the server keeps outputs of steps (default: the server's)")
    return parser


def _server(args: argparse.Namespace) -> Any:
    from pipelines.server import Server

    return Server(args.host, namespace=args.namespace, token_file=args.token_file, ca_cert=args.ca_cert)


def _upload(args: argparse.Namespace) -> int:
    from pipelines.compiling import COMPILED, file_names

    file = args.file or COMPILED / file_names(args.name)[0]
    version = _server(args).upload(args.name, file, version=args.version or _commit())
    print(f"{args.name} version {version.name}: {'is there already' if version.already else 'uploaded'} ({version.version_id})")
    return 0


def _run(args: argparse.Namespace) -> int:
    server, version, parameters = _prepared(args)
    run = server.run(version, parameters, _launch(args, version), cached=not args.no_cache)
    print(f"{args.name} version {version.name}: run {run} started")
    if args.name == "augment":
        print(f"go on from it with --param run={run}, as in: python -m pipelines run promote --param run={run}")
    if not args.wait:
        return 0
    state = server.wait(run, timeout=args.timeout)
    print(f"run {run}: {state}")
    return 0 if state == "SUCCEEDED" else 1


def _schedule(args: argparse.Namespace) -> int:
    from pipelines.server import Schedule

    if args.cron is not None and len(args.cron.split()) != 6:
        raise UsageError(f"--cron {args.cron!r}: accepted: six fields, of which the first is seconds")
    if args.interval is not None and args.interval < 60:
        raise UsageError(f"--interval {args.interval}: accepted: 60 seconds and more")
    server, version, parameters = _prepared(args)
    when = Schedule(cron=args.cron, interval=args.interval, max_concurrency=args.max_concurrency, catchup=args.catchup)
    made = server.schedule(version, parameters, when, _launch(args, version))
    print(f"{args.name} version {version.name}: schedule {made} made")
    return 0


def _prepared(args: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """The server, the version to run, and the parameters in the types that it declares."""
    from pipelines.parameters import read_parameters

    server = _server(args)
    version = server.version(args.name, args.version)
    return server, version, read_parameters(args.param, args.params_file, version.spec)


def _launch(args: argparse.Namespace, version: Any) -> Any:
    from pipelines.server import Launch

    title = args.title or f"{args.name} {version.name}"
    return Launch(experiment=args.experiment, title=title, account=args.service_account, root=args.pipeline_root)


def _commit() -> str:
    """The commit that is checked out. Raises `UsageError` where there are changes that no commit has."""
    root = Path(__file__).parent
    commands = [["git", "rev-parse", "--short=12", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"]]
    try:
        commit, changes = (subprocess.run(c, cwd=root, capture_output=True, text=True, check=True).stdout.strip() for c in commands)
    except (OSError, subprocess.CalledProcessError):
        raise UsageError("no git checkout to name the version by; give --version") from None
    if changes:
        raise UsageError("the checkout has changes that no commit has, so its commit does not name them; commit, or give --version")
    return commit
