"""The commands of a project: init, run, show."""

import argparse
import os
import subprocess
from pathlib import Path
from typing import Any

from gda.errors import UsageError


def add_project_commands(commands: Any) -> None:
    """Add the parsers of init, run and show to `commands`."""
    text = "make a project from a folder of images: look at images and machine, decide every setting, write params.yaml"
    init = commands.add_parser("init", help=text, description=text)
    init.set_defaults(tool=_init)
    init.add_argument("source", metavar="IMAGES", help="image folder (a folder per class), tars, parquet files, .npz, or demo://mnist")
    init.add_argument("folder", nargs="?", type=Path, default=Path(), metavar="DIR", help="where the project goes (default: here)")
    init.add_argument("--base", help="base model: a directory, a hub id ORG/NAME, or demo://glyphs (default: one that is here and fits)")
    init.add_argument("--extractor", metavar="NAME[=WEIGHTS]", help="feature network for FID (default: one that suits the images)")
    init.add_argument("--goal", choices=("quick", "standard", "thorough"), default="standard", help="how much to spend on the answer")
    init.add_argument("--quiet", action="store_true", help="no progress and no account of what was found")
    text = "do the whole job of the project in this folder, resume it, and end with the decision"
    run = commands.add_parser("run", help=text, description=text)
    run.set_defaults(tool=_run)
    run.add_argument("--until", metavar="STAGE", help="stop after this stage, such as sample")
    run.add_argument("--dry-run", action="store_true", help="list the steps, what is up to date, and what each took; run nothing")
    run.add_argument("--quiet", action="store_true", help="no progress of the checks, and no closing table")
    text = "write a page of the images of a snapshot, real or synthetic, class by class, suspects first"
    show = commands.add_parser("show", help=text, description=text)
    show.set_defaults(tool=_show)
    show.add_argument("directory", type=Path, help="a snapshot")
    show.add_argument("--out", type=Path, metavar="FILE", help="the HTML file (default: DIRECTORY.html, next to the snapshot)")
    show.add_argument("--per-class", type=int, default=24, metavar="N", help="images of each class besides its suspects")
    show.add_argument("--suspects", type=Path, metavar="FILE", help="suspects.csv of gda init or of gda validate")
    show.add_argument("--open", action="store_true", help="open the page in the browser")


def _init(args: argparse.Namespace) -> int:
    from gda.project.start import describe_start, start_project

    source, folder = args.source, args.folder
    if "://" not in source and (Path(source) / "snapshot.json").is_file():
        raise UsageError(f"{source}: is a snapshot already; give the folder of the images themselves")
    started = start_project(source, folder, base=args.base, extractor=args.extractor, goal=args.goal, progress=args.progress)
    _init_dvc(folder)
    if not args.quiet:
        print("\n".join(describe_start(started)))
    return 0


def _init_dvc(folder: Path) -> None:
    """Make the folder a DVC project, in the git repository around it if there is one; without dvc, `gda run` runs the stages itself."""
    from gda.project.run import find_dvc

    if (folder / ".dvc").exists() or (dvc := find_dvc()) is None:
        return
    inside = subprocess.run(["git", "-C", str(folder), "rev-parse", "--show-toplevel"], capture_output=True, text=True)
    root = inside.stdout.strip()
    how = ["--no-scm"] if inside.returncode or not root else [] if Path(root) == folder.resolve() else ["--subdir"]
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    subprocess.run([*dvc, "init", "--quiet", *how], cwd=folder, env=environment, capture_output=True)


def _run(args: argparse.Namespace) -> int:
    from gda.cli.summary import summary
    from gda.flow import EVALUATION, PROMOTION, VERDICT
    from gda.project.run import describe_plan_of_run, read_project_config, run_project

    config = read_project_config()
    if args.dry_run:
        print("\n".join(describe_plan_of_run(config, args.until)))
        return 0
    run_project(config, until=args.until)
    if args.until is None and not args.quiet:
        print(summary(Path(EVALUATION), Path(VERDICT), Path(PROMOTION)))
    return 0


def _show(args: argparse.Namespace) -> int:
    import webbrowser

    from gda.data.store.snapshot import Snapshot
    from gda.io.atomic import write_bytes
    from gda.project.show import read_suspects, render_images

    if args.per_class < 0:
        raise UsageError(f"--per-class {args.per_class}: expected 0 or more")
    snapshot = Snapshot.open(args.directory)
    found = args.directory.resolve()
    out = args.out or found.with_name(f"{found.name}.html")
    page = render_images(snapshot, per_class=args.per_class, suspects=read_suspects(args.suspects) if args.suspects else None)
    write_bytes(out, page.encode())
    print(f"show: wrote {out}")
    if args.open:
        webbrowser.open(out.resolve().as_uri())
    return 0
