"""Kills every command of the job at calls, at moments and after publishing, stops it by a signal, lets the disk fail; counts the outcomes.

`python tests/kills/kill_runner.py [--kills 500] [--minutes M] [--journal FILE]` goes on where the journal ends, prints a table, and exits
with 0 once so many kills went well, with 1 where a result differs or a command is stuck, and with 75 where the minutes are over before.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from kill_chain import TRIED, Command, build_chain
from kill_rounds import KILLS, MODES, Grounds, Round, hold, make_database, rounds, undisturbed

from gda.flow import STAGE_NAMES

ROOT = Path(__file__).resolve().parents[2]
# What commands import on their way, so that a forked process has it already.
_HEAVY = (
    "diffusers", "great_expectations", "matplotlib.pyplot", "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store", "pyarrow.parquet",
    "scipy.stats", "timm", "torch_fidelity", "transformers", "gda.report.page", "gda.stages.reference",
    *(f"gda.stages.{name}" for name in STAGE_NAMES),
)  # fmt: skip


def prepare() -> None:
    """Load once what every process forked from this one needs."""
    import importlib

    import torch

    from gda.runtime.parallel import single_threaded

    single_threaded()
    torch.ones(1, requires_grad=True).sum().backward()
    for name in _HEAVY:
        importlib.import_module(name)


def make_grounds(root: Path) -> Grounds:
    """The job and an empty database, in `root`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "chain").mkdir()
    return Grounds(root=root, chain=build_chain(root / "chain"), database=make_database(root / "empty.db"))


def run_rounds(
    commands: tuple[Command, ...],
    grounds: Grounds,
    *,
    kills: int,
    done: list[Round],
    reported: Callable[[Round], None],
    seconds: float = 1e9,
) -> list[Round]:
    """Hold rounds after those `done` until there are so many kills, or so many seconds are over; returns all of them."""
    end = time.monotonic() + seconds
    expected = {}
    found = list(done)
    for number, command, mode in rounds(commands):
        if num_kills(found) >= kills or time.monotonic() > end:
            return found
        if number < len(done):
            continue
        if command.name not in expected:
            expected[command.name] = undisturbed(command, grounds)
        found.append(hold(command, expected[command.name], grounds, number=number, mode=mode))
        reported(found[-1])
    return found


def num_kills(results: Iterable[Round]) -> int:
    """How often a command was killed, without the other ways to disturb it."""
    return sum(result.times for result in results if result.mode in KILLS)


def table(results: Iterable[Round]) -> str:
    """A line a command: kills and other disturbances by mode, rounds, and how many of them did not go well, by what went wrong."""
    results = list(results)
    lines = [
        f"| {'Command':<28} | "
        + " | ".join(f"{mode:>16}" for mode in MODES)
        + " | rounds | differ | stuck | logged wrongly | wrong exit code |"
    ]
    lines.append("|---" * (len(MODES) + 6) + "|")
    for name in [*dict.fromkeys(result.command for result in results), "all"]:
        own = [result for result in results if name in (result.command, "all")]
        kills = " | ".join(f"{sum(r.times for r in own if r.mode == mode):>16}" for mode in MODES)
        counts = [
            sum(any(fault.startswith(word) for fault in r.faults) for r in own)
            for word in ("differs", "stuck", ("logged", "left"), "ended")
        ]
        lines.append(f"| {name:<28} | {kills} | {len(own):>6} | {counts[0]:>6} | {counts[1]:>5} | {counts[2]:>14} | {counts[3]:>15} |")
    return "\n".join(lines)


def code_digest() -> str:
    """Of everything that decides how a round goes: the product's files and those of the rounds."""
    digest = hashlib.sha256()
    for path in sorted([*ROOT.glob("gda/**/*.py"), *ROOT.glob("tests/kills/*.py"), ROOT / "tests/worlds/killing.py"]):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def main() -> int:
    """Hold rounds, keep them in the journal, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so many, to go on later")
    parser.add_argument("--journal", type=Path, default=Path("kills.jsonl"), help="rounds that were held; those of other code do not count")
    parser.add_argument("--only", nargs="*", help="commands whose name begins with one of these")
    args = parser.parse_args()
    code = code_digest()
    lines = args.journal.read_text().splitlines() if args.journal.is_file() else []
    held = [json.loads(line) for line in lines]
    done = [Round(**entry["round"]) for entry in held if entry["code"] == code]
    commands = tuple(c for c in TRIED if not args.only or any(c.name.startswith(name) for name in args.only))

    def reported(result: Round) -> None:
        with open(args.journal, "a") as journal:
            journal.write(json.dumps({"code": code, "round": asdict(result)}) + "\n")
        print(f"{result.command}, {result.mode}: {result.times} times; {'; '.join(result.faults) or 'well'}", flush=True)

    prepare()
    with tempfile.TemporaryDirectory() as root:
        results = run_rounds(
            commands, make_grounds(Path(root) / "kills"), kills=args.kills, done=done, reported=reported, seconds=60 * args.minutes
        )
    print(table(results))
    if any(result.faults for result in results):
        return 1
    return 0 if num_kills(results) >= args.kills else 75


if __name__ == "__main__":
    sys.exit(main())
