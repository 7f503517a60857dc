"""Choosing the sampling settings."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def tune(
    step: str,
    snapshot: str,
    generator: str,
    settings: str,
    measured: list[str],
    data_root: str,
    code: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> str:
    """Choose guidance and steps: FID over a grid, then CAS of the survivors on validation. `step` is tune or tune_zero_shot.

    `measured` are the workers' outputs, which this waits for.
    """
    from gda.steps.step import run_step

    inputs = {"snapshot": snapshot, "generator": generator}
    done = run_step(step, inputs=inputs, settings=settings, data_root=data_root, code=code)
    done.show(metrics=metrics, summary=summary)
    return done.reference()


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan_points(settings: str, num_workers: int, summary: dsl.Output[dsl.Markdown]) -> list[str]:
    """Say which workers measure the points of a sweep, each as `I/N`."""
    from gda.steps.entry import planned_points

    return planned_points(settings, num_workers=num_workers, summary=summary)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def tune_points(worker: str, snapshot: str, generator: str, settings: str, data_root: str, code: str, resources: str) -> str:
    """Sample and measure this worker's points; each is kept, so that the step that chooses, or a retry, does not sample it again.

    `resources` is what the pod was given: a run parameter reaches the inside of a loop only where a step there takes it.
    """
    from gda.steps.step import run_step

    index, count = worker.split("/")
    inputs = {"snapshot": snapshot, "generator": generator}
    share = (int(index), int(count))
    return run_step("tune", inputs=inputs, settings=settings, data_root=data_root, code=code, share=share).record.summary
