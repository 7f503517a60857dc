"""`validate`: may a synthetic set be used for training? Measures it, assesses it, and shows why."""

import json
from functools import partial
from pathlib import Path

import pandas as pd

from gda.artifacts.contents import with_files
from gda.artifacts.document import dump_document, read_document
from gda.artifacts.fingerprint import Fingerprint, bits_environment, digest_of
from gda.artifacts.outcome import Outcome
from gda.artifacts.verdict import Verdict
from gda.config.classify import TWO_ORIGINS
from gda.config.load import Config
from gda.data.store.replace import link_snapshot
from gda.data.store.snapshot import Snapshot
from gda.errors import RefusedError, UsageError
from gda.fidelity.extractors import comparison_size, configured_extractor
from gda.fidelity.extractors.sscd import sscd_digest
from gda.fidelity.statistics_file import statistics_digest
from gda.gate.expectations import ExpectedSet
from gda.gate.inspection import Inspection, given_statistics, inspect_set
from gda.gate.page import class_table, render_page, suspect_table
from gda.gate.reference import LabelReference, build_reference
from gda.gate.rounds import Assessed, replace_rejected
from gda.generator.sampling.replace_rejected import Planned, Replacement, card_of, expected_digest, original_plan
from gda.generator.sampling.request import prompts_of
from gda.generator.weights.directory import generated_size, resolve
from gda.io.atomic import write_bytes
from gda.io.checked import read_checked_json, write_checked_json
from gda.io.publish import exclusive, publish
from gda.io.up_to_date import Workspace, prepare
from gda.suitability import require_suitable_extractor
from gda.training.networks.pretrained import weights_inputs

_VERDICT, PAGE, EXPECTATIONS = "verdict.json", "index.html", "expectations.json"


def run(
    config: Config,
    *,
    synthetic: Path,
    snapshot: Path,
    reference: Path | None = None,
    generator: str | Path | None = None,
    out: Path,
    accepted: Path | None = None,
    strict: bool = False,
    progress: bool = False,
) -> Outcome:
    """Write `verdict.json`, `index.html`, `expectations.json`, four tables (`*.csv`) and `data_docs/` into `out`.

    `accepted` gets the set that the verdict is about: the one at `synthetic`, or where `validate.on_fail` is replace_rejected what was made
    of it. Without `reference` one is computed in the work folder. A refusal is a result: `Outcome.refused`; with `strict` it is a
    `RefusedError`, after the output is in place. Raises `DataError` for snapshots that are damaged or do not belong together,
    `UsageError` where replace_rejected lacks `accepted`, the generator or the configuration by which the set was sampled.
    """
    real, fake = Snapshot.open(snapshot), Snapshot.open(synthetic)
    require_suitable_extractor(config, real)
    replacement = Replacement.of(config, fake, real, generator, accepted)
    planned = original_plan(config, fake, real)
    config = _with_planned_ratio(config, planned)
    plan = plan_of(fake, real, generator, planned)
    given = LabelReference.open(reference) if reference is not None else None
    workspace = prepare(_fingerprint(config, fake, real, given, plan), out)
    copy = _accepted_workspace(workspace, fake, accepted)
    if not workspace.finished:
        with exclusive(workspace):
            found = given if given is not None else _computed_reference(config, real, workspace, progress=progress)
            final = _assess(config, fake, real, found, plan, replacement, workspace)
            _publish_accepted(final.snapshot, copy)
            _write(workspace.fresh_staging(), real, found, final)
            publish(workspace)
    verdict = read_document(out / _VERDICT, Verdict)
    _require_accepted(verdict, fake, copy, out)
    if strict and not verdict.passed:
        raise RefusedError(f"{synthetic}: refused: {'; '.join(verdict.reasons)} (see {out / PAGE})")
    return _outcome(out, verdict, reused=workspace.finished)


