"""sample: draw a synthetic snapshot from a generator, shard by shard; any worker count, order or kill gives the same set."""

from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd

from gda.artifacts import DrawSettings, GeneratorCard, Outcome, Settings, read_document
from gda.config import Config
from gda.data.snapshot import Snapshot, commit_snapshot
from gda.errors import DataError, UsageError
from gda.generator.directory import read_card
from gda.generator.drawing import Drawing, ShardJob, draw_shard
from gda.generator.plan import Plan, equal_quotas, make_plan
from gda.generator.speed import Speed
from gda.io.publish import Workspace, prepare, publish
from gda.parallel import Bar, device_name, drawing_device, run_parallel, workers_of
from gda.recipe import Recipe, bits_environment


def run(
    config: Config,
    *,
    generator: str,
    snapshot: Path,
    settings: Path | None = None,
    out: Path,
    zero_shot: bool = False,
    worker: int = 0,
    workers: int = 1,
    progress: bool = False,
) -> Outcome:
    """Draw `sample.images_per_class` images a class and publish them as a synthetic Snapshot at `out`.

    With `workers` > 1 this process draws the shards of number `worker` modulo `workers`; whoever commits the last one publishes.
    Raises `UsageError` when neither `sample.guidance_scale` nor tuned settings say the guidance, `DataError` on NaN images.
    """
    real, card = Snapshot.open(snapshot), read_card(generator)
    plan = plan_for(config, real, zero_shot=zero_shot)
    drawing = _drawing(config, real, card, generator=generator, settings=settings)
    workspace = prepare(_recipe(config, plan, drawing), out)
    if workspace.finished:
        return Outcome(output=out, digest=Snapshot.open(out).digest, summary=f"{out} is up to date", reused=True)

    drawing = replace(drawing, folder=workspace.staging)
    jobs = [ShardJob(drawing=drawing, shard=shard) for shard in plan.shards]
    mine = [job for job in jobs if job.shard.number % workers == worker]
    with Bar(sum(len(job.shard.images) for job in mine), f"sample {out.name}", unit="image", shown=progress):
        run_parallel(draw_shard, mine, workers=workers_of(drawing.device))
    if workers > 1 and not all(job.rows() is not None for job in jobs):
        return Outcome(
            output=out, digest="", summary=f"drew {len(mine)} of {len(jobs)} shards; {out} is published when the other workers are done"
        )
    repaired = _redraw_damaged(jobs)
    return _commit(workspace, jobs, plan, real, card, repaired)


def _redraw_damaged(jobs: list[ShardJob]) -> list[str]:
    """Shards whose bytes changed since they were drawn are drawn again; their names are returned."""
    damaged = [job for job in jobs if job.rows(checked=True) is None]
    for job in damaged:
        job.sidecar.unlink(missing_ok=True)
        job.path.unlink(missing_ok=True)
    run_parallel(draw_shard, damaged, workers=workers_of(jobs[0].drawing.device))
    return [job.shard.name for job in damaged]


def _drawing(config: Config, real: Snapshot, card: GeneratorCard, *, generator: str, settings: Path | None) -> Drawing:
    sample = config.sample
    return Drawing(
        generator=generator,
        generator_digest=card.digest,
        classes=real.classes,
        prompts=tuple(card.prompts.get(info.name, info.prompt_name) for info in real.classes),
        settings=draw_settings(config, settings, card),
        speed=Speed(precision=sample.precision, compile=sample.compile),
        device=drawing_device(),
        folder=Path(),
    )


def _recipe(config: Config, plan: Plan, drawing: Drawing) -> Recipe:
    asked = {
        "settings": drawing.settings.model_dump(mode="json"),
        "prompts": list(drawing.prompts),
        "batch_size": config.sample.batch_size,
        "shard_size": config.sample.shard_size,
        "plan": plan.digest,
        **asdict(drawing.speed),
    }
    environment = bits_environment("diffusers", "transformers", device=device_name(drawing.device))
    return Recipe(stage="sample", config=asked, inputs={"generator": drawing.generator_digest}, environment=environment)


def plan_for(config: Config, real: Snapshot, *, zero_shot: bool = False) -> Plan:
    """The plan of the synthetic set, or of the zero-shot control."""
    sample = config.sample
    count = sample.zero_shot_images_per_class if zero_shot and sample.zero_shot_images_per_class else sample.images_per_class
    return make_plan(
        equal_quotas([info.name for info in real.classes], count),
        seed=config.seed,
        shard_size=sample.shard_size,
        batch_size=sample.batch_size,
    )


def draw_settings(config: Config, settings: Path | None, card: GeneratorCard) -> DrawSettings:
    """The configured settings; those that are null are taken from tuned `settings`, which must be of this generator."""
    sample, tuned = config.sample, {}
    if settings is not None:
        found = read_document(settings, Settings)
        if found.generator_digest != card.digest:
            raise DataError(
                f"{settings}: tuned for generator {found.generator_digest[:12]}, but this one is {card.digest[:12]}; tune again"
            )
        tuned = found.chosen.model_dump()
    elif sample.guidance_scale is None:
        raise UsageError("sample.guidance_scale is null, which means the tuned setting: give --settings FILE or a number")
    given = {name: value for name in DrawSettings.model_fields if (value := getattr(sample, name)) is not None}
    return DrawSettings.model_validate(tuned | given)


def _commit(workspace: Workspace, jobs: list[ShardJob], plan: Plan, real: Snapshot, card: GeneratorCard, repaired: list[str]) -> Outcome:
    rows = pd.concat([job.rows() for job in jobs], ignore_index=True)
    index = commit_snapshot(
        workspace.staging,
        kind="synthetic",
        classes=real.classes,
        rows=rows,
        provenance={"generator": card.digest, "classes_of": real.digest} | workspace.recipe.environment,
        licence=card.licence,
        plan_digest=plan.digest,
    )
    out = publish(workspace)
    guidance = jobs[0].drawing.settings.guidance_scale
    again = f"; damaged since they were drawn, and drawn again: {', '.join(repaired)}" if repaired else ""
    return Outcome(
        output=out,
        digest=index.digest,
        summary=f"wrote {out}: {len(rows)} images of {len(real.classes)} classes in {len(jobs)} shards, guidance {guidance:g}{again}",
        metrics={"images": float(len(rows)), "guidance_scale": guidance},
    )


def show_plan(config: Config, *, snapshot: Path, out: Path, zero_shot: bool = False) -> Outcome:
    """What `--plan-only` prints: shards, batches and images a class; draws nothing."""
    real = Snapshot.open(snapshot)
    plan = plan_for(config, real, zero_shot=zero_shot)
    for shard in plan.shards:
        print(f"{shard.name}  {len(shard.images)} images in {len(shard.batches)} batches")
    summary = (
        f"plan {plan.digest[:16]}: {plan.num_images} images of {len(real.classes)} classes in {len(plan.shards)} shards, nothing drawn"
    )
    return Outcome(output=out, digest="", summary=summary, metrics={"images": float(plan.num_images)})
