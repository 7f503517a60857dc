"""Training the classifiers of every arm, the seeds of an arm by one pod."""

from kfp import dsl

from components import IMAGE
from components.passing import OF_THE_JOB


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan_classifiers(settings: str, verdict: str, seeds_per_pod: int, summary: dsl.Output[dsl.Markdown]) -> list[dict[str, str]]:
    """Say which classifiers are compared, a pod's share each: an arm and some of its seeds, or with `seeds_per_pod` 0 all of them."""
    from gda.steps.classifiers import planned_classifiers

    return planned_classifiers(settings, seeds_per_pod=seeds_per_pod, summary=summary)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def classify(
    arm: str,
    seeds: str,
    snapshot: str,
    accepted: str,
    verdict: str,
    zero_shot: str,
    img2img: str,
    pool: str,
    reference: str,
    settings: str,
    data_root: str,
    code: str,
    resources: str,
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Train an arm's classifiers of these seeds, by one process for each accelerator of this pod; the arm says which sets it reads.

    `resources` is what the pod was given: a run parameter reaches the inside of a loop only where a step there takes it.
    """
    from gda.steps.classifiers import show_trained, train_seeds_here

    sets = {"accepted": accepted, "verdict": verdict, "zero_shot": zero_shot, "img2img": img2img, "pool": pool, "reference": reference}
    given = {"settings": settings, "data_root": data_root, "code": code}
    steps = train_seeds_here(arm, seeds, sets={"snapshot": snapshot, **sets}, **given)
    return show_trained(steps, metrics=metrics)


@dsl.component(base_image=IMAGE, install_kfp_package=False, task_config_passthroughs=OF_THE_JOB)
def classify_job(
    arm: str,
    seeds: str,
    snapshot: str,
    accepted: str,
    verdict: str,
    zero_shot: str,
    img2img: str,
    pool: str,
    reference: str,
    settings: str,
    nodes: int,
    image: str,
    job: str,
    data_root: str,
    code: str,
    resources: str,
    task_config: dsl.TaskConfig,
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Train an arm's classifiers of these seeds, each by a TrainJob on `nodes` pods, which have what this task is given."""
    from gda.steps.classifiers import show_trained, train_seeds_by_jobs

    sets = {"accepted": accepted, "verdict": verdict, "zero_shot": zero_shot, "img2img": img2img, "pool": pool, "reference": reference}
    given = {"settings": settings, "data_root": data_root, "code": code}
    sets["snapshot"] = snapshot
    steps = train_seeds_by_jobs(arm, seeds, sets=sets, nodes=nodes, image=image, task=task_config, job=job, **given)
    return show_trained(steps, metrics=metrics)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gather_classifiers(runs: list[str], summary: dsl.Output[dsl.Markdown]) -> list[str]:
    """Show how all classifiers did, and hand them on: the outputs of a loop reach no further than its own branch."""
    from gda.steps.classifiers import gathered

    return gathered(runs, summary=summary)
