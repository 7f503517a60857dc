"""finetune: teach the base model the snapshot's training images; the stages of a cascade train side by side."""

import shutil
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gda.artifacts.cards import GeneratorCard
from gda.artifacts.contents import FINGERPRINT_FILE
from gda.artifacts.document import read_document
from gda.artifacts.fingerprint import Fingerprint, bits_environment, digest_of
from gda.artifacts.outcome import Outcome
from gda.artifacts.tuning import SamplingSettings
from gda.config.load import Config
from gda.data.ingest.holdout import hold_out
from gda.data.store.in_memory import load_images
from gda.data.store.snapshot import Snapshot
from gda.errors import DataError, UsageError
from gda.fidelity.extractors import configured_extractor
from gda.fidelity.held_out import held_out_score
from gda.generator.families.opening import load_model
from gda.generator.finetuning.evaluation import Evaluation
from gda.generator.finetuning.prepared import PreparedSource
from gda.generator.finetuning.results import export_results
from gda.generator.finetuning.tokens import Tokens, class_tokens, token_prompts
from gda.generator.finetuning.train import EVALUATIONS, SNAPSHOTS, StageJob, StageResult, finetune_stage
from gda.generator.planning.prompts import class_prompts, require_distinct
from gda.generator.weights.directory import SUPER_RESOLUTION, read_card
from gda.io.atomic import work_root
from gda.io.publish import exclusive, publish
from gda.io.up_to_date import Workspace, prepare, read_fingerprint
from gda.runtime.parallel import run_parallel
from gda.runtime.process_group import ProcessGroup
from gda.runtime.progress import Bar
from gda.runtime.rng import stream_seed
from gda.suitability import require_suitable_base, require_suitable_extractor
from gda.tracking.generator_versions import generator_model

_GRID_ROWS = 10  # pictures per class in an evaluation's grid


def run(
    config: Config, *, snapshot: Path, base: str | None = None, out: Path, resume: Path | None = None, progress: bool = False
) -> Outcome:
    """Fine-tune `base` (default `finetune.base`) on the training split of `snapshot` and export the averaged weights to `out`.

    Continues from its own checkpoints after an interruption; `resume` names a checkpoint or work folder to continue from instead.
    Under `torchrun` every process calls this, and the first one writes. Raises `DataError` on a diverging loss or unusable weights,
    `MissingError` where the base is not there, `UsageError` when `resume` is of another fingerprint, naming every
    difference, `TryAgainError` while another process trains the same.
    """
    name, world = base or config.finetune.base, ProcessGroup.init()
    try:
        real = Snapshot.open(snapshot)
        require_suitable_base(config, name, real)
        if config.finetune.evaluation_steps:
            require_suitable_extractor(config, real)
        tokens = _tokens(config, real, name) if config.finetune.method == "textual_inversion" else None
        prompts = class_prompts(real.classes, config.finetune) if tokens is None else token_prompts(tokens.names, config.finetune)
        fingerprint = _fingerprint(config, real, name, prompts, tokens, world)
        workspace = _agree(fingerprint, out, world)
        if workspace.finished:
            card = read_document(out / "generator.json", GeneratorCard)
            return Outcome(output=out, digest=card.digest, summary=f"{out} is up to date", metrics=card.metrics, reused=True)
        with exclusive(workspace) if world.is_first else nullcontext():
            resume_at = _resume(workspace, resume) if resume is not None else {}
            plan = _plan(config, name, real, prompts, tokens, workspace.work, resume_at)
            results = _train(plan, world, progress=progress)
            if not world.is_first:
                world.broadcast(None)
                return Outcome(output=out, digest="", summary="the first process writes the result")
            outcome = _export(config, workspace, name, real, prompts, plan, results)
        world.broadcast(None)  # the others leave when the result is there
        return outcome
    finally:
        ProcessGroup.destroy()


@dataclass(frozen=True, kw_only=True)
class _Plan:
    jobs: list[StageJob]
    num_images: int
    notes: list[str]
    tokens: Tokens | None


def _train(plan: _Plan, world: ProcessGroup, *, progress: bool) -> list[StageResult]:
    """Train every stage of the plan, side by side on CPUs where this process is alone."""
    config = plan.jobs[0].config
    precision = "float32" if config.mixed_precision == "no" else config.mixed_precision
    about = f"{world.device.type}, {precision}, {plan.num_images:,} images"
    with Bar(sum(job.num_train_steps for job in plan.jobs), "finetune", unit="step", shown=progress and world.is_first, about=about):
        alone = world.size > 1 or world.device.type != "cpu"
        return [finetune_stage(job) for job in plan.jobs] if alone else run_parallel(finetune_stage, plan.jobs)


