"""`augment`: the whole job, from images to a registered challenger with its proof."""

from collections.abc import Callable
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
            known = {"data_root": data_root, "code": setup.outputs["code"]}
            by_job = known | {"image": image, "job": job, "resources": given}

            real = snapshot(settings=setup.outputs["snapshot"], **known)
            place(real, CPU, title="snapshot")
            more = snapshot_pool(snapshot=real.outputs["Output"], settings=setup.outputs["snapshot_pool"], **known)
            place(more, CPU, title="snapshot of the pool")
            labels = reference(snapshot=real.outputs["Output"], settings=setup.outputs["reference"], **known)
            place(labels, GPU, title="reference")
            with dsl.If(finetune_nodes == 1, name="finetune-on-one-node"):
                tuned_here = finetune(snapshot=real.outputs["Output"], settings=setup.outputs["finetune"], resources=given, **known)
                place(tuned_here, GPU, title="finetune", cached=False)
            with dsl.Else(name="finetune-on-several"):
                tuned_there = finetune_job(
                    snapshot=real.outputs["Output"], settings=setup.outputs["finetune"], nodes=finetune_nodes, **by_job
                )
                place(tuned_there, JOB, title="finetune by a job", cached=False)
            generator = dsl.OneOf(tuned_here.outputs["Output"], tuned_there.outputs["Output"])

            chosen = tune(
                step="tune",
                snapshot=real.outputs["Output"],
                generator=generator,
                settings=setup.outputs["tune"],
                measured=[],
                **known,
            )
            place(chosen, GPU, title="tune")
            chosen_base = tune(
                step="tune_zero_shot",
                snapshot=real.outputs["Output"],
                generator="",
                settings=setup.outputs["tune_zero_shot"],
                measured=[],
                **known,
            )
            place(chosen_base, GPU, title="tune, zero-shot")

            source = {"snapshot": real.outputs["Output"], "generator": generator, "tuning": chosen.outputs["Output"]}
            source["resources"] = given
            # In a group of its own: within one, the local runner hands a loop's body the loop's item in place of its siblings' outputs.
            with dsl.If(sampler == "pods", name="pods"):
                planned = plan_sampling(
                    snapshot=real.outputs["Output"], settings=setup.outputs["sample"], num_workers=sample_workers, **known
                )
                place(planned, LIGHT, title="plan of sampling", cached=False)
                with dsl.ParallelFor(planned.outputs["Output"], parallelism=options.parallelism) as worker:
                    shards = sample_shards(worker=worker, settings=setup.outputs["sample"], **source, **known)
                    place(shards, GPU, title="sample shards", cached=False)
                shards = sample(step="sample", settings=setup.outputs["sample"], shards=dsl.Collected(shards.output), **source, **known)
                place(shards, GPU, title="sample", cached=False)
            with dsl.Else(name="job"):
                watched = sample_job(
                    snapshot=real.outputs["Output"], generator=generator, tuning=chosen.outputs["Output"],
                    settings=setup.outputs["sample"], workers=sample_workers, **by_job,
                )  # fmt: skip
                place(watched, JOB, title="sample by a job", cached=False)
            synthetic = dsl.OneOf(shards.outputs["Output"], watched.outputs["Output"])
            base_source = source | {"generator": "", "tuning": chosen_base.outputs["Output"], "shards": []}
            zero_shot = sample(step="sample_zero_shot", settings=setup.outputs["sample_zero_shot"], **base_source, **known)
            place(zero_shot, GPU, title="sample, zero-shot")
            img2img = sample(step="sample_img2img", settings=setup.outputs["sample_img2img"], shards=[], **source, **known)
            place(img2img, GPU, title="sample, image to image")

            verdict = validate(
                synthetic=synthetic, snapshot=real.outputs["Output"], reference=labels.outputs["Output"],
                generator=generator,
                settings=setup.outputs["validate"], **known,
            )  # fmt: skip
            place(verdict, GPU, title="validate")

            with dsl.If(verdict.outputs["passed"] == True, name="sound"):  # noqa: E712
                runs = plan_classifiers(settings=setup.outputs["classify"], verdict=verdict.outputs["verdict"], seeds_per_pod=seeds_per_pod)
                place(runs, LIGHT, title="plan of classifiers")
                sets = {
                    "snapshot": real.outputs["Output"], "accepted": verdict.outputs["accepted"], "verdict": verdict.outputs["verdict"],
                    "zero_shot": zero_shot.outputs["Output"], "img2img": img2img.outputs["Output"], "pool": more.outputs["Output"],
                    "reference": labels.outputs["Output"], "settings": setup.outputs["classify"],
                }  # fmt: skip
                with dsl.If(classify_nodes == 1, name="classify-on-one-node"):
                    with dsl.ParallelFor(runs.outputs["Output"], parallelism=options.parallelism) as item:
                        trained = classify(arm=item.arm, seeds=item.seeds, resources=given, **sets, **known)
                        place(trained, GPU, title="classify", cached=False)
                    from_pods = gather_classifiers(runs=dsl.Collected(trained.outputs["Output"]))
                    place(from_pods, LIGHT, title="all classifiers", cached=False)
                with dsl.Else(name="classify-on-several"):
                    with dsl.ParallelFor(runs.outputs["Output"], parallelism=options.parallelism) as item:
                        watched = classify_job(arm=item.arm, seeds=item.seeds, nodes=classify_nodes, **sets, **by_job)
                        place(watched, JOB, title="classify by a job", cached=False)
                    from_jobs = gather_classifiers(runs=dsl.Collected(watched.outputs["Output"]))
                    place(from_jobs, LIGHT, title="all classifiers", cached=False)
                classifiers = dsl.OneOf(from_pods.outputs["Output"], from_jobs.outputs["Output"])
                compared = evaluate(
                    runs=classifiers, snapshot=real.outputs["Output"], synthetic=verdict.outputs["accepted"],
                    zero_shot=zero_shot.outputs["Output"], tuning=chosen.outputs["Output"], verdict=verdict.outputs["verdict"],
                    settings=setup.outputs["evaluate"], **known,
                )  # fmt: skip
                place(compared, GPU, title="evaluate")
                version = register(
                    evaluation=compared.outputs["Output"], verdict=verdict.outputs["verdict"], settings=setup.outputs["promote"], **known
                )
                place(version, CPU, title="register challenger", cached=False)
            with dsl.Else(name="refused"):
                refusal = reject(verdict=verdict.outputs["verdict"])
                place(refusal, LIGHT, title="reject")

    return augment