def plan_of(fake: Snapshot, real: Snapshot, generator: str | Path | None, planned: Planned | None) -> ExpectedSet:
    """What the set should be: the real set's classes, its plan, the generator it should come from, its size and prompts."""
    return ExpectedSet(
        count=sum(planned.counts) if planned is not None else sum(shard.count for shard in fake.index.shards),
        classes=tuple(info.name for info in real.classes),
        counts=planned.counts if planned is not None else None,
        prompts=prompts_of(card_of(str(generator)), real.classes) if generator is not None else None,
        strengths=planned.strengths if planned is not None else None,
        size=_generated_size(generator) if generator is not None else None,
        generator_digest=expected_digest(fake, str(generator)) if generator is not None else None,
    )


def _with_planned_ratio(config: Config, planned: Planned | None) -> Config:
    """The limit of class balance as a multiple of the plan's own: quotas need not be equal."""
    if planned is None:
        return config
    limit = config.validate_.max_class_ratio * max(planned.counts) / min(planned.counts)
    return config.model_copy(update={"validate_": config.validate_.model_copy(update={"max_class_ratio": limit})})


def _generated_size(generator: str | Path) -> tuple[int, int] | None:
    """Width and height of the generator's images, whatever size the real images have: every later stage resizes both sets alike."""
    side = generated_size(resolve(str(generator)))
    return None if side is None else (side, side)


def _fingerprint(config: Config, fake: Snapshot, real: Snapshot, reference: LabelReference | None, plan: ExpectedSet) -> Fingerprint:
    # A reference that is computed here depends on how classifiers are trained; a given one is named by its digest.
    # Files are named by what is in them.
    thresholds = config.validate_.model_dump(
        mode="json", exclude={"extractor_weights", "force_extractor", "image_size", "reference_statistics", "sscd_weights"}
    )
    extractor = configured_extractor(config)
    section = {
        "validate": thresholds,
        "seed": config.seed,
        "image_size": config.classify.image_size,
        "compared_at": comparison_size(config, extractor),
    }
    if reference is None:
        section |= {"reference": config.reference.model_dump(mode="json"), "classify": config.classify.decided(exclude=TWO_ORIGINS)}
    # Lists, as a fingerprint has them when it is read again.
    lists = {name: None if getattr(plan, name) is None else list(getattr(plan, name)) for name in ("counts", "strengths", "prompts")}
    planned = {"count": plan.count, "generator": plan.generator_digest} | lists
    inputs = {"synthetic": fake.digest, "snapshot": real.digest, "extractor": extractor.digest}
    if config.validate_.sscd_weights is not None:
        inputs["sscd"] = sscd_digest(config.validate_.sscd_weights)
    inputs |= weights_inputs(config.classify) if reference is None else {"reference": reference.index.digest}
    if extractor.text is not None:
        inputs["texts"] = extractor.text.digest
    if (given := given_statistics(config, extractor)) is not None:
        inputs["statistics"] = statistics_digest(given)
    # The manifest holds what the content digest leaves out (seeds, settings), and the expectations read it.
    inputs["manifest"] = fake.index.manifest_sha256
    environment = bits_environment("timm", "great_expectations", *extractor.packages)
    return Fingerprint(stage="validate", config=section | {"plan": planned}, inputs=inputs, environment=environment)


def _computed_reference(config: Config, real: Snapshot, workspace: Workspace, *, progress: bool) -> LabelReference:
    folder, list_of = workspace.work / "reference", workspace.work / "reference-files.json"
    if read_checked_json(list_of) is None or read_checked_json(list_of) != with_files({}, folder):
        build_reference(config, real, folder, work=workspace.work / "folds", progress=progress)
        write_checked_json(list_of, with_files({}, folder))
    return LabelReference.open(folder)


