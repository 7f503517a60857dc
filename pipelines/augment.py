"""`augment`: the whole job, from images to a registered challenger with its proof."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kfp import dsl

from components.classify import classify, classify_job, gather_classifiers, plan_classifiers
from components.configure import configure
from components.evaluate import evaluate
from components.finetune import finetune, finetune_job
from components.promote import register
from components.reference import reference
from components.report import report
from components.sample import plan_sampling, sample, sample_job, sample_shards
from components.snapshot import snapshot, snapshot_pool
from components.tune import tune
from components.validate import reject, validate
from pipelines.options import CompileOptions
from pipelines.steps import CPU, GPU, JOB, LIGHT, Placement

CODE_VERSION = "0.1.0"


def build(options: CompileOptions) -> Callable[..., Any]:
    """The pipeline for one image, queue and width of its loops."""

    @dsl.pipeline(
        name="augment",
        description="Fine-tune a diffusion model on labelled images, generate a synthetic set, refuse it unless it is sound, compare "
        "classifiers trained with and without it, and register the candidate.",
        pipeline_config=dsl.PipelineConfig(ttl_seconds_after_finished=7 * 24 * 3600, active_deadline_seconds=14 * 24 * 3600),
    )
    def augment(
        data: str = "demo://mnist",
        pool: str = "",
        base_model: str = "demo://glyphs",
        method: str = "full",
        num_train_steps: int = 300,
        images_per_class: int = 100,
        guidance_scale: float = 0.0,
        classifier: str = "resnetv2_18",
        image_size: int = 28,
        ratio: float = 1.0,
        classifier_train_steps: int = 300,
        num_seeds: int = 10,
        fid_max_ratio: float = 10.0,
        alpha: float = 0.05,
        min_seeds: int = 6,
        model_name: str = "gda-classifier",
        seed: int = 0,
        settings: str = "{}",
        data_root: str = "/data",
        data_claim: str = "gda-data",
        sampler: str = "pods",
        sample_workers: int = 4,
        cpu: str = "4",
        memory: str = "16Gi",
        gpu_type: str = "nvidia.com/gpu",
        gpu_count: str = "1",
        node_selector: dict = {},  # noqa: B006
        tolerations: list = [],  # noqa: B006
        finetune_nodes: int = 1,
        classify_nodes: int = 1,
        seeds_per_pod: int = 0,
        job: str = options.job_text(),
        code_version: str = CODE_VERSION,
        image: str = options.image,
    ) -> None:
        """Fine-tune a diffusion model on labelled images, and prove whether its images make the classifier better.

        Args:
            data: Labelled images: a folder of class folders, a tar pattern, a Hugging Face imagefolder, an .npz, or demo://mnist.
            pool: More real images for the arm "retrieved"; empty where there are none.
            base_model: Weights to fine-tune: a hub id ORG/NAME[@REVISION][:VARIANT], a directory on the volume, or demo://glyphs.
            method: What is trained: full, lora or textual_inversion.
            num_train_steps: Optimizer steps of fine-tuning (of the base stage, where there are several).
            images_per_class: Synthetic images per class.
            guidance_scale: Guidance while sampling; 1 is off, 0 takes what tuning chooses.
            classifier: The classifier, a timm architecture.
            image_size: Side of the classifier's input, pixels.
            ratio: Synthetic to real images in a mixed batch.
            classifier_train_steps: Optimizer steps of a classifier.
            num_seeds: Paired trainings of real and real+synthetic; fewer than 6 cannot show a gain.
            fid_max_ratio: The gate: highest FID of the synthetic set, in multiples of real against real.
            alpha: The gate: significance level of the gain and of harm to a class.
            min_seeds: The gate: fewest paired trainings.
            model_name: Registered model that the candidate becomes a version of.
            seed: Names every random stream of the run.
            settings: All other settings as one JSON object of sections, as gda config show prints them.
            data_root: Folder on the shared volume, which every step mounts at /data.
            data_claim: The volume's claim; its storage must let several pods write.
            sampler: What generates the synthetic set: "pods" of this pipeline, or a "job", whose pods may be taken away and come back.
            sample_workers: Pods that share the generation of the synthetic set, 1 to 12, or to 50 of a job.
            cpu: Processors of a step that computes.
            memory: Memory of a step that computes.
            gpu_type: Resource name of the accelerators.
            gpu_count: Accelerators of a step that computes; 0 for none. A network is trained by a process on each.
            node_selector: Labels of the nodes for steps that compute, as a JSON object.
            tolerations: Taints that these steps tolerate, as a JSON list.
            finetune_nodes: Pods that fine-tune together, each with these accelerators; above 1 as a TrainJob of Kubeflow Trainer.
            classify_nodes: Pods that train one classifier together; above 1 as a TrainJob.
            seeds_per_pod: Classifiers of an arm that one pod trains; 0 is all of them, and the loop is at most 12 pods wide.
            job: Of jobs: retries_per_worker, deadline_seconds, queue and priority, as one JSON object.
            code_version: Version of the code in the image; part of what a cached step is known by.
            image: Digest of the image that the pipeline was compiled for; part of what a cached step is known by.
        """
        place = Placement(
            options=options,
            data_claim=data_claim,
            cpu=cpu,
            memory=memory,
            gpu_type=gpu_type,
            gpu_count=gpu_count,
            node_selector=node_selector,
            tolerations=tolerations,
        )
        # Unique; the display name, which is what PIPELINE_JOB_NAME_PLACEHOLDER becomes on a server, may be that of other runs too.
        run = options.run_name
        named = {"run": run, "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER, "title": dsl.PIPELINE_JOB_NAME_PLACEHOLDER}
        # Parameters that only set resources do not reach nested groups of steps, a defect of the compiler that the scope lint finds:
        # one step in each group takes them as an argument.
        given = f"{cpu} cpu, {memory}, {gpu_count} {gpu_type}"
        closing = report(run=run, data_root=data_root)
        place(closing, LIGHT, title="report", cached=False)
        with dsl.ExitHandler(closing, name="job"):
            setup = configure(
                data=data, pool=pool, base_model=base_model, method=method, num_train_steps=num_train_steps,
                images_per_class=images_per_class, guidance_scale=guidance_scale, classifier=classifier, image_size=image_size,
                ratio=ratio, classifier_train_steps=classifier_train_steps, num_seeds=num_seeds, fid_max_ratio=fid_max_ratio, alpha=alpha,
                min_seeds=min_seeds, model_name=model_name, seed=seed, settings=settings,
                data_root=data_root, **named, code_version=code_version, image=image, resources=given,
            )  # fmt: skip
            place(setup, LIGHT, title="configure", cached=False, hours=12)  # it reads a new source once
            job_of_run = _Job(
                place=place,
                options=options,
                settings=setup.outputs,
                known={"data_root": data_root, "code": setup.outputs["code"]},
                resources=given,
                by_job={"image": image, "job": job, "resources": given},
            )
            images = _images(job_of_run)
            generator = _generator(job_of_run, images, nodes=finetune_nodes)
            sets = _synthetic_sets(job_of_run, images, generator, sampler=sampler, workers=sample_workers)
            verdict = _verdict(job_of_run, images, generator, sets)
            with dsl.If(verdict.outputs["passed"] == True, name="sound"):  # noqa: E712
                classifiers = _classifiers(job_of_run, images, sets, verdict, nodes=classify_nodes, seeds_per_pod=seeds_per_pod)
                _comparison(job_of_run, images, sets, verdict, classifiers)
            with dsl.Else(name="refused"):
                refusal = reject(verdict=verdict.outputs["verdict"])
                place(refusal, LIGHT, title="reject")

    return augment


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What all phases of one run share: where steps go, each step's settings by name, and arguments of every component.

    `by_job` are further arguments of steps whose work a job does; `resources` is an argument of steps that compute.
    """

    place: Placement
    options: CompileOptions
    settings: Mapping[str, Any]
    known: Mapping[str, Any]
    resources: str
    by_job: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Images:
    """Outputs of the first phase: the real snapshot, the pool, and the classifiers that check labels."""

    real: Any
    pool: Any
    labels: Any


