"""Training the classifiers of every arm and seed."""

from kfp import dsl

from components import IMAGE


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
    """Train one classifier of one arm; the arm says which of the given sets it reads.

    `resources` is what the pod was given: a run parameter reaches the inside of a loop only where a step there takes it.
    """
    from gda.steps.step import run_step

    drawn = {"zero_shot": zero_shot, "img2img": img2img}.get(arm, judged)
    inputs = {"snapshot": snapshot, "synthetic": drawn, "verdict": verdict, "pool": pool, "reference": reference}
    item = {"arm": arm, "seed": seed}
    step = run_step("classify", inputs=inputs, settings=settings, data_root=data_root, code=code, item=item)
    step.show(metrics=metrics)
    return step.reference()
