"""The parser of a stage's command, with the flags that all stages take."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gda.artifacts.outcome import Outcome
from gda.config.load import Config
from gda.runtime.logs import LOG_FORMATS

Runner = Callable[[Config, argparse.Namespace], Outcome]


def stage_parser(commands: Any, name: str, help_text: str, runner: Runner) -> argparse.ArgumentParser:
    """Add a parser to `commands`; `runner` runs its parsed arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text)
    parser.add_argument("--params", type=Path, metavar="FILE", help="configuration (default: params.yaml where there is one)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="override one field; may be repeated")
    parser.add_argument("--quiet", action="store_true", help="no progress and no closing line")
    parser.add_argument(
        "--log-format",
        choices=LOG_FORMATS,
        help="form of messages and progress; json: one object per line (default: GDA_LOG_FORMAT, or text)",
    )
    parser.add_argument("--json", action="store_true", help="the closing line as one JSON object on stdout")
    parser.set_defaults(runner=runner)
    return parser
