"""A run of the pipeline, found again on its volume: which steps finished, which failed and why, which were never reached."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gda.config.load import Config
from gda.errors import DataError
from gda.flow import CLASSIFIERS, GRAPH, Node
from gda.runtime.reading import read_object
from gda.steps.form import classifier_runs, step_settings
from gda.steps.graph import CLASSIFY, REGISTER_FLAGS, Outside, Reference, StepRequest, make_step_request, producer, roles
from gda.steps.step import FAILURE_FILE, StepRecord, finished


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A step as the run left it: its record where it finished, else the error it ended with, else nothing."""

    name: str
    record: StepRecord | None = None
    error: str | None = None
    folder: Path | None = None


def trace(config: Config, *, outside: Outside, data_root: Path, code: str) -> list[Traced]:
    """Every step of the run with this configuration, and what was `outside` the job when it began, in the order of the flow.

    Keys are computed as the steps compute them, so that no other input is needed; steps answered from a cache are found as well.
    Steps whose inputs are missing were not reached.
    """
    settings = step_settings(config, outside)
    found: dict[str, Traced] = {}
    for node, item in _steps(config):
        name = "-".join([CLASSIFY if node.matrix else node.name, *item.values()])
        request = _request(node, item, settings, code, found)
        found[name] = _look(name, data_root, request)
    return list(found.values())


def _steps(config: Config) -> Iterator[tuple[Node, dict[str, str]]]:
    for node in GRAPH:
        if not node.matrix:
            yield node, {}
        else:
            yield from ((node, run) for run in classifier_runs(config))


def _request(node: Node, item: dict[str, str], settings: dict[str, str], code: str, found: dict[str, Traced]) -> StepRequest | None:
    inputs: dict[str, tuple[Reference, ...]] = {}
    for role, path in roles(node, item).items():
        references = _found(path, found)
        if not references:
            return None
        inputs[role] = references
    name = CLASSIFY if node.matrix else node.name
    flags = REGISTER_FLAGS if node.name == "promote" else ()
    return make_step_request(name, inputs=inputs, settings=settings[name], code=code, item=item, flags=flags)


def _found(path: str, found: dict[str, Traced]) -> tuple[Reference, ...]:
    """References to the flow's `path`; empty where a step that writes it has not finished."""
    maker, output = producer(path)
    if output != CLASSIFIERS:
        record = found[maker].record
        return () if record is None else (record.outputs[output],)
    runs = [step.record for name, step in found.items() if name.startswith(f"{CLASSIFY}-")]
    return tuple(next(iter(record.outputs.values())) for record in runs if record is not None) if all(runs) else ()


def _look(name: str, data_root: Path, request: StepRequest | None) -> Traced:
    if request is None:
        return Traced(name=name)
    folder = data_root / "steps" / request.name / request.key[:16]
    if (record := finished(folder)) is not None:
        return Traced(name=name, record=record, folder=folder)
    return Traced(name=name, error=_failure(folder / FAILURE_FILE), folder=folder)


def _failure(path: Path) -> str | None:
    try:
        content = read_object(path)
    except DataError:
        return None
    return str(content.get("error", "")) or None
