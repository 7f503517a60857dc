"""Choosing the settings of drawing."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def tune(
    step: str,
    snapshot: str,
    generator: str,
    settings: str,
    data_root: str,
    code: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> str:
    """Choose guidance and steps: FID over a grid, then CAS of the survivors on validation. `step` is tune or tune_zero_shot."""
    from gda.steps.step import run_step

    inputs = {"snapshot": snapshot, "generator": generator}
    done = run_step(step, inputs=inputs, settings=settings, data_root=data_root, code=code)
    done.show(metrics=metrics, summary=summary)
    return done.reference()
