"""One step of the job run by itself, as a pipeline's pod runs it: references in, references out, the data on a volume that all share.

`data_root` holds `steps/<step>/<key>/` (what a step wrote, under the flow's own names, with `step.json` written last), and `.gda`
(everything resumable). A step that finds its `step.json` is done; one that was killed goes on where the stage's own fingerprint left it.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gda.artifacts.contents import require_whole
from gda.artifacts.document import Document, read_document
from gda.artifacts.fingerprint import digest_of
from gda.artifacts.outcome import Outcome
from gda.bookkeeping import at_work, note, prepare_process
from gda.cli.stage_commands import build_parser
from gda.config.load import dump_config
from gda.data.test_split.ledger import LEDGER_FILE
from gda.errors import DataError, GdaError, TryAgainError, UsageError
from gda.io.atomic import write_bytes, write_json
from gda.runtime.disks import storage_problem
from gda.runtime.interruption import stop_requested
from gda.runtime.logs import set_up_logs
from gda.runtime.progress import reporting
from gda.runtime.reading import read_object
from gda.steps.graph import Reference, StepRequest, argv, config_of, make_step_request, output_paths, parse_reference
from gda.steps.retries import retrying
from gda.tracking.job import step_times

STEP_FILE, FAILURE_FILE, SETTINGS_FILE = "step.json", "failure.json", "settings.json"
# Files that say what an output holds, by their field `digest`, or by their whole content.
_WITH_DIGEST = ("snapshot.json", "generator.json", "classifier.json", "reference.json")
_WHOLE = ("verdict.json", "settings.json", "metrics.json", "decision.json", "skipped.json")
_PAGES = ("reports/validation/index.html", "reports/evaluation/report.html")
# Does a step's work elsewhere: called with the request, and the words that follow `gda` on its command line.
JobRunner = Callable[[StepRequest, Sequence[str]], None]
# The registry is queried each time.
_NEVER_REUSED = ("promote",)


class StepRecord(Document):
    """`step.json`: a step's request, what it wrote, and its closing line."""

    step: str
    key: str
    code: str
    inputs: dict[str, tuple[Reference, ...]]
    outputs: dict[str, Reference]
    summary: str
    metrics: dict[str, float]
    refused: bool
    seconds: float


class MetricsArtifact(Protocol):
    """What a pipeline renders as metrics."""

    def log_metric(self, metric: str, value: float) -> None: ...


class ConfusionArtifact(Protocol):
    """What a pipeline renders as a confusion matrix."""

    def log_confusion_matrix(self, categories: list[str], matrix: list[list[int]]) -> None: ...


class FileArtifact(Protocol):
    """A file that a pipeline renders as a page."""

    path: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """A finished step. `folder` is where its outputs lie under the flow's names."""

    record: StepRecord
    folder: Path
    reused: bool

    def reference(self, output: str | None = None) -> str:
        """The reference to `output` (a path of the flow; by default the step's own), as one line of JSON."""
        chosen = next(iter(self.record.outputs)) if output is None else output
        return self.record.outputs[chosen].text()

    def show(
        self, *, metrics: MetricsArtifact | None = None, summary: FileArtifact | None = None, page: FileArtifact | None = None
    ) -> None:
        """Write what a user interface shows of the step: its measures, a line of text with a table, and its HTML page."""
        for name, value in sorted(self.record.metrics.items()) if metrics is not None else ():
            metrics.log_metric(name, value)  # type: ignore[union-attr]
        if summary is not None:
            write_bytes(Path(summary.path), markdown(self).encode())
        if page is not None:
            (found,) = [self.folder / name for name in _PAGES if (self.folder / name).is_file()]
            write_bytes(Path(page.path), found.read_bytes())


