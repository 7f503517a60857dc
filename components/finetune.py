"""Fine-tuning on one node."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def finetune(
    snapshot: str, settings: str, data_root: str, code: str, metrics: dsl.Output[dsl.Metrics], summary: dsl.Output[dsl.Markdown]
) -> str:
    """Fine-tune the text-to-image diffusion model on the training images."""
    from gda.steps.step import run_step

    step = run_step("finetune", inputs={"snapshot": snapshot}, settings=settings, data_root=data_root, code=code)
    step.show(metrics=metrics, summary=summary)
    return step.reference()
