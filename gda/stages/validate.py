"""`validate`: may a synthetic set be used for training? Measures it, judges it, and shows why."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from gda.artifacts import GeneratorCard, Outcome, Verdict, dump_document, read_document
from gda.config import Config
from gda.data.snapshot import Snapshot
from gda.errors import ConfigError, RefusedError
from gda.fidelity.expectations import Plan
from gda.fidelity.extractors import get_extractor
from gda.fidelity.inspection import Inspection, inspect_set
from gda.fidelity.page import class_table, render_page, suspect_table
from gda.fidelity.reference import Reference, build_reference
from gda.generator.configured import plan_for, prompts_of
from gda.generator.directory import drawn_side, read_card, resolve
from gda.io.publish import Workspace, exclusive, prepare, publish, write_bytes
from gda.recipe import Recipe, bits_environment, digest_of

VERDICT, PAGE, EXPECTATIONS = "verdict.json", "index.html", "expectations.json"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What a set's plan asked for: images by label, and the strengths that occur, 0 for images that start from noise."""

    counts: tuple[int, ...]
    strengths: tuple[float, ...]


def run(
    config: Config,
    *,
    synthetic: Path,
    snapshot: Path,
    reference: Path | None = None,
    generator: str | Path | None = None,
    out: Path,
    strict: bool = False,
    progress: bool = False,
) -> Outcome:
    """Write `verdict.json`, `index.html`, `expectations.json`, `classes.csv`, `suspects.csv` and `data_docs/` into `out`.

    Without `reference` one is computed in the work folder. A refusal is a result: `Outcome.refused`; with `strict` it is a
    `RefusedError`, after the output is in place. Raises `DataError` for snapshots that are damaged or do not belong together.
    """
    real, fake = Snapshot.open(snapshot), Snapshot.open(synthetic)
    planned = _plan_drawn(config, fake, real)
    config = _with_planned_ratio(config, planned)
    plan = plan_of(fake, real, generator, planned)
    given = Reference.open(reference) if reference is not None else None
    workspace = prepare(_recipe(config, fake, real, given, plan), out)
    if not workspace.finished:
        with exclusive(workspace):
            found = given if given is not None else _computed_reference(config, real, workspace, progress=progress)
            _write(workspace.fresh_staging(), config, fake, real, found, plan)
            publish(workspace)
    verdict = read_document(out / VERDICT, Verdict)
    if strict and not verdict.passed:
        raise RefusedError(f"{synthetic}: refused: {'; '.join(verdict.reasons)} (see {out / PAGE})")
    return _outcome(out, verdict, reused=workspace.finished)


def plan_of(fake: Snapshot, real: Snapshot, generator: str | Path | None, planned: Planned | None) -> Plan:
    """What the set should be: the real set's classes, what its plan asked for, the generator it should come from, its size and prompts."""
    return Plan(
        count=sum(planned.counts) if planned is not None else sum(shard.count for shard in fake.index.shards),
        classes=tuple(info.name for info in real.classes),
        counts=planned.counts if planned is not None else None,
        prompts=prompts_of(_card_of(str(generator)), real.classes) if generator is not None else None,
        strengths=planned.strengths if planned is not None else None,
        size=_drawn_size(generator) if generator is not None else None,
        generator_digest=_expected_digest(fake, str(generator)) if generator is not None else None,
    )


def _with_planned_ratio(config: Config, planned: Planned | None) -> Config:
    """The limit of class balance as a multiple of what the plan itself asked for: quotas need not be equal."""
    if planned is None:
        return config
    limit = config.validate_.max_class_ratio * max(planned.counts) / min(planned.counts)
    return config.model_copy(update={"validate_": config.validate_.model_copy(update={"max_class_ratio": limit})})


def _expected_digest(fake: Snapshot, generator: str) -> str:
    """Digest of the generator, or of the average of its weights that the set says it was drawn from."""
    digest, said = _card_of(generator).digest, fake.index.provenance
    return said["generator"] if said.get("generator_averaged_from") == digest else digest