@dataclass(frozen=True, kw_only=True)
class Place:
    """The volume that all steps of a run share, by its mount point."""

    root: Path

    @classmethod
    def at(cls, data_root: str) -> "Place":
        """Set this process up to work there. Raises `UsageError` for anything that is no absolute path."""
        root = Path(data_root.removeprefix("file://"))
        if "://" in data_root.removeprefix("file://") or not root.is_absolute():
            raise UsageError(f"data_root {data_root}: accepted: the absolute path at which every step mounts the shared volume")
        prepare_process()
        set_up_logs()
        os.environ["GDA_WORK_DIR"] = str(root / ".gda")
        os.environ.setdefault("GDA_LEDGER", str(root / LEDGER_FILE))  # a pod's own folders are gone with it
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        root.mkdir(parents=True, exist_ok=True)
        return cls(root=root)

    def folder(self, request: StepRequest) -> Path:
        """Where the outputs of `request` go."""
        return self.root / "steps" / request.name / request.key[:16]


def run_step(
    name: str,
    *,
    inputs: Mapping[str, str | Sequence[str]],
    settings: str,
    data_root: str,
    code: str,
    item: Mapping[str, str] | None = None,
    flags: tuple[str, ...] = (),
    share: tuple[int, int] | None = None,
    by: JobRunner | None = None,
    alongside: bool = False,
) -> Step:
    """Run the node `name` of the flow by the command line's own code, and return where its output is.

    `inputs` are references by role, as text; more than the node reads is fine. `settings` are its sections as JSON; `flags` are added
    to the flow's command. `share` (number of this worker, number of workers) samples a part of a synthetic set; the step without it
    completes and publishes the set. `by` has other processes do the work; the step then finds what they published. `alongside` trains
    the other seeds of a classifier's arm with it; their own steps then only publish. Temporary failures (exit code 75) are retried here,
    with pauses (`retrying`). Raises what the stage or `by` raises, after leaving the reason in `failure.json`.
    """
    place = Place.at(data_root)
    given = {role: references(role, text) for role, text in inputs.items()}
    request = make_step_request(name, inputs=given, settings=settings, code=code, item=item or {}, flags=flags)
    folder = place.folder(request)
    if (done := finished(folder)) is not None and request.node.stage not in _NEVER_REUSED:
        for path in done.outputs:
            require_whole(folder / path, advice=f"remove {folder} and run the step again")
        return Step(record=done, folder=folder, reused=True)
    interrupted = f"{request.name}: interrupted; run again, it continues where it stopped"
    try:
        return retrying(request.name, lambda: _run(request, folder, share, by, alongside))
    except Exception as error:
        if stop_requested():
            raise TryAgainError(interrupted) from None
        known = error if isinstance(error, GdaError) else storage_problem(error)
        if known is None:
            raise
        write_json(_made(folder) / FAILURE_FILE, {"step": request.name, "error": str(known), "exit_code": known.exit_code})
        raise known from None
    except KeyboardInterrupt:
        raise TryAgainError(interrupted) from None


def finished(folder: Path) -> StepRecord | None:
    """The record of the step in `folder`, or None where it has not finished or its output was taken away."""
    if not (folder / STEP_FILE).is_file():
        return None
    record = read_document(folder / STEP_FILE, StepRecord)
    return record if all(reference.path.exists() for reference in record.outputs.values()) else None


def content_digest(path: Path) -> str:
    """Digest of the output in the folder `path`, from the small file that says what it holds. Raises `DataError`."""
    for name in _WITH_DIGEST + _WHOLE:
        if (file := path / name).is_file():
            content = read_object(file)
            if name in _WHOLE:
                return digest_of(content)
            if not isinstance(content.get("digest"), str):
                raise DataError(f"{file}: damaged")
            return str(content["digest"])
    raise DataError(f"{path}: holds none of {', '.join(_WITH_DIGEST + _WHOLE)}")


def references(role: str, text: str | Sequence[str]) -> tuple[Reference, ...]:
    """The references in one text, or in several; empty texts are none. Raises `UsageError` that names the role."""
    texts = (text,) if isinstance(text, str) else tuple(text)
    return tuple(parse_reference(one, role=role) for one in texts if one)


