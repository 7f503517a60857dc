"""The comparison on the test split."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    runs: list[str],
    snapshot: str,
    synthetic: str,
    zero_shot: str,
    tuning: str,
    verdict: str,
    settings: str,
    data_root: str,
    code: str,
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    summary: dsl.Output[dsl.Markdown],
    page: dsl.Output[dsl.HTML],
) -> str:
    """Test every classifier once, measure CAS and the paired gain, and write the report."""
    from gda.steps.step import log_confusion, run_step

    inputs = {"runs": runs, "snapshot": snapshot, "synthetic": synthetic, "zero-shot": zero_shot, "tuning": tuning, "verdict": verdict}
    step = run_step("evaluate", inputs=inputs, settings=settings, data_root=data_root, code=code)
    step.show(metrics=metrics, summary=summary, page=page)
    log_confusion(step, confusion, settings=settings)
    return step.reference()