def _plan_drawn(config: Config, fake: Snapshot, real: Snapshot) -> Planned | None:
    """What the configured plan asks for, when the set was drawn by it; None for a set drawn otherwise."""
    for zero_shot in (False, True):
        try:
            plan = plan_for(config, real, zero_shot=zero_shot)
        except ConfigError:
            continue
        if plan.digest == fake.index.plan_digest:
            images = [image for shard in plan.shards for image in shard.images]
            labels = Counter(image.label for image in images)
            return Planned(
                counts=tuple(labels[label] for label in range(len(real.classes))),
                strengths=tuple(sorted({image.strength if image.source_label is not None else 0.0 for image in images})),
            )
    return None


def _card_of(generator: str) -> GeneratorCard:
    """What an exported generator says of itself, else what is reckoned from the weights of a base."""
    stored = Path(generator) / "generator.json"
    return read_document(stored, GeneratorCard) if stored.is_file() else read_card(generator)


def _drawn_size(generator: str | Path) -> tuple[int, int] | None:
    """Width and height that the generator draws, whatever size the real images have: every later stage resizes both sets alike."""
    side = drawn_side(resolve(str(generator)))
    return None if side is None else (side, side)


def _recipe(config: Config, fake: Snapshot, real: Snapshot, reference: Reference | None, plan: Plan) -> Recipe:
    # A reference that is computed here depends on how classifiers are trained; a given one is named by its digest.
    section = {"validate": config.validate_.model_dump(mode="json"), "seed": config.seed, "image_size": config.classify.image_size}
    if reference is None:
        section |= {"reference": config.reference.model_dump(mode="json"), "classify": config.classify.model_dump(mode="json")}
    asked = {"count": plan.count, "counts": plan.counts, "strengths": plan.strengths}
    planned = asked | {"prompts": plan.prompts, "generator": plan.generator_digest}
    inputs = {"synthetic": fake.digest, "snapshot": real.digest, "extractor": get_extractor(config.validate_.extractor).digest}
    if reference is not None:
        inputs["reference"] = reference.index.digest
    # The manifest holds what the content digest leaves out (seeds, settings), and the expectations read it.
    inputs["manifest"] = fake.index.manifest_sha256
    return Recipe(
        stage="validate", config=section | {"plan": planned}, inputs=inputs, environment=bits_environment("timm", "great_expectations")
    )


def _computed_reference(config: Config, real: Snapshot, workspace: Workspace, *, progress: bool) -> Reference:
    folder = workspace.work / "reference"
    if not (folder / "reference.json").is_file():
        build_reference(config, real, folder, work=workspace.work / "folds", progress=progress)
    return Reference.open(folder)


def _write(folder: Path, config: Config, fake: Snapshot, real: Snapshot, reference: Reference, plan: Plan) -> None:
    found = inspect_set(config, synthetic=fake, real=real, reference=reference, plan=plan)
    verdict = found.verdict(config, synthetic_digest=fake.digest, real_digest=real.digest)
    names = [info.name for info in real.classes]
    classes = class_table(found, names, reference.index.agreement_by_class)
    write_bytes(folder / "classes.csv", _csv(classes))
    write_bytes(folder / "suspects.csv", _csv(suspect_table(found, names)))
    _write_expectations(folder, found)
    write_bytes(folder / PAGE, render_page(verdict, found, classes).encode())
    write_bytes(folder / VERDICT, dump_document(verdict))


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
    said = (
        "passed"
        if verdict.passed
        else f"refused: {verdict.reasons[0]}" + (f" (and {len(verdict.reasons) - 1} more reasons)" if len(verdict.reasons) > 1 else "")
    )
    return Outcome(
        output=out,
        digest=digest_of(verdict.model_dump(mode="json")),
        summary=f"{'kept' if reused else 'wrote'} {out}: {said}",
        metrics={name: measure.value for name, measure in verdict.metrics.items() if measure.value is not None},
        files=(out / VERDICT, out / PAGE),
        reused=reused,
        refused=not verdict.passed,
    )
