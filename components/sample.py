"""Sampling synthetic sets: the plan, one worker's shards of it, and the whole."""

from kfp import dsl

from components import IMAGE
from components.passing import OF_THE_JOB


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan_sampling(
    snapshot: str, settings: str, num_workers: int, data_root: str, code: str, summary: dsl.Output[dsl.Markdown]
) -> list[str]:
    """Plan the synthetic set and list the workers that sample it, each as `I/N`; no more of them than the plan has shards."""
    from gda.steps.entry import planned

    return planned(snapshot=snapshot, settings=settings, num_workers=num_workers, data_root=data_root, code=code, summary=summary)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def sample_shards(worker: str, snapshot: str, generator: str, tuning: str, settings: str, data_root: str, code: str, resources: str) -> str:
    """Sample this worker's shards; each is committed when it is whole, so that a retry samples only what is missing.

    `resources` is what the pod was given: a run parameter reaches the inside of a loop only where a step there takes it.
    """
    from gda.steps.step import run_step

    index, count = worker.split("/")
    inputs = {"snapshot": snapshot, "generator": generator, "settings": tuning}
    share = (int(index), int(count))
    return run_step("sample", inputs=inputs, settings=settings, data_root=data_root, code=code, share=share).record.summary


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def sample(
    step: str,
    snapshot: str,
    generator: str,
    tuning: str,
    settings: str,
    data_root: str,
    code: str,
    shards: list[str],
    resources: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> str:
    """Publish a synthetic set, after sampling what no worker has. `step` is sample, sample_zero_shot or sample_img2img.

    `shards` are the workers' outputs, which this waits for; `resources` is what the pod was given.
    """
    from gda.steps.step import run_step

    inputs = {"snapshot": snapshot, "generator": generator, "settings": tuning}
    done = run_step(step, inputs=inputs, settings=settings, data_root=data_root, code=code)
    done.show(metrics=metrics, summary=summary)
    return done.reference()


@dsl.component(base_image=IMAGE, install_kfp_package=False, task_config_passthroughs=OF_THE_JOB)
def sample_job(
    snapshot: str,
    generator: str,
    tuning: str,
    settings: str,
    workers: int,
    image: str,
    job: str,
    data_root: str,
    code: str,
    resources: str,
    task_config: dsl.TaskConfig,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> str:
    """Sample the synthetic set by one Indexed Job, whose workers may be taken away and start again pod by pod, and publish it."""
    from gda.steps.jobs import sample_by_job

    inputs = {"snapshot": snapshot, "generator": generator, "settings": tuning}
    given = {"settings": settings, "data_root": data_root, "code": code}
    step = sample_by_job(inputs=inputs, workers=workers, image=image, task=task_config, job=job, **given)
    step.show(metrics=metrics, summary=summary)
    return step.reference()