def _run(request: StepRequest, folder: Path, share: tuple[int, int] | None, by: JobRunner | None, alongside: bool) -> Step:
    for role, references in request.inputs.items():
        for reference in references:
            _require(role, reference)
    config = config_of(request.settings)
    words = argv(request, folder) + (["--worker", str(share[0]), "--workers", str(share[1])] if share else [])
    words += ["--all-seeds"] if alongside else []
    args = build_parser().parse_args([*words, "--quiet"])
    args.progress = True
    started = time.perf_counter()
    if by is not None:
        write_json(_made(folder) / SETTINGS_FILE, dump_config(config))
        by(request, [*words, "--params", str(folder / SETTINGS_FILE), "--quiet"])
    with at_work(args, config):
        with reporting(request.name), step_times() as times:
            outcome: Outcome = args.runner(config, args)
        seconds = time.perf_counter() - started
        if (problem := note(args, config, outcome, seconds, times)) is not None:
            print(f"{request.name}: {problem}")
    record = _record(request, folder, outcome, seconds)
    if share is None or outcome.digest:  # else this worker's part is done, and others still work
        write_bytes(_made(folder) / STEP_FILE, (record.model_dump_json(indent=2) + "\n").encode())
        (folder / FAILURE_FILE).unlink(missing_ok=True)
    return Step(record=record, folder=folder, reused=outcome.reused)


def _record(request: StepRequest, folder: Path, outcome: Outcome, seconds: float) -> StepRecord:
    own, *more = output_paths(request)
    outputs = {own: Reference(uri=str(folder / own), digest=outcome.digest)}
    outputs |= {path: Reference(uri=str(folder / path), digest=content_digest(folder / path)) for path in more}
    return StepRecord(
        step=request.name,
        key=request.key,
        code=request.code,
        inputs=dict(request.inputs),
        outputs=outputs,
        summary=outcome.summary.replace(f"{folder}/", ""),
        metrics=dict(outcome.metrics),
        refused=outcome.refused,
        seconds=round(seconds, 3),
    )


def _require(role: str, reference: Reference) -> None:
    """Refuse an input that differs from its reference: it was overwritten, or the reference is of another run."""
    found = content_digest(reference.path)
    if found != reference.digest:
        raise DataError(f"{role}: {reference.uri} holds {found[:12]}, but {reference.digest[:12]} was requested")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def markdown(step: Step) -> str:
    """What the step did, for people: a line, its measures, where its outputs are."""
    record = step.record
    lines = [f"# {record.step}", "", f"{'**Refused.** ' if record.refused else ''}{record.summary}", ""]
    if record.metrics:
        lines += ["| Measure | Value |", "|---|---|"]
        lines += [f"| {name} | {value:.6g} |" for name, value in sorted(record.metrics.items())]
        lines.append("")
    lines += ["| Output | Digest | Where |", "|---|---|---|"]
    lines += [f"| {path} | `{ref.digest[:12]}` | `{ref.uri}` |" for path, ref in record.outputs.items()]
    took = "found finished" if step.reused else f"{record.seconds:.1f} s"
    return "\n".join([*lines, "", f"{took}; code {record.code}", ""])


def log_confusion(step: Step, artifact: ConfusionArtifact, *, settings: str) -> None:
    """Show how often images of a class are taken for another by the classifiers of the declared arm, over all their seeds."""
    import csv

    arm = config_of(settings).promote.arm
    with (step.folder / "reports/evaluation/confusion.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["arm"] == arm]
    names = list(json.loads((step.folder / "reports/evaluation/metrics.json").read_bytes())["classes"])
    matrix = [[0] * len(names) for _ in names]
    for row in rows:
        matrix[names.index(row["class"])][names.index(row["predicted"])] = int(row["images"])
    artifact.log_confusion_matrix(names, matrix)
