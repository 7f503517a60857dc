"""The reference that synthetic images are held against."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def reference(
    snapshot: str, settings: str, data_root: str, code: str, metrics: dsl.Output[dsl.Metrics], summary: dsl.Output[dsl.Markdown]
) -> str:
    """Train cross-fitted classifiers on the real set and keep its statistics, for the gate."""
    from gda.steps.step import run_step

    step = run_step("reference", inputs={"snapshot": snapshot}, settings=settings, data_root=data_root, code=code)
    step.show(metrics=metrics, summary=summary)
    return step.reference()
