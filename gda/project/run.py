"""`gda run`: the whole job of a project, by DVC where the folder is a DVC project, else stage by stage; both resume."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gda.artifacts.decision import Decision
from gda.artifacts.document import read_document
from gda.artifacts.evaluation import Metrics
from gda.config.load import Config, dump_config, load_config
from gda.data.store.snapshot import Snapshot
from gda.errors import MissingError, UsageError
from gda.fidelity.extractors import configured_extractor
from gda.flow import EVALUATION, GRAPH, PROMOTION, REAL, Node, command_words
from gda.generator.weights.directory import read_card
from gda.io.atomic import work_root
from gda.project.write import PARAMS
from gda.runtime.failed_processes import FAILURE_VARIABLE, error_of
from gda.runtime.reading import read_object
from gda.suitability import require_suitable_base, require_suitable_extractor
from gda.tracking.job import TrackedJob
from gda.tracking.runs import UNLOGGED, keep, record_job


@dataclass(frozen=True, kw_only=True)
class JobStep:
    """A step of the job: its name, command and output, and what the last run of it took, if there was one."""

    name: str
    words: tuple[str, ...]
    output: Path
    seconds: float | None = None
    peak_mib: float | None = None


def planned_steps(config: Config, until: str | None = None) -> list[JobStep]:
    """The steps of the job in order, an arm each for classify, up to and with `until`. Raises `UsageError` for an unknown name."""
    names = [node.name for node in GRAPH]
    if until is not None and until not in names:
        raise UsageError(f"--until {until}: no such stage; accepted: {', '.join(names)}")
    steps = []
    for node in GRAPH[: len(names) if until is None else names.index(until) + 1]:
        items = [{"arm": str(arm)} for arm in config.classify.arms] if node.matrix else [{}]
        steps += [_planned(node, config, item) for item in items]
    return steps


def run_project(config: Config, *, until: str | None = None) -> None:
    """Do the job in the current folder, first the snapshot, then a check that base and extractor are there and suit the images.

    In MLflow the runs of its stages lie below one run of the job. Raises the error of the stage that failed.
    """
    steps, job = planned_steps(config, until), TrackedJob.begin(f"gda run {Path.cwd().name}")
    by_dvc = Path(".dvc").is_dir() and Path("dvc.yaml").is_file()
    done = False
    try:
        _run(steps[:1], "snapshot", job, by_dvc=by_dvc)
        if len(steps) > 1:
            require_ready(config)
            _run(steps[1:], until, job, by_dvc=by_dvc)
        done = True
    finally:
        metrics, files = _results() if done and until is None else ({}, ())
        keep(record_job(job, metrics=metrics, files=files, failed=not done), work_root() / UNLOGGED)


def _results() -> tuple[dict[str, float], tuple[str, ...]]:
    """What the job's run shows: accuracy and gain of every arm, CAS, the decision, and the report."""
    metrics = read_document(Path(EVALUATION) / "metrics.json", Metrics)
    decision = read_document(Path(PROMOTION) / "decision.json", Decision)
    found = {f"top1_{str(arm).replace('+', '_')}": result.mean for arm, result in metrics.arms.items()}
    found |= {f"gain_{str(arm).replace('+', '_')}": gain.mean for arm, gain in metrics.gain.items()}
    found |= {"cas": metrics.cas, "promoted": float(decision.promoted)}
    report = Path(EVALUATION) / "report.html"
    return {name: value for name, value in found.items() if value is not None}, (str(report.absolute()),)


def require_ready(config: Config) -> None:
    """Raise what the job would raise later, before time is spent: a base or extractor that is missing or does not suit the images."""
    real = Snapshot.open(Path(REAL))
    require_suitable_base(config, config.finetune.base, real)
    require_suitable_extractor(config, real)
    read_card(config.finetune.base)
    configured_extractor(config)