@dataclass(frozen=True, kw_only=True)
class _Sets:
    """The synthetic set, its control sets, and the table of the sampling settings."""

    synthetic: Any
    zero_shot: Any
    img2img: Any
    tuning: Any


def _images(job: _Job) -> _Images:
    """Freeze the real images and the pool, and train the classifiers that check labels."""
    real = snapshot(settings=job.settings["snapshot"], **job.known)
    job.place(real, CPU, title="snapshot")
    more = snapshot_pool(snapshot=real.outputs["Output"], settings=job.settings["snapshot_pool"], **job.known)
    job.place(more, CPU, title="snapshot of the pool")
    labels = reference(snapshot=real.outputs["Output"], settings=job.settings["reference"], **job.known)
    job.place(labels, GPU, title="reference")
    return _Images(real=real.outputs["Output"], pool=more.outputs["Output"], labels=labels.outputs["Output"])


def _generator(job: _Job, images: _Images, *, nodes: Any) -> Any:
    """Fine-tune on one node, or on several as a TrainJob."""
    with dsl.If(nodes == 1, name="finetune-on-one-node"):
        here = finetune(snapshot=images.real, settings=job.settings["finetune"], resources=job.resources, **job.known)
        job.place(here, GPU, title="finetune", cached=False)
    with dsl.Else(name="finetune-on-several"):
        there = finetune_job(snapshot=images.real, settings=job.settings["finetune"], nodes=nodes, **job.known, **job.by_job)
        job.place(there, JOB, title="finetune by a job", cached=False)
    return dsl.OneOf(here.outputs["Output"], there.outputs["Output"])


