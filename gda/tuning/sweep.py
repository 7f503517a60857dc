"""The two passes of a tuning sweep: FID of every point of a grid at few images, then CAS of the survivors.

Sampled batches and scores are cached under `.gda/points`, each under its own digest: adding a point costs only that point, and a
killed sweep resumes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from gda.artifacts.tuning import Settings, TuningPoint
from gda.config.load import Config
from gda.data.store.in_memory import load_images
from gda.data.store.snapshot import Snapshot
from gda.errors import DataError
from gda.fidelity.compare import REPEATS, fid_floor_to
from gda.fidelity.extractors import configured_extractor
from gda.fidelity.frechet import Statistics, statistics
from gda.generator.planning.plan import PlannedImage, equal_quotas, make_plan
from gda.generator.weights.directory import generated_size, read_card, resolve
from gda.generator.weights.reaverage import averaged
from gda.io.atomic import work_root
from gda.runtime.parallel import run_parallel, sampling_device, workers_of
from gda.runtime.progress import tick
from gda.runtime.rng import stream_seed
from gda.training.loop.classifier import TrainRecipe
from gda.tuning.batches import PointSource, SampledBatch, batch_of, forget_generator, sample_batch
from gda.tuning.grid import GeneratorParts, Grid, Point, choose_point, nfe, pareto, survivors
from gda.tuning.scores import (
    CasJob,
    FidJob,
    ScoredSplit,
    read_score,
    require_score,
    score_cas,
    score_fid,
    score_file,
    validation_images,
    write_score,
)

PlannedBatches = Sequence[tuple[PlannedImage, ...]]  # the images to sample at each point, in batches


@dataclass(frozen=True, kw_only=True)
class SweepSize:
    """The size of a sweep: `images` sampled in total, `nfe` network evaluations for FID only.

    `handled` also counts images that the second pass reads back; it is the total of the progress bar.
    """

    points: int
    survivors: int
    images: int
    nfe: int
    handled: int

    def __str__(self) -> str:
        return (
            f"{self.points:,} points, {self.survivors:,} of them to CAS: {self.images:,} images, "
            f"{self.nfe:,} network evaluations for FID alone"
        )


class Sweep:
    """The two passes over one generator. Raises `DataError` if its configuration does not define the image size."""

    def __init__(self, config: Config, generator: str, real: Snapshot, grid: Grid, parts: GeneratorParts) -> None:
        side = generated_size(resolve(generator))
        if side is None:
            raise DataError(f"{generator}: its configuration does not say sample_size")
        self._config, self._generator, self._real, self._grid, self._parts = config, generator, real, grid, parts
        self._val = ScoredSplit(path=real.path, digest=real.digest, side=side)
        self._folder = work_root() / "points"
        self._extractor = configured_extractor(config)
        self._card = read_card(generator)
        tune, classes = config.tune, len(real.classes)
        self._num_fid, self._num_cas = tune.images_per_class * classes, tune.cas_images_per_class * classes
        # A longer list starts with the whole batches of a shorter one, so the second pass reuses images of the first.
        many = self._images(max(tune.images_per_class, tune.cas_images_per_class))
        self._fid_images, self._cas_images = self._images(tune.images_per_class), many[: -(-self._num_cas // tune.batch_size)]

    @property
    def size(self) -> SweepSize:
        """The size, computed before sampling."""
        points, kept = self._grid.points, min(self._config.tune.survivors, len(self._grid.points))
        known, first = set(self._fid_images), len(points) * self._num_fid
        again = sum(len(batch) for batch in self._cas_images)
        return SweepSize(
            points=len(points),
            survivors=kept,
            images=first + kept * sum(len(batch) for batch in self._cas_images if batch not in known),
            nfe=sum(nfe(point.settings, self._parts) for point in points) * self._num_fid,
            handled=first + kept * again,
        )

    def run(self) -> Settings:
        """Run both passes and choose; averages of the weights are built first. Raises `DataError` if no point is left."""
        try:
            points = self._fid_pass()
            points = self._cas_pass(points, survivors(points, self._config.tune.survivors))
            floor = self._floor()
        finally:
            validation_images.cache_clear()
        chosen = choose_point(points)
        marked = [point.model_copy(update={"pareto": front}) for point, front in zip(points, pareto(points), strict=True)]
        return Settings(
            chosen=chosen.settings,
            ema_sigma_rel=chosen.ema_sigma_rel,
            points=tuple(marked),
            extractor=f"{self._extractor.name}@{self._extractor.digest[:12]}",
            fid_floor=floor,
            num_images=self._num_fid,
            generator_digest=self._card.digest,
            snapshot_digest=self._real.digest,
            notes=self._grid.notes,
        )

    def measure(self, worker: int, workers: int) -> int:
        """Measure FID of this worker's share of the points, cached for the later run of the whole sweep; returns their number."""
        own = range(worker, len(self._grid.points), workers)
        try:
            self._fid_pass(own)
        finally:
            validation_images.cache_clear()
        return len(own)

    def _fid_pass(self, places: Sequence[int] | None = None) -> list[TuningPoint]:
        """Every point, or those at `places`, with its FID or the reason of its failure."""
        points = self._grid.points if places is None else [self._grid.points[place] for place in places]
        batches = [self._batches(point, self._fid_images) for point in points]
        keeps = [self._fid_file(sampled) for sampled in batches]
        fresh = [place for place, keep in enumerate(keeps) if read_score(keep) is None]
        tick((len(keeps) - len(fresh)) * self._num_fid)
        failed = self._sample({place: batches[place] for place in fresh})
        sampled = [place for place in fresh if place not in failed]
        reasons = run_parallel(score_fid, [self._fid_job(batches[place], keeps[place]) for place in sampled])
        failed |= {place: why for place, why in zip(sampled, reasons, strict=True) if why is not None}
        return [self._measured(point, keeps[place], failed.get(place)) for place, point in enumerate(points)]

    def _cas_pass(self, points: Sequence[TuningPoint], places: Sequence[int]) -> list[TuningPoint]:
        """The same points; those at `places` with their CAS by seed or the reason of their failure."""
        batches = {place: self._batches(self._grid.points[place], self._cas_images) for place in places}
        keeps = {(place, seed): self._cas_file(batches[place], seed) for place in places for seed in range(self._config.tune.cas_seeds)}
        fresh = [key for key, keep in keeps.items() if read_score(keep) is None]
        wanted = {place: batches[place] for place, _ in fresh}
        tick((len(places) - len(wanted)) * sum(len(batch) for batch in self._cas_images))
        failed = self._sample(wanted)
        jobs = [self._cas_job(batches[place], seed, keeps[place, seed]) for place, seed in fresh if place not in failed]
        if jobs:
            validation_images(self._val)  # forked processes inherit it
        run_parallel(score_cas, jobs)
        found = list(points)
        for place in places:
            update: dict[str, object] = {"fid": None, "fid_ci95": None, "failed": failed.get(place)}
            if place not in failed:
                scores = tuple(require_score(keep)["value"] for (at, _), keep in keeps.items() if at == place)
                update = {"cas": float(np.mean(scores)), "cas_by_seed": scores}
            found[place] = points[place].model_copy(update=update)
        return found

    def _sample(self, batches: Mapping[int, Sequence[SampledBatch]]) -> dict[int, str]:
        """Sample and store missing batches; returns, by place, the reason why a point cannot be sampled."""
        jobs = [(place, batch) for place, sampled in batches.items() for batch in sampled]
        jobs.sort(key=lambda job: job[1].source.digest)  # by generator: each process keeps only one loaded
        try:
            reasons = run_parallel(sample_batch, [batch for _, batch in jobs], workers=workers_of(sampling_device()))
        finally:
            forget_generator()
        failed: dict[int, str] = {}
        for (place, _), why in zip(jobs, reasons, strict=True):
            if why is not None:
                failed.setdefault(place, why)
        return failed

    def _measured(self, point: Point, keep: Path, failed: str | None) -> TuningPoint:
        score = require_score(keep) if failed is None else None
        return TuningPoint(
            settings=point.settings,
            ema_sigma_rel=point.ema_sigma_rel,
            nfe=nfe(point.settings, self._parts),
            fid=score["value"] if score else None,
            fid_ci95=(score["low"], score["high"]) if score else None,
            failed=failed,
        )

    def _fid_job(self, batches: Sequence[SampledBatch], keep: Path) -> FidJob:
        paths = tuple(batch.path for batch in batches)
        named = self._config.validate_
        return FidJob(
            paths=paths,
            extractor=named.extractor,
            weights=named.extractor_weights,
            reference=self._reference,
            seed=self._config.seed,
            keep=keep,
        )

    def _cas_job(self, batches: Sequence[SampledBatch], seed: int, keep: Path) -> CasJob:
        labels = tuple(label for batch in batches for label in batch.labels)[: self._num_cas]
        paths = tuple(batch.path for batch in batches)
        return CasJob(paths=paths, labels=labels, val=self._val, recipe=cas_recipe(self._config), seed=seed, keep=keep)

    def _fid_file(self, batches: Sequence[SampledBatch], **more: int) -> Path:
        seed = self._config.seed
        measured = {"extractor": self._extractor.digest, "repeats": REPEATS, "seed": seed, "val": self._val.digest, "side": self._val.side}
        return score_file(self._folder, "fid", batches, measured | more)

    def _cas_file(self, batches: Sequence[SampledBatch], seed: int) -> Path:
        measured = {"classifier": cas_recipe(self._config).identity(), "images": self._num_cas, "seed": seed, "side": self._val.side}
        return score_file(self._folder, "cas", batches, measured | {"val": self._val.digest})

    def _batches(self, point: Point, images: PlannedBatches) -> list[SampledBatch]:
        return [batch_of(self._sources[point.ema_sigma_rel], point.settings, batch, self._folder) for batch in images]

    def _images(self, per_class: int) -> PlannedBatches:
        """The same images for every point, with seeds other than the synthetic set's: settings are not chosen on the images in use."""
        names, size = [info.name for info in self._real.classes], self._config.tune.batch_size
        plan = make_plan(equal_quotas(names, per_class), seed=stream_seed("tune", self._config.seed), shard_size=size, batch_size=size)
        return [shard.batches[0] for shard in plan.shards]

    @cached_property
    def _sources(self) -> dict[float | None, PointSource]:
        """The generator and its averages, each built once."""
        prompts = tuple(self._card.prompts.get(info.name, info.prompt_name) for info in self._real.classes)
        found: dict[float | None, PointSource] = {}
        for width in {point.ema_sigma_rel for point in self._grid.points}:
            name = self._generator if width is None else str(averaged(self._generator, width, work_root() / "averages"))
            found[width] = PointSource(generator=name, digest=read_card(name).digest, prompts=prompts)
        return found

    @cached_property
    def _reference(self) -> Statistics:
        return statistics(self._extractor.features(validation_images(self._val).images))

    def _floor(self) -> float:
        """FID of the same number of training images to the same reference."""
        keep = self._fid_file([], floor_of=self._num_fid)
        if read_score(keep) is None:
            train = self._extractor.features(load_images(self._real, "train", size=self._val.side).images)
            write_score(keep, {"value": fid_floor_to(self._reference, train, n=self._num_fid, seed=self._config.seed)})
        return require_score(keep)["value"]


def cas_recipe(config: Config) -> TrainRecipe:
    """The training recipe of the CAS pass's classifiers."""
    return TrainRecipe.from_config(config.classify, num_train_steps=config.tune.cas_num_train_steps).of_one_origin()
