"""Fine-tuning, on one pod or on several."""

from kfp import dsl

from components import IMAGE
from components.passing import OF_THE_JOB


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finetune(
    snapshot: str,
    settings: str,
    data_root: str,
    code: str,
    resources: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> str:
    """Fine-tune the text-to-image diffusion model on the training images, by one process for each accelerator of this pod.

    `resources` is what the pod was given.
    """
    from gda.steps.processes import train_here

    step = train_here("finetune", inputs={"snapshot": snapshot}, settings=settings, data_root=data_root, code=code)
    step.show(metrics=metrics, summary=summary)
    return step.reference()


@dsl.component(base_image=IMAGE, install_kfp_package=False, task_config_passthroughs=OF_THE_JOB)
def finetune_job(
    snapshot: str,
    settings: str,
    nodes: int,
    image: str,
    job: str,
    data_root: str,
    code: str,
    resources: str,
    task_config: dsl.TaskConfig,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> str:
    """Fine-tune the text-to-image diffusion model by a TrainJob on `nodes` pods, each with what this task is given."""
    from gda.steps.jobs import train_by_job

    inputs = {"snapshot": snapshot}
    given = {"settings": settings, "data_root": data_root, "code": code}
    step = train_by_job("finetune", inputs=inputs, item={}, nodes=nodes, image=image, task=task_config, job=job, **given)
    step.show(metrics=metrics, summary=summary)
    return step.reference()