def _tuning(job: _Job, images: _Images, generator: Any, *, step: str, title: str) -> Any:
    """Choose the sampling settings of `generator`; the base is the generator where it is empty."""
    chosen = tune(
        step=step, snapshot=images.real, generator=generator, settings=job.settings[step], measured=[], **job.known
    )  # fmt: skip
    job.place(chosen, GPU, title=title)
    return chosen.outputs["Output"]


def _synthetic_sets(job: _Job, images: _Images, generator: Any, *, sampler: Any, workers: Any) -> _Sets:
    """Tune the sampling settings, and generate the synthetic set, by pods of this pipeline or by a job, and its control sets."""
    tuning = _tuning(job, images, generator, step="tune", title="tune")
    tuning_base = _tuning(job, images, "", step="tune_zero_shot", title="tune, zero-shot")
    source = {"snapshot": images.real, "generator": generator, "tuning": tuning, "resources": job.resources}
    settings = job.settings["sample"]
    # In a group of its own: within one, the local runner hands a loop's body the loop's item in place of its siblings' outputs.
    with dsl.If(sampler == "pods", name="pods"):
        planned = plan_sampling(snapshot=images.real, settings=settings, num_workers=workers, **job.known)
        job.place(planned, LIGHT, title="plan of sampling", cached=False)
        with dsl.ParallelFor(planned.outputs["Output"], parallelism=job.options.parallelism) as worker:
            shards = sample_shards(worker=worker, settings=settings, **source, **job.known)
            job.place(shards, GPU, title="sample shards", cached=False)
        whole = sample(step="sample", settings=settings, shards=dsl.Collected(shards.output), **source, **job.known)
        job.place(whole, GPU, title="sample", cached=False)
    with dsl.Else(name="job"):
        watched = sample_job(
            snapshot=images.real, generator=generator, tuning=tuning, settings=settings, workers=workers, **job.known, **job.by_job
        )
        job.place(watched, JOB, title="sample by a job", cached=False)
    synthetic = dsl.OneOf(whole.outputs["Output"], watched.outputs["Output"])
    of_base = source | {"generator": "", "tuning": tuning_base}
    zero_shot = sample(step="sample_zero_shot", settings=job.settings["sample_zero_shot"], shards=[], **of_base, **job.known)
    job.place(zero_shot, GPU, title="sample, zero-shot")
    img2img = sample(step="sample_img2img", settings=job.settings["sample_img2img"], shards=[], **source, **job.known)
    job.place(img2img, GPU, title="sample, image to image")
    return _Sets(synthetic=synthetic, zero_shot=zero_shot.outputs["Output"], img2img=img2img.outputs["Output"], tuning=tuning)


