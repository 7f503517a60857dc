"""sample: draw a synthetic snapshot from a generator, shard by shard; any worker count, order or kill gives the same set."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from gda.artifacts import ClassInfo, DrawSettings, GeneratorCard, Outcome, Settings, read_document
from gda.config import Config
from gda.data.snapshot import Snapshot, commit_snapshot
from gda.data.writer import ImageRecord, load_rows, save_rows, write_image_shard
from gda.errors import DataError, UsageError
from gda.generator.directory import read_card
from gda.generator.families import load_model
from gda.generator.plan import Plan, PlannedShard, equal_quotas, make_plan
from gda.generator.sampler import Sampler
from gda.io.publish import Workspace, prepare, publish
from gda.parallel import Bar, run_parallel, tick
from gda.recipe import Recipe, bits_environment


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Draw one shard into `folder`; everything a worker process needs."""

    shard: PlannedShard
    generator: str
    generator_digest: str
    classes: tuple[ClassInfo, ...]
    prompts: tuple[str, ...]
    settings: DrawSettings
    folder: Path


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
    draw = draw_settings(config, settings, card)
    prompts = tuple(card.prompts.get(info.name, info.prompt_name) for info in real.classes)
    recipe = Recipe(
        stage="sample",
        config={
            "settings": draw.model_dump(mode="json"),
            "prompts": list(prompts),
            "batch_size": config.sample.batch_size,
            "plan": plan.digest,
        },
        inputs={"generator": card.digest},
        environment=bits_environment("diffusers"),
    )
    workspace = prepare(recipe, out)
    if workspace.finished:
        return Outcome(output=out, digest=Snapshot.open(out).digest, summary=f"{out} is up to date", reused=True)

    jobs = [
        ShardJob(
            shard=shard,
            generator=generator,
            generator_digest=card.digest,
            classes=real.classes,
            prompts=prompts,
            settings=draw,
            folder=workspace.staging,
        )
        for shard in plan.shards
    ]
    mine = [job for job in jobs if job.shard.number % workers == worker]
    with Bar(sum(len(job.shard.images) for job in mine), f"sample {out.name}", unit="image", shown=progress):
        run_parallel(draw_shard, mine)
    if workers > 1 and not all(_rows(job) is not None for job in jobs):
        return Outcome(
            output=out, digest="", summary=f"drew {len(mine)} of {len(jobs)} shards; {out} is published when the other workers are done"
        )
    return _commit(workspace, jobs, plan, real, card)


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


def draw_shard(job: ShardJob) -> None:
    """Draw and commit one shard with its sidecar of manifest rows; a shard that is already there is left alone."""
    if _rows(job) is not None:
        tick(len(job.shard.images))
        return
    sampler = Sampler(load_model(job.generator), job.prompts)
    records: list[ImageRecord] = []
    for batch in job.shard.batches:
        prompts = [job.prompts[image.label] for image in batch]
        pixels = sampler.draw(prompts, [image.seed for image in batch], job.settings)
        for image, prompt, rgb in zip(batch, prompts, pixels.permute(0, 2, 3, 1).numpy(), strict=True):
            meta = _provenance(job, image.seed, prompt)
            records.append(ImageRecord(key=image.key, rgb=rgb, label=image.label, class_name=job.classes[image.label].name, meta=meta))
        tick(len(batch))
    _commit_shard(job, records)


def _commit_shard(job: ShardJob, records: list[ImageRecord]) -> None:
    """The tar first, then its manifest rows: only both make a drawn shard."""
    path = job.folder / job.shard.name
    if _sidecar(job).is_file():
        path.unlink(missing_ok=True)  # committed once, and damaged since
    save_rows(_sidecar(job), path, write_image_shard(job.folder, name=job.shard.name, split="train", records=records))


def _provenance(job: ShardJob, seed: int, prompt: str) -> dict[str, str | int | float]:
    return {
        "seed": seed,
        "prompt": prompt,
        "negative_prompt": "",
        "guidance_scale": job.settings.guidance_scale,
        "num_inference_steps": job.settings.num_inference_steps,
        "scheduler": job.settings.scheduler,
        "source_image": "",
        "generator_digest": job.generator_digest,
    }


def _sidecar(job: ShardJob) -> Path:
    folder = job.folder.parent / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{job.shard.number:06d}.json"


def _rows(job: ShardJob) -> pd.DataFrame | None:
    """Manifest rows of a shard that was drawn and is whole, else None."""
    return load_rows(_sidecar(job), job.folder / job.shard.name)


def _commit(workspace: Workspace, jobs: list[ShardJob], plan: Plan, real: Snapshot, card: GeneratorCard) -> Outcome:
    rows = pd.concat([_rows(job) for job in jobs], ignore_index=True)
    if len(rows) != plan.num_images:
        raise DataError(f"{workspace.work}: {len(rows)} images drawn where the plan has {plan.num_images}")
    index = commit_snapshot(
        workspace.staging,
        kind="synthetic",
        classes=real.classes,
        rows=rows,
        provenance={"generator": card.digest, "classes_of": real.digest},
        licence=card.licence,
        plan_digest=plan.digest,
    )
    out = publish(workspace)
    guidance = jobs[0].settings.guidance_scale
    return Outcome(
        output=out,
        digest=index.digest,
        summary=f"wrote {out}: {len(rows)} images of {len(real.classes)} classes in {len(jobs)} shards, guidance {guidance:g}",
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
