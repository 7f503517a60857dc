"""tune: choose the sampling guidance - a cheap FID sweep over every point, then CAS of the survivors on the validation split.

FID and CAS disagree as guidance grows, so the sweep ends on CAS. Each point is kept under its own recipe: adding one costs one.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from gda.artifacts import DrawSettings, Outcome, Settings, TuningPoint, dump_document, read_document
from gda.config import Config
from gda.data.resident import ImageSet, load_images
from gda.data.snapshot import Snapshot
from gda.errors import DataError
from gda.fidelity.extractors import get_extractor
from gda.fidelity.frechet import frechet_distance, statistics
from gda.generator.directory import drawn_side, read_card, resolve
from gda.generator.families import load_model
from gda.generator.plan import equal_quotas, make_plan
from gda.generator.sampler import Sampler
from gda.io.publish import prepare, publish, write_bytes
from gda.io.tensors import read_tensors
from gda.parallel import Bar, run_parallel, tick
from gda.recipe import Recipe, bits_environment, digest_of
from gda.training.classifier import Source, TrainRecipe, predict_logits, train_classifier


@dataclass(frozen=True, kw_only=True)
class DrawJob:
    """Draw batch `number` of a point: `labels` and `seeds` of its images; kept at `path` once drawn."""

    generator: str
    prompts: tuple[str, ...]
    labels: tuple[int, ...]
    seeds: tuple[int, ...]
    settings: DrawSettings
    path: Path


@dataclass(frozen=True, kw_only=True)
class CasJob:
    """Train one classifier on a point's images and score it on the validation split."""

    images: torch.Tensor
    labels: torch.Tensor
    val: ImageSet
    recipe: TrainRecipe
    seed: int


def run(config: Config, *, generator: str, snapshot: Path, out: Path, progress: bool = False) -> Outcome:
    """Sweep `tune.guidance_scales` for `generator` and write `settings.json` with the chosen one and the full table.

    Uses the training and validation splits only. FID is against validation images in the glyph feature space by default;
    its floor is train against validation.
    """
    real, card = Snapshot.open(snapshot), read_card(generator)
    recipe = Recipe(
        stage="tune",
        config=config.tune.model_dump(mode="json")
        | {"seed": config.seed, "extractor": config.validate_.extractor, "classifier": asdict(_cas_recipe(config))},
        inputs={"generator": card.digest, "snapshot": real.digest},
        environment=bits_environment("diffusers", "timm"),
    )
    workspace = prepare(recipe, out)
    if workspace.finished:
        settings = read_document(out / "settings.json", Settings)
        return Outcome(output=out, digest=digest_of(settings.model_dump(mode="json")), summary=f"{out} is up to date", reused=True)

    sweep = Sweep(config, generator, real, workspace.work.parent.parent / "points")
    with Bar(sweep.total_images, f"tune {out.name}", unit="image", shown=progress):
        settings = sweep.run(card.digest)
    write_bytes(workspace.staging / "settings.json", dump_document(settings))
    publish(workspace)
    table = ", ".join(
        f"{p.guidance_scale:g}: FID {p.fid:.2f}" + (f" CAS {p.cas:.1%}" if p.cas is not None else "") for p in settings.points
    )
    return Outcome(
        output=out,
        digest=digest_of(settings.model_dump(mode="json")),
        summary=f"wrote {out}: guidance {settings.guidance_scale:g} chosen on validation ({table})",
        metrics={"guidance_scale": settings.guidance_scale, **{f"fid_guidance_{p.guidance_scale:g}": p.fid for p in settings.points}},
        files=(out / "settings.json",),
    )


