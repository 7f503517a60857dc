"""The registry: a run registers its challenger; moving `champion` is a pipeline and an account of its own."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register(
    evaluation: str,
    verdict: str,
    settings: str,
    data_root: str,
    code: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> str:
    """Register the candidate as `challenger`, with the gate's decision; leave `champion` where it is."""
    from gda.steps.graph import REGISTER_FLAGS
    from gda.steps.step import run_step

    inputs = {"evaluation": evaluation, "verdict": verdict}
    step = run_step("promote", inputs=inputs, settings=settings, data_root=data_root, code=code, flags=REGISTER_FLAGS)
    step.show(metrics=metrics, summary=summary)
    return step.reference()


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote(
    evaluation: str,
    verdict: str,
    settings: str,
    data_root: str,
    code: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> str:
    """Apply the gate again, and let `champion` point at the candidate if it holds."""
    from gda.steps.step import run_step

    inputs = {"evaluation": evaluation, "verdict": verdict}
    step = run_step("promote", inputs=inputs, settings=settings, data_root=data_root, code=code)
    step.show(metrics=metrics, summary=summary)
    return step.reference()