def _verdict(job: _Job, images: _Images, generator: Any, sets: _Sets) -> Any:
    """Validate the synthetic set; the task, whose outputs are the verdict, the accepted set, and whether it passed."""
    verdict = validate(
        synthetic=sets.synthetic, snapshot=images.real, reference=images.labels, generator=generator,
        settings=job.settings["validate"], **job.known,
    )  # fmt: skip
    job.place(verdict, GPU, title="validate")
    return verdict


def _classifiers(job: _Job, images: _Images, sets: _Sets, verdict: Any, *, nodes: Any, seeds_per_pod: Any) -> Any:
    """Train every arm with every seed: pods that train some seeds each, or a TrainJob per classifier."""
    runs = plan_classifiers(settings=job.settings["classify"], verdict=verdict.outputs["verdict"], seeds_per_pod=seeds_per_pod)
    job.place(runs, LIGHT, title="plan of classifiers")
    given = {
        "snapshot": images.real, "accepted": verdict.outputs["accepted"], "verdict": verdict.outputs["verdict"],
        "zero_shot": sets.zero_shot, "img2img": sets.img2img, "pool": images.pool,
        "reference": images.labels, "settings": job.settings["classify"],
    }  # fmt: skip
    with dsl.If(nodes == 1, name="classify-on-one-node"):
        with dsl.ParallelFor(runs.outputs["Output"], parallelism=job.options.parallelism) as item:
            trained = classify(arm=item.arm, seeds=item.seeds, resources=job.resources, **given, **job.known)
            job.place(trained, GPU, title="classify", cached=False)
        from_pods = gather_classifiers(runs=dsl.Collected(trained.outputs["Output"]))
        job.place(from_pods, LIGHT, title="all classifiers", cached=False)
    with dsl.Else(name="classify-on-several"):
        with dsl.ParallelFor(runs.outputs["Output"], parallelism=job.options.parallelism) as item:
            watched = classify_job(arm=item.arm, seeds=item.seeds, nodes=nodes, **given, **job.known, **job.by_job)
            job.place(watched, JOB, title="classify by a job", cached=False)
        from_jobs = gather_classifiers(runs=dsl.Collected(watched.outputs["Output"]))
        job.place(from_jobs, LIGHT, title="all classifiers", cached=False)
    return dsl.OneOf(from_pods.outputs["Output"], from_jobs.outputs["Output"])


def _comparison(job: _Job, images: _Images, sets: _Sets, verdict: Any, classifiers: Any) -> None:
    """Compare the classifiers on the test split, and register the candidate."""
    compared = evaluate(
        runs=classifiers, snapshot=images.real, synthetic=verdict.outputs["accepted"], zero_shot=sets.zero_shot, tuning=sets.tuning,
        verdict=verdict.outputs["verdict"], settings=job.settings["evaluate"], **job.known,
    )  # fmt: skip
    job.place(compared, GPU, title="evaluate")
    version = register(
        evaluation=compared.outputs["Output"], verdict=verdict.outputs["verdict"], settings=job.settings["promote"], **job.known
    )
    job.place(version, CPU, title="register challenger", cached=False)