def _fingerprint(
    config: Config, real: Snapshot, base: str, prompts: dict[str, str], tokens: Tokens | None, world: ProcessGroup
) -> Fingerprint:
    settings = config.finetune
    scored_by = {"extractor": configured_extractor(config).digest} if settings.evaluation_steps else {}
    texts = {"prompts": prompts} | ({"initial": tokens.initial} if tokens is not None else {})
    return Fingerprint(
        stage="finetune",
        config=settings.decided() | {"seed": config.seed} | texts,
        inputs={"snapshot": real.digest, "base": read_card(base).digest} | scored_by,
        environment=bits_environment("diffusers", "peft") | {"device": world.device.type},
    )


def _agree(fingerprint: Fingerprint, out: Path, world: ProcessGroup) -> Workspace:
    """The first process looks whether the result is there and makes the work folder; the others take its word."""
    workspace = prepare(fingerprint, out) if world.is_first else None
    agreed: Workspace = world.broadcast(workspace)
    return agreed


def _resume(workspace: Workspace, checkpoint: Path) -> dict[str, int]:
    """Folder of a job -> step to continue at, from a work folder or a checkpoint in one. Raises `UsageError` for another fingerprint's."""
    checkpoint = checkpoint.resolve()
    root = next((folder for folder in (checkpoint, *checkpoint.parents) if (folder / FINGERPRINT_FILE).is_file()), None)
    if root is None:
        raise UsageError(f"--resume {checkpoint}: neither a work folder nor a checkpoint in one, or no longer there")
    changes = read_fingerprint(root).difference(workspace.fingerprint)
    if changes:
        raise UsageError(f"--resume {checkpoint}: made otherwise: {'; '.join(changes)}; undo that, or leave --resume out to start over")
    if root != workspace.work.resolve():  # the same work, brought here from another place
        shutil.copytree(root, workspace.work, dirs_exist_ok=True)
    if checkpoint.name.startswith("checkpoint-"):
        return {checkpoint.parent.relative_to(root).as_posix(): int(checkpoint.name.removeprefix("checkpoint-"))}
    return {}


def _tokens(config: Config, real: Snapshot, base: str) -> Tokens:
    """A token per class, which starts from the words that its prompt would have held."""
    return Tokens(names=class_tokens(real.classes, load_model(base)), initial={info.name: info.prompt_name for info in real.classes})


def _plan(
    config: Config, base: str, real: Snapshot, prompts: dict[str, str], tokens: Tokens | None, work: Path, resume_at: dict[str, int]
) -> _Plan:
    settings, model = config.finetune, load_model(base)
    notes = require_distinct(model, prompts) if tokens is None else []
    images = load_images(real, "train", size=model.train_size)
    names, held = [info.name for info in real.classes], torch.zeros(len(images.keys), dtype=torch.bool)
    evaluation = None
    if settings.evaluation_steps:
        held = hold_out(images.keys, images.labels, settings.evaluation_fraction)
        evaluation = _evaluation(config, images.images[held], [prompts[name] for name in names])
    kept = torch.nonzero(~held).flatten()
    length = dict.fromkeys(model.stages, settings.num_train_steps)
    if SUPER_RESOLUTION in length:
        length[SUPER_RESOLUTION] = settings.sr_num_train_steps if tokens is None else 0
    job = StageJob(
        stage="",
        base=base,
        source=PreparedSource(images=images.images, digest="", cache=work_root() / "cache"),
        labels=images.labels,
        prompts=tuple(prompts[names[label]] for label in images.labels.tolist()),
        keys=images.keys,
        config=settings,
        num_train_steps=0,
        seed=config.seed,
        work=work,
        evaluation=evaluation,
        tokens=tokens,
    )
    jobs = []
    for stage, count in length.items():
        here = replace(job, stage=stage, num_train_steps=count)
        if count and settings.lora_scope == "class":
            for label, name in enumerate(names):
                chosen = kept[images.labels[kept] == label]
                jobs.append(_of(replace(here, class_name=name), chosen, real, f"{stage}/class-{label:04d}", resume_at))
        elif count:
            jobs.append(_of(here, kept, real, stage, resume_at))
    return _Plan(jobs=jobs, num_images=len(kept), notes=notes, tokens=tokens)


