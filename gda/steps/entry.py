"""What components call in addition to the steps of the flow: configuring a run, planning its fan-outs, refusing, reporting."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gda.artifacts.document import read_document
from gda.artifacts.verdict import Verdict
from gda.config.load import Config, dump_config, parse_config
from gda.data.store.snapshot import Snapshot
from gda.errors import ConfigError, DataError, UsageError
from gda.flow import ACCEPTED, EVALUATION, EXTRA_NODES, GENERATOR, GRAPH, REAL, TUNING, VALIDATION, ZERO_SHOT
from gda.io.atomic import write_bytes
from gda.runtime.reading import as_object, parse_json
from gda.stages.inputs import contents_of
from gda.steps.form import FORM, step_settings
from gda.steps.graph import CLASSIFY, config_of, parse_reference
from gda.steps.record import config_of_run, configure_run, find_run
from gda.steps.report import report_run
from gda.steps.step import FileArtifact, Place
from gda.steps.trace import trace

# Workers of a job, or pods of a loop in a small pipeline: above it the loop's own bookkeeping outgrows what a cluster's store takes
# (kubeflow/pipelines#12131).
MOST_WORKERS = 50
# Most pods of each loop of augment; its workflow is large even without loops (`pipelines.size`).
MOST_PODS = 12
# Steps that separate pipelines run after a run.
_CHANGEABLE = ("evaluate", "promote", "ratio", "tune")


def configured(given: Mapping[str, Any], *, summary: FileArtifact) -> tuple[str, ...]:
    """The code, and each step's settings, in the order of the flow. `given` are all arguments of the component."""
    place = Place.at(given["data_root"])
    code = f"{given['code_version']} in {given['image']}"
    form = {name: given[name] for name in FORM}
    named = {name: given[name] for name in ("run", "run_id", "title")}
    config, outside = configure_run(form, given["settings"], data_root=place.root, code=code, **named)
    if (arms := len(config.classify.arms)) > MOST_PODS:  # each has a pod at least; refused before anything is generated
        raise ConfigError(f"classify.arms: {arms} arms; a run of the pipeline compares at most {MOST_PODS}")
    by_step = step_settings(config, outside)
    lines = [
        f"# Run {given['run']}",
        "",
        f"Id {given['run_id']}, title {given['title']}. Code {code}.",
        "",
        "| Field | Value |",
        "|---|---|",
    ]
    lines += [f"| {name} | {value} |" for name, value in form.items()]
    lines += ["", "```json", json.dumps(config.model_dump(mode="json", by_alias=True), indent=1), "```", ""]
    write_bytes(Path(summary.path), "\n".join(lines).encode())
    return (code, *(by_step[node.name] for node in GRAPH if node.name == CLASSIFY or not node.matrix))


def planned(*, snapshot: str, settings: str, num_workers: int, data_root: str, code: str, summary: FileArtifact) -> list[str]:
    """The workers that sample the synthetic set, as `I/N`; at most one per shard. Raises `UsageError` for fewer than 1 or more than 12."""
    from gda.generator.planning.plan_text import describe_plan
    from gda.generator.sampling.request import plan_for

    require_workers("sample_workers", num_workers, MOST_PODS)
    Place.at(data_root)
    config = config_of(settings)
    plan = plan_for(config, Snapshot.open(parse_reference(snapshot, role="snapshot").path))
    count = min(num_workers, len(plan.shards))
    lines = describe_plan(plan, None, None, workers=count)
    write_bytes(
        Path(summary.path), "\n".join(["# The synthetic set", "", *[f"- {line}" for line in lines], "", f"Code {code}.", ""]).encode()
    )
    return [f"{index}/{count}" for index in range(count)]


def rejected(verdict: str, *, summary: FileArtifact, page: FileArtifact) -> str:
    """Say why the synthetic set was refused; returns the reasons as one text."""
    folder = parse_reference(verdict, role="verdict").path
    reasons = read_document(folder / "verdict.json", Verdict).reasons
    write_bytes(Path(summary.path), "\n".join(["# The synthetic set was refused", "", *[f"- {reason}" for reason in reasons], ""]).encode())
    write_bytes(Path(page.path), (folder / "index.html").read_bytes())
    return "; ".join(reasons)


