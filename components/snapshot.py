"""Freezing images: the real set, and a pool of more of them."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def snapshot(settings: str, data_root: str, code: str, metrics: dsl.Output[dsl.Metrics], summary: dsl.Output[dsl.Markdown]) -> str:
    """Freeze the labelled image set: shards, manifest and leak-free splits."""
    from gda.steps.step import run_step

    step = run_step("snapshot", inputs={}, settings=settings, data_root=data_root, code=code)
    step.show(metrics=metrics, summary=summary)
    return step.reference()


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def snapshot_pool(snapshot: str, settings: str, data_root: str, code: str, summary: dsl.Output[dsl.Markdown]) -> str:
    """Freeze more real images for the arm `retrieved`, cleared of the test split; skipped where no arm needs them."""
    from gda.steps.step import run_step

    step = run_step("snapshot_pool", inputs={"snapshot": snapshot}, settings=settings, data_root=data_root, code=code)
    step.show(summary=summary)
    return step.reference()
