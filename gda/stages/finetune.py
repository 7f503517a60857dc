"""finetune: teach the base model the snapshot's training images; the stages of a cascade train side by side."""

from pathlib import Path

from gda.artifacts import GeneratorCard, Outcome, read_document
from gda.config import Config, FinetuneConfig
from gda.data.resident import load_images
from gda.data.snapshot import Snapshot
from gda.errors import ConfigError
from gda.generator.directory import SUPER_RESOLUTION, read_card
from gda.generator.export import export_generator
from gda.generator.families import load_model
from gda.generator.train import StageJob, StageResult, finetune_stage
from gda.io.publish import prepare, publish
from gda.parallel import Bar, run_parallel
from gda.recipe import Recipe, bits_environment


def run(config: Config, *, snapshot: Path, base: str | None = None, out: Path, progress: bool = False) -> Outcome:
    """Fine-tune `base` (default `finetune.base`) on the training split of `snapshot` and export the averaged weights to `out`.

    Continues from its own checkpoints after an interruption. Raises `DataError` on a diverging loss or unusable weights,
    `MissingError` where the base is not there.
    """
    settings, name = config.finetune, base or config.finetune.base
    real, base_card = Snapshot.open(snapshot), read_card(name)
    recipe = Recipe(
        stage="finetune",
        config=settings.model_dump(mode="json", exclude={"base", "checkpointing_steps", "checkpoints_total_limit"}) | {"seed": config.seed},
        inputs={"snapshot": real.digest, "base": base_card.digest},
        environment=bits_environment("diffusers"),
    )
    workspace = prepare(recipe, out)
    if workspace.finished:
        card = read_document(out / "generator.json", GeneratorCard)
        return Outcome(output=out, digest=card.digest, summary=f"{out} is up to date", reused=True)

    prompts = class_prompts(real, settings)
    jobs = _jobs(config, name, real, prompts, workspace.work)
    with Bar(sum(job.num_train_steps for job in jobs), "finetune", unit="step", shown=progress):
        results = run_parallel(finetune_stage, jobs)
    card = export_generator(
        name,
        {result.stage: result.weights for result in results},
        workspace.staging,
        prompts=prompts,
        snapshot_digest=real.digest,
        steps={job.stage: job.num_train_steps for job in jobs},
    )
    publish(workspace)
    return _outcome(out, card, results, real)


def class_prompts(snapshot: Snapshot, settings: FinetuneConfig) -> dict[str, str]:
    """Class name -> prompt, by `finetune.prompt_template`. Raises `ConfigError` when two classes would share a prompt."""
    template = settings.prompt_template
    if "{class_name}" not in template:
        raise ConfigError(f"finetune.prompt_template: must contain {{class_name}}, got {template!r}")
    prompts = {info.name: template.replace("{class_name}", info.prompt_name) for info in snapshot.classes}
    seen: dict[str, str] = {}
    for name, prompt in prompts.items():
        # IF lowers prompts, so these two would be one and the same to the text encoder.
        other = seen.setdefault(prompt.lower().strip(), name)
        if other != name:
            raise ConfigError(f"finetune.prompt_template: classes {other!r} and {name!r} share the prompt {prompt!r}")
    return prompts


def _jobs(config: Config, base: str, real: Snapshot, prompts: dict[str, str], work: Path) -> list[StageJob]:
    model = load_model(base)
    train = load_images(real, "train", size=model.image_size)
    names = [info.name for info in real.classes]
    length = dict.fromkeys(model.stages, config.finetune.num_train_steps)
    if SUPER_RESOLUTION in length:
        length[SUPER_RESOLUTION] = config.finetune.sr_num_train_steps
    return [
        StageJob(
            stage=stage,
            base=base,
            images=train.images,
            prompts=tuple(prompts[names[label]] for label in train.labels.tolist()),
            config=config.finetune,
            num_train_steps=count,
            seed=config.seed,
            work=work / stage,
        )
        for stage, count in length.items()
        if count
    ]


def _outcome(out: Path, card: GeneratorCard, results: list[StageResult], real: Snapshot) -> Outcome:
    tail = {r.stage: sum(r.losses[-20:]) / len(r.losses[-20:]) for r in results}
    count = len(real.manifest("train"))
    notes = "".join(f"; {note}" for result in results for note in result.notes)
    losses = ", ".join(f"{stage} loss {loss:.4f}" for stage, loss in tail.items())
    return Outcome(
        output=out,
        digest=card.digest,
        summary=f"wrote {out}: fine-tuned on {count} images, {losses}{notes}",
        metrics={f"{stage}_loss": loss for stage, loss in tail.items()},
        curves={f"{r.stage}_loss": [(step + 1, loss) for step, loss in enumerate(r.losses)] for r in results},
        files=(out / "generator.json", out / "README.md"),
    )