def reported(run: str, *, data_root: str, state: str, error: str, summary: FileArtifact, page: FileArtifact) -> None:
    """Write the outcome of `run` as text and as a page."""
    place = Place.at(data_root)
    outcome = report_run(run, data_root=place.root, state=state, error=error)
    write_bytes(Path(summary.path), outcome.markdown().encode())
    write_bytes(Path(page.path), outcome.html().encode())
    print(outcome.markdown())


def planned_points(settings: str, *, num_workers: int, summary: FileArtifact) -> list[str]:
    """The workers that measure the points of a sweep, as `I/N`; at most one a combination of values. Raises `UsageError` as `planned`."""
    tune = config_of(settings).tune
    require_workers("workers", num_workers)
    axes = {name: values for name, values in tune.model_dump(mode="json").items() if isinstance(values, list)}
    count = min(num_workers, math.prod(len(values) for values in axes.values()))
    rows = [f"| {name} | {', '.join(map(str, values))} |" for name, values in axes.items()]
    write_bytes(Path(summary.path), "\n".join(["# The sweep", "", "| Axis | Values |", "|---|---|", *rows, ""]).encode())
    return [f"{index}/{count}" for index in range(count)]


def require_workers(name: str, number: int, most: int = MOST_WORKERS) -> None:
    """Raises `UsageError` that names the parameter, for fewer than one worker and for more than a loop may have."""
    if not 1 <= number <= most:
        raise UsageError(f"{name} {number}: accepted: 1 to {most}")


def looked_up(run: str, settings: str, *, accepted: str, data_root: str, summary: FileArtifact) -> dict[str, Any]:
    """References to what `run` made, by role, and the settings of steps after it: as in that run, with the JSON object `settings` over it.

    `accepted` are the sections that the settings may be of, separated by spaces. Raises `DataError` if the run did not reach its
    verdict, `ConfigError` for a wrong setting, and for one of another section, which the later steps do not read.
    """
    place = Place.at(data_root)
    record = find_run(place.root, run)
    run = record.run
    config = config_of_run(record)
    if config is None:
        raise DataError(f"run {run}: was never configured: {record.error}")
    steps = {step.name: step.record for step in trace(config, outside=record.outside, data_root=place.root, code=record.code)}
    outputs = {path: ref.text() for done in steps.values() if done is not None for path, ref in done.outputs.items()}
    if VALIDATION not in outputs:
        raise DataError(f"run {run}: did not get as far as its verdict; there is nothing to go on from")
    runs = [next(iter(done.outputs.values())).text() for name, done in steps.items() if name.startswith("classify-") and done is not None]
    changed = _with(config, settings, tuple(accepted.split()))
    watched = {role for node in (*GRAPH, *EXTRA_NODES) if node.name in _CHANGEABLE for role in node.watched}
    by_step = step_settings(changed, contents_of(changed, sorted(watched), hub_ids=False))
    write_bytes(Path(summary.path), "\n".join([f"# Run {run}", "", *[f"- {path}" for path in outputs], ""]).encode())
    made = {
        "snapshot": REAL,
        "generator": GENERATOR,
        "accepted": ACCEPTED,
        "zero_shot": ZERO_SHOT,
        "tuning": TUNING,
        "verdict": VALIDATION,
        "evaluation": EVALUATION,
    }
    references = {role: outputs.get(path, "") for role, path in made.items()}
    return references | {"runs": runs, "code": record.code} | {f"{name}_settings": by_step[name] for name in _CHANGEABLE}


def _with(config: Config, settings: str, accepted: tuple[str, ...]) -> Config:
    """`config` with other settings of the accepted sections."""
    content = dump_config(config)
    changes = as_object(parse_json(settings or "{}", "settings", error=ConfigError), "settings", error=ConfigError)
    for section, values in changes.items():
        if section not in accepted:
            raise ConfigError(f"settings: {section}: cannot be changed here; accepted: {', '.join(accepted) or 'none'}")
        content[section] |= as_object(values, f"settings: {section}", error=ConfigError)
    return parse_config(content, where="settings")