class Sweep:
    """The two passes over one generator; drawn batches are kept under `points` and shared between passes and runs."""

    def __init__(self, config: Config, generator: str, real: Snapshot, points: Path) -> None:
        self.config, self.generator, self.points = config, generator, points
        card, side = read_card(generator), drawn_side(resolve(generator))
        if side is None:
            raise DataError(f"{generator}: its configuration does not say sample_size")
        self.size = side
        self.prompts = tuple(card.prompts.get(info.name, info.prompt_name) for info in real.classes)
        self.names = [info.name for info in real.classes]
        self.digest = card.digest
        self.real = real
        self.val = load_images(real, "val", size=self.size)
        self.extractor = get_extractor(config.validate_.extractor)

    @property
    def total_images(self) -> int:
        """Images the two passes draw in all; the survivors keep what the first pass drew."""
        tune, classes = self.config.tune, len(self.names)
        extra = max(0, tune.cas_images_per_class - tune.images_per_class)
        return classes * (len(tune.guidance_scales) * tune.images_per_class + min(tune.survivors, len(tune.guidance_scales)) * extra)

    def run(self, generator_digest: str) -> Settings:
        tune = self.config.tune
        reference = statistics(self.extractor.features(self.val.images))
        train = load_images(self.real, "train", size=self.size)
        floor = frechet_distance(statistics(self.extractor.features(train.images)), reference)
        few = self._draw_all(tune.guidance_scales, tune.images_per_class)
        fids = {g: frechet_distance(statistics(self.extractor.features(images)), reference) for g, (images, _) in few.items()}
        survivors = sorted(fids, key=fids.__getitem__)[: tune.survivors]
        cas = self._cas(survivors)
        points = tuple(
            TuningPoint(
                guidance_scale=g,
                fid=fids[g],
                cas=float(np.mean(cas[g])) if g in cas else None,
                cas_by_seed=tuple(cas.get(g, ())),
            )
            for g in sorted(fids)
        )
        return Settings(
            guidance_scale=choose(points),
            num_inference_steps=tune.num_inference_steps,
            points=points,
            extractor=f"{self.extractor.name}@{self.extractor.digest[:12]}",
            fid_floor=floor,
            num_images=tune.images_per_class * len(self.names),
            generator_digest=generator_digest,
            snapshot_digest=self.real.digest,
        )

    def _cas(self, survivors: list[float]) -> dict[float, list[float]]:
        tune = self.config.tune
        drawn = self._draw_all(survivors, max(tune.cas_images_per_class, tune.images_per_class))
        jobs = [
            CasJob(images=drawn[g][0], labels=drawn[g][1], val=self.val, recipe=_cas_recipe(self.config), seed=seed)
            for g in survivors
            for seed in range(tune.cas_seeds)
        ]
        scores = run_parallel(score_cas, jobs)
        return {g: scores[i * tune.cas_seeds : (i + 1) * tune.cas_seeds] for i, g in enumerate(survivors)}

    def _draw_all(
        self, guidance_scales: "list[float] | tuple[float, ...]", per_class: int
    ) -> dict[float, tuple[torch.Tensor, torch.Tensor]]:
        """Images uint8 NCHW and labels by guidance; batches that were drawn before are read back."""
        tune = self.config.tune
        # A stream of its own: the images that settings are chosen on are not the ones that are used.
        plan = make_plan(
            equal_quotas(self.names, per_class), seed=self.config.seed + 1, shard_size=tune.batch_size, batch_size=tune.batch_size
        )
        jobs = [self._job(g, shard.batches[0]) for g in guidance_scales for shard in plan.shards]
        drawn = run_parallel(draw_batch, jobs)
        size = len(plan.shards)
        labels = torch.tensor([label for job in jobs[:size] for label in job.labels])
        return {g: (torch.cat(drawn[i * size : (i + 1) * size]), labels) for i, g in enumerate(guidance_scales)}

    def _job(self, guidance: float, batch: tuple) -> DrawJob:
        settings = DrawSettings(
            guidance_scale=guidance,
            num_inference_steps=self.config.tune.num_inference_steps,
            sr_num_inference_steps=self.config.tune.sr_num_inference_steps,
        )
        seeds, labels = tuple(image.seed for image in batch), tuple(image.label for image in batch)
        name = digest_of(
            {"generator": self.digest, "prompts": self.prompts, "settings": settings.model_dump(), "seeds": seeds, "labels": labels}
            | bits_environment("diffusers")
        )
        return DrawJob(
            generator=self.generator,
            prompts=self.prompts,
            labels=labels,
            seeds=seeds,
            settings=settings,
            path=self.points / f"{name[:32]}.safetensors",
        )


def choose(points: "tuple[TuningPoint, ...]") -> float:
    """The guidance of the best mean CAS; among equals the lower FID, then the lower guidance."""
    scored = [p for p in points if p.cas is not None]
    return min(scored, key=lambda p: (-(p.cas or 0.0), p.fid, p.guidance_scale)).guidance_scale


def draw_batch(job: DrawJob) -> torch.Tensor:
    """uint8 NCHW; read from `job.path` when it was drawn before."""
    from safetensors.torch import save

    if job.path.is_file():
        images = torch.from_numpy(read_tensors(job.path)["images"])
    else:
        sampler = Sampler(load_model(job.generator), job.prompts)
        images = sampler.draw([job.prompts[label] for label in job.labels], job.seeds, job.settings)
        job.path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(job.path, save({"images": images.contiguous()}))
    tick(len(images))
    return images


def score_cas(job: CasJob) -> float:
    """Top-1 in [0, 1] on validation images of a classifier trained on synthetic images alone."""
    source = Source(images=job.images, labels=job.labels, share=1.0)
    model, _ = train_classifier([source], job.recipe, num_classes=len(job.val.classes), seed=job.seed)
    logits = predict_logits(model, job.val.images, image_size=job.recipe.image_size)
    return float((logits.argmax(1) == job.val.labels).float().mean())


def _cas_recipe(config: Config) -> TrainRecipe:
    return TrainRecipe.from_config(config.classify, num_updates=config.tune.cas_num_updates)
