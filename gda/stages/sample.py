"""sample: generate a synthetic snapshot, shard by shard; any worker count, order or kill gives the same set."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from gda.artifacts.fingerprint import Fingerprint, bits_environment
from gda.artifacts.outcome import Outcome
from gda.config.load import Config
from gda.data.images.codecs import Codec
from gda.data.store.snapshot import Snapshot, commit_snapshot
from gda.errors import ConfigError, DataError, TryAgainError, UsageError
from gda.fidelity.accumulated import FeatureObserver, FeaturesIndex
from gda.fidelity.extractors import comparison_size, configured_extractor
from gda.generator.families.opening import load_model
from gda.generator.planning.cost import estimate_cost
from gda.generator.planning.duration import measure_rate
from gda.generator.planning.plan import ImagePlan
from gda.generator.planning.plan_text import describe_plan
from gda.generator.sampling.request import SamplingRequest, plan_for, prompts_of, sampling_request
from gda.generator.sampling.sample_shards import SamplingContext, ShardJob, sample_shard
from gda.generator.sampling.speed import Speed, speed_up
from gda.io.atomic import work_root
from gda.io.publish import claim, publish, published_meanwhile
from gda.io.up_to_date import Workspace, prepare
from gda.runtime.parallel import device_name, own_device, run_parallel, sampling_device, workers_of
from gda.runtime.progress import Bar
from gda.suitability import require_suitable_base


@dataclass(frozen=True, kw_only=True)
class Workers:
    """This command's share of the plan: the shards of number `index` modulo `count`."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UsageError(f"--worker {self.index} --workers {self.count}: expected 0 <= I < N")


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A set under way: what was requested, and the jobs of all its shards."""

    request: SamplingRequest
    real: Snapshot
    plan: ImagePlan
    jobs: list[ShardJob]
    observer: FeatureObserver | None
    workspace: Workspace

    @property
    def device(self) -> str:
        return self.jobs[0].context.device


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
    """Sample the configured plan and publish it as a synthetic Snapshot at `out`.

    With `workers` > 1 this process samples the shards of number `worker` modulo `workers`; the one that commits the last shard publishes.
    Raises `UsageError` when neither `sample.guidance_scale` nor tuned settings say the guidance, and when other workers are sampling
    another set for `out`; `DataError` for classes that the generator does not know and on NaN images; `TryAgainError` where another
    process is publishing the same set at this moment.
    """
    share = Workers(index=worker, count=workers)
    real = Snapshot.open(snapshot)
    require_suitable_base(config, generator, real)
    request = sampling_request(config, generator, settings, averages=work_root() / "averages")
    plan = plan_for(config, real, zero_shot=zero_shot)
    observer = _observer(config, plan)
    context = _context(config, real, request, observer)
    workspace = prepare(_fingerprint(config, plan, context, real, observer), out)
    if workspace.finished:
        metrics = {"images": float(plan.num_images), "guidance_scale": request.settings.guidance_scale}
        return Outcome(output=out, digest=Snapshot.open(out).digest, summary=f"{out} is up to date", metrics=metrics, reused=True)
    if share.count > 1:
        claim(workspace)

    context = replace(context, folder=workspace.staging)
    jobs = [ShardJob(context=context, shard=shard) for shard in plan.shards]
    work = _Work(request=request, real=real, plan=plan, jobs=jobs, observer=observer, workspace=workspace)
    own = [job for job in jobs if job.shard.number % share.count == share.index]
    try:
        return _sample_shards(work, own, share, progress=progress)
    except (OSError, ValueError, DataError) as error:  # as where the work folder is taken away under a process that slept
        if published_meanwhile(workspace):
            summary = f"another worker published {out} meanwhile"
            return Outcome(output=out, digest=Snapshot.open(out).digest, summary=summary, reused=True)
        if isinstance(error, FileNotFoundError):  # it is about to: the last thing before is to sweep temporary files away
            raise TryAgainError(f"{out}: another process is publishing exactly this; wait for it, then run the same command") from None
        raise


def _sample_shards(work: _Work, own: list[ShardJob], share: Workers, *, progress: bool) -> Outcome:
    out = work.workspace.out
    damaged = {job.shard.name for job in own if job.sidecar.is_file() and job.rows() is None}
    context = work.jobs[0].context
    about = f"{context.device}, {context.speed.precision}, guidance {context.settings.guidance_scale:g}"
    with Bar(sum(len(job.shard.images) for job in own), f"sample {out.name}", unit="image", shown=progress, about=about):
        run_parallel(sample_shard, own, workers=workers_of(work.device))
    if share.count > 1 and not all(job.rows() is not None for job in work.jobs):
        summary = f"sampled {len(own)} of {len(work.jobs)} shards; {out} is published when the other workers are done"
        return Outcome(output=out, digest="", summary=summary)
    return _commit(work, sorted(damaged | set(_sample_damaged(work))))


def _context(config: Config, real: Snapshot, request: SamplingRequest, observer: FeatureObserver | None) -> SamplingContext:
    sample = config.sample
    return SamplingContext(
        generator=request.generator,
        generator_digest=request.card.digest,
        classes=real.classes,
        prompts=prompts_of(request.card, real.classes),
        settings=request.settings,
        speed=Speed(precision=sample.precision, compile=sample.compile),
        codec=_codec(config),
        sources=real.path if sample.mode == "image_to_image" else None,
        device=sampling_device(),
        folder=Path(),
        observer=observer,
    )


def _codec(config: Config) -> Codec:
    return Codec(format=config.sample.image_format, quality=config.sample.jpeg_quality)


def _observer(config: Config, plan: ImagePlan) -> FeatureObserver | None:
    """What keeps features of the images while they are sampled, measured as `validate` under the same configuration would."""
    kept = config.sample.features
    if kept == "none":
        return None
    if not _codec(config).lossless:
        raise ConfigError(f"sample.features: {kept} are of the pixels as sampled, which jpeg does not keep; accepted: png, webp")
    if plan.num_images < 2:
        raise ConfigError(f"sample.features: {kept} of a single image have no covariance; accepted: none, or two images and more")
    extractor = configured_extractor(config)
    size = comparison_size(config, extractor)
    index = FeaturesIndex(kept=kept, extractor=extractor.name, extractor_digest=extractor.digest, image_size=size)
    return FeatureObserver(index=index, source=config.validate_.extractor, weights=config.validate_.extractor_weights)


def _fingerprint(
    config: Config, plan: ImagePlan, context: SamplingContext, real: Snapshot, observer: FeatureObserver | None
) -> Fingerprint:
    request = {
        "settings": context.settings.model_dump(mode="json"),
        "prompts": list(context.prompts),
        "batch_size": config.sample.batch_size,
        "shard_size": config.sample.shard_size,
        "plan": plan.digest,
        "codec": asdict(context.codec),
        "features": "none" if observer is None else observer.index.model_dump(mode="json"),
        **asdict(context.speed),
    }
    inputs = {"generator": context.generator_digest} | ({} if context.sources is None else {"snapshot": real.digest})
    measured_with = () if observer is None else observer.extractor.packages
    environment = bits_environment("diffusers", "transformers", "pillow", *measured_with, device=device_name(context.device))
    return Fingerprint(stage="sample", config=request, inputs=inputs, environment=environment)


def _sample_damaged(work: _Work) -> list[str]:
    """Shards whose bytes changed since they were sampled are sampled again; their names are returned."""
    damaged = [job for job in work.jobs if job.rows(checked=True) is None]
    for job in damaged:
        job.discard()
    run_parallel(sample_shard, damaged, workers=workers_of(work.device))
    return [job.shard.name for job in damaged]


def _commit(work: _Work, repaired: list[str]) -> Outcome:
    rows = pd.concat([job.rows() for job in work.jobs], ignore_index=True)
    if work.observer is not None:
        work.observer.finish(work.workspace.staging, rows)
    index = commit_snapshot(
        work.workspace.staging,
        kind="synthetic",
        classes=work.real.classes,
        rows=rows,
        provenance=_provenance(work),
        licence=work.request.card.licence,
        plan_digest=work.plan.digest,
    )
    out = publish(work.workspace)
    guidance = work.request.settings.guidance_scale
    again = f"; damaged since they were sampled, and sampled again: {', '.join(repaired)}" if repaired else ""
    return Outcome(
        output=out,
        digest=index.digest,
        summary=f"wrote {out}: {len(rows)} images of {len(work.real.classes)} classes in {len(work.jobs)} shards, "
        f"guidance {guidance:g}{again}",
        metrics={"images": float(len(rows)), "guidance_scale": guidance},
    )


def _provenance(work: _Work) -> Mapping[str, str]:
    """Where the set comes from, and on what its bits depend: they are claimed to repeat on equal device, libraries and batches."""
    context, fingerprint = work.jobs[0].context, work.workspace.fingerprint
    provenance = {"generator": context.generator_digest, "classes_of": work.real.digest, "generator_source": work.request.card.source}
    if work.request.averaged_from is not None:
        provenance |= {"generator_averaged_from": work.request.averaged_from, "ema_sigma_rel": f"{work.request.ema_sigma_rel:g}"}
    provenance |= {} if context.sources is None else {"sources": work.real.digest}
    bits = {"precision": context.speed.precision, "compiled": str(context.speed.compile).lower()}
    return provenance | fingerprint.environment | bits | {"batch_size": str(fingerprint.config["batch_size"])}


def show_plan(
    config: Config,
    *,
    generator: str,
    snapshot: Path,
    settings: Path | None,
    out: Path,
    zero_shot: bool = False,
    workers: int = 1,
) -> Outcome:
    """What `--plan-only` prints: shards, images, what they cost and how long that takes here; samples nothing.

    Without a guidance or settings the plan is shown without its cost.
    """
    real = Snapshot.open(snapshot)
    plan = plan_for(config, real, zero_shot=zero_shot)
    cost = rate = None
    if config.sample.guidance_scale is not None or settings is not None:
        request = sampling_request(config, generator, settings, averages=work_root() / "averages")
        cost = estimate_cost(request.generator, request.settings, plan)
        model = load_model(request.generator)
        model.to(own_device(sampling_device()))
        speed_up(model, Speed(precision=config.sample.precision))
        rate = measure_rate(model, cost, batch_size=config.sample.batch_size)
    for line in describe_plan(plan, cost, rate, workers=workers):
        print(line)
    summary = (
        f"plan {plan.digest[:16]}: {plan.num_images} images of {len(real.classes)} classes in {len(plan.shards)} shards, nothing sampled"
    )
    return Outcome(output=out, digest="", summary=summary, metrics={"images": float(plan.num_images)})