def describe_plan_of_run(config: Config, until: str | None = None) -> Iterator[str]:
    """What `gda run --dry-run` prints: each step, whether its output is there, and time, memory and disk of its last run."""
    changed = _changed() if Path(".dvc").is_dir() else None
    yield f"{'step':<28}{'state':<14}{'last time':>11}{'peak memory':>13}{'on disk':>10}"
    total = 0.0
    for step in planned_steps(config, until):
        there = step.output.exists()
        state = (
            "to run" if not there or (changed is not None and step.name in changed) else "up to date" if changed is not None else "there"
        )
        total += step.seconds or 0.0
        seconds = f"{step.seconds:,.0f} s" if step.seconds is not None else "-"
        memory = f"{step.peak_mib:,.0f} MiB" if step.peak_mib is not None else "-"
        disk = f"{_size(step.output) / 2**20:,.1f} MiB" if there else "-"
        yield f"{step.name:<28}{state:<14}{seconds:>11}{memory:>13}{disk:>10}"
    yield f"{'all that ran before':<42}{total:>9,.0f} s"


def _planned(node: Node, config: Config, item: dict[str, str]) -> JobStep:
    values = dump_config(config)
    words = command_words(node, value=lambda name: str(_value(values, name)), item=item)
    output = Path(words[words.index("--out") + 1])
    name = f"{node.name} {item['arm']}" if item else node.name
    seconds, peak = _last(node.stage, output)
    return JobStep(name=name, words=tuple(words), output=output, seconds=seconds, peak_mib=peak)


def _value(values: dict[str, Any], name: str) -> Any:
    section, _, key = name.partition(".")
    return values[section][key]


def _last(stage: str, output: Path) -> tuple[float | None, float | None]:
    """Seconds and peak memory of the last run; of the seeds of an arm their sum and their largest."""
    found = [
        *(work_root() / "timings").glob(f"{stage}-{output.name}.json"),
        *(work_root() / "timings").glob(f"{stage}-{output.name}-*.json"),
    ]
    if not found:
        return None, None
    records = [read_object(path) for path in found]
    return sum(float(each["seconds"]) for each in records), max(float(each["peak_mib"]) for each in records)


def _run(steps: Sequence[JobStep], target: str | None, job: TrackedJob, *, by_dvc: bool) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        failure = Path(scratch) / "failure.json"
        environment = {**os.environ, FAILURE_VARIABLE: str(failure), "DVC_NO_ANALYTICS": "1", **job.environment()}
        if by_dvc:
            if (dvc := find_dvc()) is None:
                raise MissingError("dvc is not installed next to gda; pip install dvc")
            code = subprocess.run([*dvc, "repro", *([target] if target else [])], env=environment).returncode
            _require_done(code, failure, "dvc repro")
            return
        for step in steps:
            code = subprocess.run([sys.executable, "-m", "gda", *step.words], env=environment).returncode
            _require_done(code, failure, f"gda {step.words[0]}")


def find_dvc() -> list[str] | None:
    """The command `dvc` of this environment; None without it."""
    beside = Path(sys.executable).with_name("dvc")
    found = str(beside) if beside.is_file() else shutil.which("dvc")
    return [found] if found else None


def _require_done(code: int, failure: Path, command: str) -> None:
    if code == 0:
        return
    if failure.is_file():
        content = read_object(failure)
        raise error_of(
            int(content["exit_code"]), f"stopped in gda {content['command']}, whose message is above; then `gda run` goes on from there"
        )
    raise error_of(code, f"{command} ended with code {code}; its messages are above")


def _changed() -> set[str]:
    """Names of the steps that DVC would run again because something changed, without those that follow from them."""
    if (dvc := find_dvc()) is None:
        return set()
    result = subprocess.run([*dvc, "status", "--json"], capture_output=True, text=True)
    try:
        found = json.loads(result.stdout or "{}")
    except ValueError:
        return set()
    return {name.replace("classify@", "classify ") for name in found}


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size


def read_project_config(overrides: Sequence[str] = ()) -> Config:
    """The configuration of the project in the current folder. Raises `UsageError` where there is none."""
    if not Path(PARAMS).is_file():
        raise UsageError(f"{Path.cwd()}: no {PARAMS} here; `gda init path/to/images` makes a project")
    return load_config(Path(PARAMS), tuple(overrides))
