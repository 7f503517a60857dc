"""Training the classifiers of every arm and seed."""

from kfp import dsl

from components import IMAGE
from components.passing import OF_THE_JOB


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan_classifiers(settings: str, verdict: str, summary: dsl.Output[dsl.Markdown]) -> list[dict[str, str]]:
    """Say which classifiers are compared: an arm and a seed each."""
    from gda.steps.entry import planned_classifiers

    return planned_classifiers(settings, summary=summary)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def classify(
    arm: str,
    seed: str,
    snapshot: str,
    judged: str,
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
    """Train one classifier of one arm, which says what of the given sets it reads, by one process for each accelerator of this pod.

    `resources` is what the pod was given: a run parameter reaches the inside of a loop only where a step there takes it.
    """
    from gda.steps.entry import classifier_inputs
    from gda.steps.processes import train_here

    sets = {"judged": judged, "verdict": verdict, "zero_shot": zero_shot, "img2img": img2img, "pool": pool, "reference": reference}
    inputs = classifier_inputs(arm, snapshot=snapshot, **sets)
    item = {"arm": arm, "seed": seed}
    step = train_here("classify", inputs=inputs, settings=settings, data_root=data_root, code=code, item=item)
    step.show(metrics=metrics)
    return step.reference()


@dsl.component(base_image=IMAGE, install_kfp_package=False, task_config_passthroughs=OF_THE_JOB)
def classify_job(
    arm: str,
    seed: str,
    snapshot: str,
    judged: str,
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
    """Train one classifier of one arm by a TrainJob on `nodes` pods, each with what this task is given."""
    from gda.steps.entry import classifier_inputs
    from gda.steps.jobs import train_by_job

    sets = {"judged": judged, "verdict": verdict, "zero_shot": zero_shot, "img2img": img2img, "pool": pool, "reference": reference}
    inputs = classifier_inputs(arm, snapshot=snapshot, **sets)
    item = {"arm": arm, "seed": seed}
    given = {"settings": settings, "data_root": data_root, "code": code}
    step = train_by_job("classify", inputs=inputs, item=item, nodes=nodes, image=image, task=task_config, job=job, **given)
    step.show(metrics=metrics)
    return step.reference()


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gather_classifiers(runs: list[str], summary: dsl.Output[dsl.Markdown]) -> list[str]:
    """Show how all classifiers did, and hand them on: the outputs of a loop reach no further than its own branch."""
    from gda.steps.entry import gathered

    return gathered(runs, summary=summary)
