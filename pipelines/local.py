"""`augment` on this machine, without a cluster: `python -m pipelines.local --data-root DIR`, as `make kfp-local` runs it."""

import argparse
import builtins
import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from components import IMAGE
from gda.config.load import Config, load_config
from gda.steps.form import split_up
from pipelines.compiling import build
from pipelines.options import CompileOptions


def run_arguments(config: Config, *, data_root: Path, code_version: str, sample_workers: int = 2) -> dict[str, Any]:
    """The run's parameters that mean `config`."""
    form, settings = split_up(config)
    local = {"data_root": str(data_root.resolve()), "code_version": code_version, "sample_workers": sample_workers}
    return form | {"settings": settings} | local


def run_augment(config: Config, *, data_root: Path, outputs: Path, code_version: str, docker: str = "") -> bool:
    """Run `augment` with `config`; says whether every step that ran succeeded."""
    arguments = run_arguments(config, data_root=data_root, code_version=code_version)
    return run_pipeline("augment", arguments, data_root=data_root, outputs=outputs, docker=docker)


def run_pipeline(name: str, arguments: Mapping[str, Any], *, data_root: Path, outputs: Path, docker: str = "") -> bool:
    """Run a pipeline in subprocesses, or in containers of the image `docker`; says whether every step that ran succeeded.

    `outputs` gets the small artifacts of each step (pages, tables, measures), or with `docker` the data root itself; images and weights
    stay below `data_root`, which the image's user must be able to write.
    """
    from kfp import dsl, local

    data_root.mkdir(parents=True, exist_ok=True)
    # Containers are given the folder of the artifacts and no other: with them, everything lies below the data root.
    runner, root = (local.DockerRunner(), data_root) if docker else (local.SubprocessRunner(use_venv=False), outputs)
    local.init(runner=runner, pipeline_root=str(root.resolve()), raise_on_error=True)
    pipeline = build(name, CompileOptions(image=docker or IMAGE, retries=0, run_name=dsl.PIPELINE_JOB_NAME_PLACEHOLDER))
    try:
        with _printing_and_logging_kept():
            pipeline(**arguments)
    except RuntimeError as error:  # how the local runner says that a step failed, after the exit handler has run
        print(error, file=sys.stderr)
        return False
    return True


@contextlib.contextmanager
def _printing_and_logging_kept() -> Iterator[None]:
    """The local runner exchanges `print` and the root logger's handlers for each step, and threads that overlap put back the wrong ones."""
    logger = logging.getLogger()
    printing, handlers, level = builtins.print, logger.handlers[:], logger.level
    try:
        yield
    finally:
        builtins.print = printing
        logger.handlers[:] = handlers
        logger.setLevel(level)


def main() -> int:
    """Run the demo's parameters; exit code 0 when every step that ran succeeded."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.local", description="Run the pipeline augment on this machine.")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--data-root", type=Path, required=True, help="folder that stands for the shared volume")
    parser.add_argument("--outputs", type=Path, help="folder for pages and tables (default: pages below the data root)")
    parser.add_argument("--docker", default="", metavar="IMAGE", help="run steps in containers of this image")
    parser.add_argument("--code-version", default="local")
    args = parser.parse_args()
    config = load_config(args.params, tuple(args.set))
    outputs = args.outputs or args.data_root / "pages"
    done = run_augment(config, data_root=args.data_root, outputs=outputs, code_version=args.code_version, docker=args.docker)
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
