"""How many synthetic images help."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ratio(
    snapshot: str,
    synthetic: str,
    verdict: str,
    settings: str,
    data_root: str,
    code: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> str:
    """Train at several ratios of synthetic to real images, and find the peak of accuracy on validation."""
    from gda.steps.step import run_step

    inputs = {"snapshot": snapshot, "synthetic": synthetic, "verdict": verdict}
    step = run_step("ratio", inputs=inputs, settings=settings, data_root=data_root, code=code)
    step.show(metrics=metrics, summary=summary)
    return step.reference()