def _of(job: StageJob, chosen: torch.Tensor, real: Snapshot, folder: str, resume_at: dict[str, int]) -> StageJob:
    """`job` on the images `chosen` (int64 [n]) alone, at work in its own folder. Raises `DataError` where there are none."""
    if not len(chosen):
        raise DataError(f"finetune.lora_scope: class {job.class_name!r} has no training images for an adapter of its own")
    keys = tuple(job.keys[i] for i in chosen.tolist())
    digest = digest_of({"snapshot": real.digest, "split": "train", "keys": keys})
    return replace(
        job,
        source=replace(job.source, images=job.source.images[chosen], digest=digest),
        labels=job.labels[chosen],
        prompts=tuple(job.prompts[i] for i in chosen.tolist()),
        keys=keys,
        work=job.work / folder,
        resume_at=resume_at.get(folder),
    )


def _evaluation(config: Config, held_out: torch.Tensor, prompts: list[str]) -> Evaluation:
    settings, count = config.finetune, config.finetune.evaluation_images_per_class
    if len(held_out) < 2:
        raise DataError("finetune.evaluation_steps: no class has enough training images to hold one out; set it to null")
    images = [(prompt, stream_seed("finetune", config.seed, "evaluation", prompt, i)) for prompt in prompts for i in range(count)]
    shown = [c * count + i for c in range(len(prompts)) for i in range(min(count, _GRID_ROWS))]
    return Evaluation(
        steps=settings.evaluation_steps or 1,
        prompts=tuple(prompt for prompt, _ in images),
        seeds=tuple(seed for _, seed in images),
        settings=SamplingSettings(
            guidance_scale=settings.evaluation_guidance_scale, num_inference_steps=settings.evaluation_num_inference_steps
        ),
        score=held_out_score(
            held_out,
            extractor=config.validate_.extractor,
            weights=config.validate_.extractor_weights,
            metric=settings.evaluation_metric,
        ),
        shown=tuple(shown[:100]),
    )


def _export(
    config: Config, workspace: Workspace, base: str, real: Snapshot, prompts: dict[str, str], plan: _Plan, results: list[StageResult]
) -> Outcome:
    staging, out = workspace.fresh_staging(), workspace.out
    for result in results:
        for kept in (EVALUATIONS, SNAPSHOTS):
            if (workspace.work / result.stage / kept).is_dir():
                ignored = shutil.ignore_patterns("averaged-*", ".*")
                shutil.copytree(workspace.work / result.stage / kept, staging / kept / result.stage, ignore=ignored)
    card, notes = export_results(
        base,
        results,
        staging,
        config=config.finetune,
        training=config.finetune.decided(),
        prompts=prompts,
        snapshot_digest=real.digest,
        tokens=plan.tokens,
        seed=config.seed,
    )
    plan.notes.extend(notes)
    publish(workspace)
    return _outcome(config, out, card, plan, results)


def _outcome(config: Config, out: Path, card: GeneratorCard, plan: _Plan, results: list[StageResult]) -> Outcome:
    losses = ", ".join(f"{r.label} loss {card.metrics[f'{r.label}_loss']:.4f}" for r in results[:4]) + (", ..." if len(results) > 4 else "")
    chosen = "".join(f"; {r.stage} weights of step {r.step}, the best of {len(r.scores)} evaluated" for r in results if r.scores)
    notes = "".join(f"; {note}" for note in [*plan.notes, *(note for result in results for note in result.notes)])
    return Outcome(
        output=out,
        digest=card.digest,
        summary=f"wrote {out}: fine-tuned on {plan.num_images} images, {losses}{chosen}{notes}",
        metrics=card.metrics,
        series={f"{r.label}_loss": r.label for r in results},
        curves={f"{r.label}_loss": [(step + 1, loss) for step, loss in enumerate(r.losses)] for r in results}
        | {f"{r.label}_evaluation": list(r.scores) for r in results if r.scores},
        files=(out / "generator.json", out / "README.md"),
        images={r.stage: [(step, out / EVALUATIONS / r.stage / f"{step:08d}.png") for step, _ in r.scores] for r in results if r.scores},
        model=generator_model(config.finetune.model_name, out, card, description=f"fine-tuned from {card.source}"),
    )