def _assess(
    config: Config,
    fake: Snapshot,
    real: Snapshot,
    reference: LabelReference,
    plan: ExpectedSet,
    replacement: Replacement | None,
    workspace: Workspace,
) -> Assessed:
    def assess(snapshot: Snapshot) -> tuple[Inspection, Verdict]:
        found = inspect_set(config, synthetic=snapshot, real=real, reference=reference, plan=plan, scratch=workspace.work)
        return found, found.verdict(config, synthetic_digest=snapshot.digest, real_digest=real.digest)

    found, verdict = assess(fake)
    first = Assessed(snapshot=fake, found=found, verdict=verdict)
    if replacement is None:
        return first
    return replace_rejected(first, config.validate_, assess=assess, replace=partial(replacement.replace, work=workspace.work))


def _accepted_workspace(workspace: Workspace, fake: Snapshot, accepted: Path | None) -> Workspace | None:
    if accepted is None:
        return None
    inputs = {"synthetic": fake.digest, "validation": workspace.fingerprint.digest}
    return prepare(Fingerprint(stage="accepted", config={}, inputs=inputs), accepted)


def _publish_accepted(snapshot: Snapshot, copy: Workspace | None) -> None:
    if copy is not None and not copy.finished:
        with exclusive(copy):
            link_snapshot(snapshot, copy.fresh_staging())
            publish(copy)


def _require_accepted(verdict: Verdict, fake: Snapshot, copy: Workspace | None, out: Path) -> None:
    """The assessed set lies where the command wants it, also when an earlier command wrote the verdict without it."""
    if copy is None or copy.out.exists():
        return
    if verdict.synthetic_digest != fake.digest:
        raise UsageError(
            f"{copy.out}: the set of the verdict in {out} was sampled by an earlier command and is gone; remove {out} and run it again"
        )
    _publish_accepted(fake, copy)


def _write(folder: Path, real: Snapshot, reference: LabelReference, final: Assessed) -> None:
    found, names = final.found, [info.name for info in real.classes]
    classes = class_table(found, names, reference.index.agreement_by_class)
    write_bytes(folder / "classes.csv", _csv(classes))
    write_bytes(folder / "suspects.csv", _csv(suspect_table(found, names)))
    write_bytes(folder / "dropped.csv", _csv(_dropped_table(final)))
    _write_expectations(folder, found)
    write_bytes(folder / PAGE, render_page(final.verdict, found, classes).encode())
    write_bytes(folder / _VERDICT, dump_document(final.verdict))


def _dropped_table(final: Assessed) -> pd.DataFrame:
    rows = [(number, key, why) for number, flagged in enumerate(final.dropped, start=1) for key, why in flagged.items()]
    return pd.DataFrame(rows, columns=["round", "key", "reason"])


def _write_expectations(folder: Path, found: Inspection) -> None:
    structure = found.structure
    content = {
        "passed": structure is not None and not structure.failures,
        "failures": list(structure.failures) if structure is not None else found.failures,
        "results": list(structure.results) if structure is not None else [],
        "metrics": list(structure.metric_results) if structure is not None else [],
    }
    write_bytes(folder / EXPECTATIONS, (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())
    for name, text in (structure.docs if structure is not None else {}).items():
        path = folder / "data_docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text.encode())


def _csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False, lineterminator="\n", float_format="%.6g").encode()


def _outcome(out: Path, verdict: Verdict, *, reused: bool) -> Outcome:
    summary = (
        "passed"
        if verdict.passed
        else f"refused: {verdict.reasons[0]}" + (f" (and {len(verdict.reasons) - 1} more reasons)" if len(verdict.reasons) > 1 else "")
    )
    if verdict.filtering is not None:
        summary += f", after {sum(verdict.filtering.dropped.values())} images were replaced"
    return Outcome(
        output=out,
        digest=digest_of(verdict.model_dump(mode="json")),
        summary=f"{'kept' if reused else 'wrote'} {out}: {summary}",
        metrics={name: measure.value for name, measure in verdict.metrics.items() if measure.value is not None},
        files=(out / _VERDICT, out / PAGE),
        reused=reused,
        refused=not verdict.passed,
    )
