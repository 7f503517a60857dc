"""The outcome of a run, as its last step shows it: the report of the comparison, or where the run stopped and why."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gda.artifacts.decision import Decision
from gda.artifacts.document import read_document
from gda.artifacts.verdict import Verdict
from gda.errors import DataError
from gda.flow import EVALUATION, PROMOTION, VALIDATION
from gda.steps.record import PipelineRunRecord, config_of_run, read_run
from gda.steps.trace import Traced, trace

REPORT = f"{EVALUATION}/report.html"


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """How a run ended: a headline, the reasons in sentences, and every step. `page` is the comparison's own report where there is one.

    `named` states the run's name for pipelines that go on from it; empty if none can.
    """

    headline: str
    sentences: tuple[str, ...]
    steps: tuple[Traced, ...]
    page: Path | None = None
    named: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The outcome and a table of the steps."""
        lines = [f"# {self.headline}", "", *[f"- {sentence}" for sentence in self.sentences], "", *self.named]
        return "\n".join(
            [*lines, "| Step | Outcome | Message |", "|---|---|---|", *[f"| {' | '.join(_row(step))} |" for step in self.steps], ""]
        )

    def html(self) -> str:
        """One self-contained page: the comparison's report where there is one, else the outcome and the steps."""
        if self.page is not None:
            return self.page.read_text("utf-8")
        items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in self.sentences)
        rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _row(step))}</tr>" for step in self.steps)
        return _PAGE.format(headline=html.escape(self.headline), items=items, rows=rows)


def report_run(run: str, *, data_root: Path, state: str, error: str) -> RunReport:
    """Look a run up on its volume. `state` and `error` are what the pipeline reports; an error that a step left is more precise."""
    try:
        record = read_run(data_root, run)
    except DataError:
        return RunReport(headline="The run did not get as far as its configuration", sentences=_messages(error), steps=())
    return replace(_outcome(record, data_root=data_root, state=state, error=error), named=_named(record))


def _named(record: PipelineRunRecord) -> tuple[str, ...]:
    also = [f"{what} {value}" for what, value in (("id", record.run_id), ("title", record.title)) if value and value != record.run]
    others = f" ({', '.join(also)})" if also else ""
    return (
        f"This run is `{record.run}`{others}. Other pipelines go on from it by that name, as in"
        f" `python -m pipelines run promote --param run={record.run} --service-account gda-promote`.",
        "",
    )


def _outcome(record: PipelineRunRecord, *, data_root: Path, state: str, error: str) -> RunReport:
    config = config_of_run(record)
    if config is None:
        return RunReport(headline="The run was refused: its configuration is wrong", sentences=_messages(record.error or error), steps=())
    steps = tuple(trace(config, outside=record.outside, data_root=data_root, code=record.code))
    by_name = {step.name: step for step in steps}
    if failed := [step for step in steps if step.error]:
        sentences = tuple(f"{step.name}: {step.error}" for step in failed)
        return RunReport(headline=f"The run failed at {', '.join(step.name for step in failed)}", sentences=sentences, steps=steps)
    if (verdict := _verdict(by_name["validate"])) is not None and not verdict.passed:
        return RunReport(headline="The synthetic set was refused; no classifier was trained on it", sentences=verdict.reasons, steps=steps)
    if (evaluated := by_name["evaluate"]).record is not None and evaluated.folder is not None:
        headline, sentences = _decided(by_name["promote"])
        return RunReport(headline=headline, sentences=sentences, steps=steps, page=evaluated.folder / REPORT)
    stopped = next((step.name for step in steps if step.record is None), "")
    headline = f"The run ended ({state.lower() or 'state unknown'}) before {stopped} was done"
    return RunReport(headline=headline, sentences=_messages(error), steps=steps)


def _verdict(step: Traced) -> Verdict | None:
    if step.record is None or step.folder is None:
        return None
    return read_document(step.folder / VALIDATION / "verdict.json", Verdict)


def _decided(step: Traced) -> tuple[str, tuple[str, ...]]:
    if step.record is None or step.folder is None:
        return "The comparison is done; nothing was registered", ()
    decision = read_document(step.folder / PROMOTION / "decision.json", Decision)
    version = f"{decision.model_name} version {decision.model_version}"
    if decision.promoted:
        return f"{version} is a challenger that passed the gate", (f"compared with {decision.rival}",)
    return f"{version} is a challenger that did not pass the gate", decision.reasons


def _messages(error: str) -> tuple[str, ...]:
    return (error,) if error else ()


def _row(step: Traced) -> Sequence[str]:
    if step.record is not None:
        return step.name, "refused" if step.record.refused else "done", step.record.summary
    return (step.name, "failed", step.error) if step.error else (step.name, "not done", "")


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{headline}</title><style>
body {{ margin: 0 auto; max-width: 960px; padding: 28px 20px 64px; color: #202124; font: 16px/1.55 system-ui, sans-serif; }}
h1 {{ font-size: 22px; border-left: 6px solid #b3261e; padding-left: 16px; }}
table {{ border-collapse: collapse; width: 100%; font-size: 14.5px; }}
td, th {{ text-align: left; padding: 7px 12px 7px 0; border-bottom: 1px solid #e4e6e9; vertical-align: top; overflow-wrap: anywhere; }}
th, td:first-child, td:nth-child(2) {{ white-space: nowrap; overflow-wrap: normal; }}
</style></head><body>
<h1>{headline}</h1>
<ul>{items}</ul>
<table><tr><th>Step</th><th>Outcome</th><th>Message</th></tr>{rows}</table>
</body></html>
"""
